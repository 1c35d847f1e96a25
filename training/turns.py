"""The nouns of the corpus: a turn (question and answer) and the ways people wrap a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """One question and its answer; ``short`` is the answer to somebody who asked for few words."""

    ask: str
    answer: str
    short: str | None = None


def pick(rng: Random, choices: Sequence[T]) -> T:
    return choices[rng.randrange(len(choices))]


def listed(things: Sequence[str]) -> str:
    """``a, b and c``."""
    return things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]


STARTS = [
    "Hi! ",
    "Hello, ",
    "Hey, ",
    "Please tell me: ",
    "Quick question: ",
    "OK. ",
    "Hmm, ",
    "I have a question. ",
]
ENDS = [" Thanks!", " Please.", " Thank you.", " :)"]


def wrapped(rng: Random, ask: str) -> str:
    """The question as a person might type it: with a greeting, in lower case, without the last mark."""
    roll = rng.random()
    if roll < 0.12:
        ask = ask.lower()
    if 0.08 < roll < 0.2:
        ask = ask.rstrip("?.")
    if 0.2 < roll < 0.28:
        ask = pick(rng, STARTS) + ask
    if 0.28 < roll < 0.33:
        ask = ask + pick(rng, ENDS)
    return ask
