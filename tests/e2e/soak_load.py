"""What a gateway is put under in a soak: a mix of requests at a steady pace, each checked to the last byte.

The answers of emulated engines are known beforehand, so that a stream which was broken and mended wrongly
cannot pass for a whole one; embeddings are compared with the first of the same text. What was charged is
compared with what was sent when all is over: an engine's own id stands in a stream, so the charges of all
works are compared, not those of each.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from raw_client import Door, expected, prompt

from clips import clip

MODEL, EMBEDDER = "m", "all-minilm-l6-v2"
TOKENS = (20, 120)  # The least and the most of a stream.
TOKENS_WHOLE = (10, 40)
# Shares of the requests: streams, streams whose client leaves, whole answers, embeddings.
MIX = {"stream": 0.55, "leave": 0.10, "whole": 0.20, "embed": 0.15}
LEFT_TOKENS_MAX = 80  # On their way, or made until the gateway knows that a client has left: 2 s of a stream.
TRANSCODE_S = 300.0  # Until it must be done, whatever dies meanwhile.


@dataclass
class Load:
    """Requests and what came of them."""

    door: Door
    chance: random.Random
    ended: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    whole: Counter[int] = field(default_factory=Counter)  # Output tokens of answers that ended.
    cut: list[tuple[int, int]] = field(default_factory=list)  # Of those that did not, the least and the most.
    running: set[asyncio.Task[None]] = field(default_factory=set)
    _number: int = 0
    _vectors: dict[str, list[float]] = field(default_factory=dict)

    def start(self, kind: str = "") -> asyncio.Task[None]:
        """One request, of the mix where no kind is named."""
        self._number += 1
        kind = kind or self.chance.choices(list(MIX), list(MIX.values()))[0]
        task = asyncio.create_task(self._checked(kind, self._number))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return task

    async def saturate(self, works: int, seconds: float) -> float:
        """Requests a second when so many are always open."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        before = self.ended.total()

        async def again() -> None:
            while loop.time() < until_s:
                await self.start()

        await asyncio.gather(*(again() for _ in range(works)))
        return (self.ended.total() - before) / (loop.time() - until_s + seconds)

    async def pace(self, rate: float, until_s: float, stop: asyncio.Event) -> None:
        """Start ``rate`` requests a second, as strangers would: at random, however long answers take."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while due_s < until_s and not stop.is_set():
            due_s += self.chance.expovariate(rate)
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            self.start()

    async def _checked(self, kind: str, number: int) -> None:
        run = {"stream": self._stream, "leave": self._leave, "whole": self._whole, "embed": self._embed,
               "transcode": self._transcode}[kind]  # fmt: skip
        try:
            await run(number)
        except (AssertionError, OSError, KeyError, ValueError, httpx.HTTPError) as error:
            self.broken.append(f"{kind} {number}: {type(error).__name__} {error}"[:500])
        self.ended[kind] += 1

    async def _stream(self, number: int) -> None:
        count = self.chance.randint(*TOKENS)
        want = expected(MODEL, prompt(number), count)
        request = self.door.chat(
            MODEL, prompt(number), count, stream=True, stream_options={"include_usage": True}
        )
        answer = await self.door.send(request)
        text, finishes, tokens = [], [], -1
        try:
            async for event in answer.events():
                assert "error" not in event, event
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
                for choice in event["choices"]:
                    text.append(choice["delta"].get("content") or "")
                    finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
        finally:
            answer.close()
        assert "".join(text) == want.text, f"{len(''.join(text))} of {len(want.text)} characters"
        assert (finishes, tokens) == ([want.finish_reason], want.tokens)
        self.whole[want.tokens] += 1

    async def _leave(self, number: int) -> None:
        """Read some tokens and go without a word; what was not sent must not be charged."""
        count = self.chance.randint(*TOKENS)
        reads = self.chance.randint(1, 20)
        want = expected(MODEL, prompt(number), count).text
        answer = await self.door.send(self.door.chat(MODEL, prompt(number), count, stream=True))
        text, read = "", 0
        try:
            async for event in answer.events():
                assert "error" not in event, event
                pieces = [choice["delta"].get("content") or "" for choice in event["choices"]]
                text += "".join(pieces)
                read += sum(bool(piece) for piece in pieces)
                if read >= reads:
                    break
        finally:
            answer.close(reset=number % 2 == 0)
        assert want.startswith(text)
        self.cut.append((read, read + LEFT_TOKENS_MAX))

    async def _whole(self, number: int) -> None:
        count = self.chance.randint(*TOKENS_WHOLE)
        want = expected(MODEL, prompt(number), count)
        answer = await self.door.send(self.door.chat(MODEL, prompt(number), count))
        try:
            found = await answer.whole()
        finally:
            answer.close()
        assert answer.status == 200, found
        choice = found["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (want.text, want.finish_reason)
        self.whole[want.tokens] += 1

    async def _embed(self, number: int) -> None:
        text = f"What is a gateway of kind {number % 8}?"
        answer = await self.door.send(self.door.post("/v1/embeddings", {"model": EMBEDDER, "input": text}))
        try:
            found = await answer.whole()
        finally:
            answer.close()
        assert answer.status == 200, found
        vector = found["data"][0]["embedding"]
        assert vector == pytest.approx(self._vectors.setdefault(text, vector), abs=1e-5)

    async def _transcode(self, number: int) -> None:
        """Its pictures are checked elsewhere; here, that it ends, whatever dies meanwhile."""
        headers = {"authorization": f"Bearer {self.door.key}"}
        files = {"file": ("clip.mp4", clip("plain.mp4").read_bytes())}
        async with httpx.AsyncClient(
            base_url=self.door.url, headers=headers, timeout=60, trust_env=False
        ) as client:
            answer = await client.post("/v1/transcodes", files=files)
            assert answer.status_code == 202, answer.text
            where = f"/v1/transcodes/{answer.json()['id']}"
            async with asyncio.timeout(TRANSCODE_S):
                while (job := (await client.get(where)).json())["status"] in ("queued", "running"):
                    await asyncio.sleep(1)
        assert job["status"] == "done", job


def wrong_charges(load: Load, database: Path) -> list[str]:
    """How the charges of all chats differ from what their clients were sent."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT state, output_tokens FROM usage WHERE kind = 'chat'").fetchall()
    done = Counter(tokens for state, tokens in rows if state == "done")
    cut = [tokens for state, tokens in rows if state != "done"]
    # Some answers ended just before their client left.
    cut += (done - load.whole).elements()
    least, most = (sum(bound[side] for bound in load.cut) for side in (0, 1))
    wrong = [
        f"{count} answers of {tokens} tokens not charged" for tokens, count in (load.whole - done).items()
    ]
    if len(cut) != len(load.cut):
        wrong.append(f"{len(cut)} charges of {len(load.cut)} clients that left")
    if not least <= sum(cut) <= most:
        wrong.append(f"{sum(cut)} tokens charged to clients that left with {least} (at most {most})")
    return wrong
