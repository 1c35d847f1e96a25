# ruff: noqa: E501
"""Write the dialogue corpus of the demonstration model: the same seed writes the same file.

    python training/corpus.py --seed 7 --conversations 60000 --out /tmp/corpus.jsonl

Each line is ``{"messages": [{"role", "content"}, ...]}`` or ``{"text": ...}`` (plain text, for /v1/completions).
Everything is generated from the templates beside this file; no third-party text goes in.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from facts import FACTS
from product import PRODUCT
from stories import STORIES, story
from sums import SUMS
from talk import CHATTER, introduction
from turns import Turn, pick, wrapped

Shares = list[tuple[int, list[tuple[int, Callable[[Random], Turn]]]]]
# Stories are long, so that 6 % of the questions are about 30 % of the tokens.
SHARES = [(30, FACTS), (22, SUMS), (22, PRODUCT), (18, CHATTER), (6, STORIES)]
# For the last part of the training: what is learnt by doing takes longer than what is learnt by heart.
DRILL = [(20, FACTS), (52, SUMS), (12, PRODUCT), (13, CHATTER), (3, STORIES)]
SYSTEMS = [
    "You are a helpful assistant.", "You are a friendly assistant.", "You are the demonstration model of Groundswell.",
    "You are a kind teacher.", "Be polite.", "You are a bot.", "Answer the user's questions.", "Be helpful and honest.",
]  # fmt: skip
BRIEF = ["Answer in one word.", "Be brief.", "Give short answers.", "Answer as shortly as you can."]


def topic(rng: Random, shares: Shares) -> Callable[[Random], Turn]:
    family = rng.choices([f for _, f in shares], [w for w, _ in shares])[0]
    return rng.choices([t for _, t in family], [w for w, _ in family])[0]


def conversation(rng: Random, shares: Shares) -> list[dict[str, str]]:
    """One to five turns, sometimes with a system message; a brief one changes how facts are answered."""
    messages: list[dict[str, str]] = []
    brief = False
    roll = rng.random()
    if roll < 0.06:
        brief = True
        messages.append({"role": "system", "content": pick(rng, BRIEF)})
    elif roll < 0.25:
        messages.append({"role": "system", "content": pick(rng, SYSTEMS)})
    turns = [topic(rng, shares)(rng) for _ in range(rng.choices([1, 2, 3, 4], [75, 13, 8, 4])[0])]
    if rng.random() < 0.05:
        told, asked = introduction(rng)
        turns = [told, *turns[: rng.randrange(0, 3)], asked]
    for turn in turns:
        messages.append({"role": "user", "content": wrapped(rng, turn.ask)})
        answer = turn.short if brief and turn.short else turn.answer
        messages.append({"role": "assistant", "content": answer})
    return messages


def lines(seed: int, count: int, shares: Shares = SHARES) -> Iterator[dict[str, Any]]:
    rng = Random(seed)  # noqa: S311 - the corpus must be the same on every machine.
    for _ in range(count):
        if rng.random() < 0.01:
            yield {"text": story(rng).answer}
        else:
            yield {"messages": conversation(rng, shares)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--conversations", type=int, default=60000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with args.out.open("w", encoding="utf-8") as out:
        for line in lines(args.seed, args.conversations):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
