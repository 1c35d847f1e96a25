"""Clients in numbers: a crowd that reads a byte a second beside streams that go on, and a crowd that leaves.

`make chaos` runs this at full length (500 readers, 1,000 that leave) and prints the figures; `make test`
less. Readers are plain sockets with the smallest receive buffer that the kernel gives. Engines are emulated
ones, with one of their own for the slow, so that what the others feel is the gateway's doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from gateway_process import GatewayProcess, gateway_process
from raw_client import RESET, Door, prompt

from groundswell.core.measure import percentile

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

FULL = 500  # Readers from which on this is the full measure.
MEMORY_MAX = 48_000_000
# Of a crowd that is smaller: its share, and what the first streams take that a gateway ever had.
MEMORY_FIRST, MEMORY_EACH = 8_000_000, 96_000
# Long, as names of models are: an event of 0.5 kB fills buffers at a pace that two cores can make.
SLOW = "slow-" + "x" * 230
OTHERS = 16
ENGINES = 5
HELD_BYTES_MAX = (16 << 10) + (32 << 10) + (8 << 10)  # In the gateway, in its kernel, in the reader's.
EVENT_BYTES_MIN = 500
FREE_S = 1.0  # p99 of the time until a slot is free after its client left; in the full measure only.


def settings(crowd: int, speed: float, stalled_s: float) -> str:
    """Room for the crowd on several engines: one would make a token for each of them in the same moment."""
    engine = f'kind = "emulated", model = "{SLOW}", slots = {crowd // ENGINES + 20}, speed = {speed}'
    nodes = "".join(f'[[nodes]]\nid = "slow-{n}"\nengines = [{{{engine}}}]\n' for n in range(ENGINES))
    return f"""
[limits]
stalled_s = {stalled_s}
{nodes}
[[nodes]]
id = "steady"
engines = [{{kind = "emulated", model = "steady", slots = 32, speed = 0.15}}]
"""


@dataclass
class Others:
    """Streams that are read as they come, and the time between their tokens."""

    door: Door
    gaps_s: list[float] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self.tasks = [asyncio.create_task(self._read(number)) for number in range(OTHERS)]

    async def _read(self, number: int) -> None:
        request = self.door.chat("steady", prompt(number), 100_000, stream=True, ignore_eos=True)
        answer = await self.door.send(request)
        try:
            await answer.head()
            last_s = None
            async for line in answer.reader:
                if line.startswith(b"data: "):
                    now_s = time.monotonic()
                    if last_s is not None:
                        self.gaps_s.append(now_s - last_s)
                    last_s = now_s
        finally:
            answer.close()
        raise ConnectionError("a stream of the others ended")

    async def during(self, seconds: float) -> list[float]:
        """The gaps of this time. Raises when one of the streams broke."""
        self.gaps_s.clear()
        await asyncio.sleep(seconds)
        return self.so_far()

    def so_far(self) -> list[float]:
        for task in self.tasks:
            if task.done():
                task.result()
        return list(self.gaps_s)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class SlowReaders:
    """A crowd that takes a byte a second each. ``cut_s``: how long after its start each was cut."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._poll = select.poll()
        self._readers: dict[int, tuple[socket.socket, float]] = {}
        self.cut_s: list[float] = []

    async def open(self, count: int, seconds: float) -> None:
        for number in range(count):
            one = ask(self._door, SLOW, number, receive_bytes=1)
            self._readers[one.fileno()] = one, time.monotonic()
            self._poll.register(one, 0)  # Errors only: a connection that was cut says so before all is read.
            await asyncio.sleep(seconds / count)

    async def read_until_cut(self, limit_s: float) -> None:
        """Read for as long as any is left."""
        until_s = time.monotonic() + limit_s
        while self._readers and time.monotonic() < until_s:
            began_s = time.monotonic()
            for number, (one, _) in enumerate(list(self._readers.values())):
                try:
                    one.recv(1, socket.MSG_DONTWAIT)
                except BlockingIOError:  # The kernel has room again, and the gateway does not know it yet.
                    pass
                except ConnectionResetError:
                    self._was_cut(one.fileno())
                if number % 10 == 9:  # Not all at once: that would delay what is measured beside.
                    await asyncio.sleep(0.8 * 10 / FULL)
            for fd, _ in self._poll.poll(0):
                self._was_cut(fd)
            await asyncio.sleep(max(0.0, began_s + 1 - time.monotonic()))

    def _was_cut(self, fd: int) -> None:
        one, since_s = self._readers.pop(fd)
        self.cut_s.append(time.monotonic() - since_s)
        self._poll.unregister(fd)
        one.close()

    def close(self) -> int:
        """How many were left."""
        for one, _ in self._readers.values():
            one.close()
        return len(self._readers)


def ask(door: Door, model: str, number: int, receive_bytes: int = 0) -> socket.socket:
    """A stream that is asked for, on a socket that nobody reads by itself."""
    where = urlsplit(door.url)
    one = socket.socket()
    if receive_bytes:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    one.connect((where.hostname, where.port))
    one.sendall(door.chat(model, prompt(number), 100_000, stream=True, ignore_eos=True))
    return one


@dataclass(frozen=True)
class State:
    """What a gateway holds."""

    memory: int
    works: int
    tasks: int
    connections: int
    files: int
    queued: int

    def left_behind(self, before: State) -> list[str]:
        names = ("works", "tasks", "connections", "files", "queued")
        return [name for name in names if getattr(self, name) > getattr(before, name)]


class Watched:
    """A gateway as it is seen from outside."""

    def __init__(self, gateway: GatewayProcess, client: httpx.AsyncClient) -> None:
        self._gateway = gateway
        self._engines = gateway.addresses(SLOW)
        self._process = psutil.Process(gateway.process.pid)
        self._client = client

    async def state(self) -> State:
        page = (await self._client.get("/metrics")).text
        value = {name: int(float(rest)) for name, rest in re.findall(r"^(\w+) (\S+)$", page, re.MULTILINE)}
        return State(
            self._process.memory_info().rss,
            value["groundswell_works_open"],
            value["groundswell_tasks"],
            value["groundswell_connections"],
            value["process_open_fds"],
            value["groundswell_queue_length"],
        )

    async def back_at(self, before: State, limit_s: float) -> State:
        """When nothing more is held than ``before``, or the time is over."""
        until_s = time.monotonic() + limit_s
        while (state := await self.state()).left_behind(before) and time.monotonic() < until_s:
            await asyncio.sleep(2)  # Sooner, the store is asked about our key beside: one task more.
        return state

    async def load(self) -> int:
        """How many streams the engines of the crowd themselves have."""
        while True:
            try:
                answers = await asyncio.gather(*(self._client.get(f"{one}/load") for one in self._engines))
                break
            except httpx.TransportError:  # Started anew: its node took it for hung on a machine that is busy.
                self._engines = self._gateway.addresses(SLOW)
                await asyncio.sleep(0.5)
        return sum(answer.json()["running"] + answer.json()["waiting"] for answer in answers)

    async def most_memory(self) -> int:
        """Look at its memory until cancelled."""
        most = 0
        try:
            while True:
                most = max(most, self._process.memory_info().rss)
                await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            return most


@asynccontextmanager
async def watched_gateway(folder: Path, text: str) -> AsyncIterator[tuple[Door, Watched]]:
    with gateway_process(folder, text) as gateway:
        async with httpx.AsyncClient(
            base_url=gateway.url, headers=gateway.headers, timeout=30, trust_env=False
        ) as client:
            gateway.wait_for_model(SLOW, ENGINES)
            gateway.wait_for_model("steady")
            yield Door(gateway.url, gateway.key), Watched(gateway, client)


async def test_a_crowd_of_slow_readers_is_cut_and_others_do_not_feel_it(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Who takes a byte a second gets no engine for hours, no memory to speak of, and slows nobody down."""
    count = pytestconfig.getoption("--readers")
    full = count >= FULL
    stalled_s, speed, alone_s = (30.0, 0.009, 20.0) if full else (3.0, 0.1, 2.0)
    async with watched_gateway(tmp_path, settings(count, speed, stalled_s)) as (door, watched):
        others, readers = Others(door), SlowReaders(door)
        others.start()
        before_s = await others.during(alone_s)
        before = await watched.state()
        memory = asyncio.create_task(watched.most_memory())
        others.gaps_s.clear()
        began_s = time.monotonic()
        await readers.open(count, count / 50)
        await readers.read_until_cut(300.0)
        took_s = time.monotonic() - began_s
        beside_s = others.so_far()
        memory.cancel()
        grown = await memory - before.memory
        after_s = await others.during(alone_s)
        after = await watched.back_at(before, 30.0)
        load = await watched.load()
        await others.stop()
        charged = await _charged(tmp_path / "data" / "groundswell.db", SLOW, count)
    left = readers.close()
    alone = percentile(before_s + after_s, 99)
    print(
        f"\n{count} readers at 1 byte/s for {took_s:.0f} s: memory {grown / 1e6:+.1f} MB, {left} not cut, ",
        end="",
    )
    print(f"cut after {min(readers.cut_s):.1f} to {max(readers.cut_s):.1f} s; ", end="")
    print(f"others' gap between tokens p99 {1000 * percentile(beside_s, 99):.1f} ms beside them, ", end="")
    print(f"{1000 * alone:.1f} ms alone ({percentile(beside_s, 99) / alone - 1:+.1%}); ", end="")
    print(f"charged {min(charged)} to {max(charged)} tokens each; left behind: {after.left_behind(before)}")
    assert not left
    assert min(readers.cut_s) >= stalled_s, "nobody is cut before the time is over"
    assert grown <= min(MEMORY_MAX, MEMORY_FIRST + MEMORY_EACH * count)
    assert load == 0, "the engine goes on for clients that were cut"
    assert not after.left_behind(before), (before, after)
    assert len(charged) == count
    assert min(charged) >= 1
    assert max(charged) <= HELD_BYTES_MAX // EVENT_BYTES_MIN, "more was charged than can have been sent"


async def test_a_crowd_that_leaves_at_once_frees_its_slots_and_leaves_nothing(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """A thousand tabs that close must not block a thousand slots, each for an answer that nobody reads."""
    count = pytestconfig.getoption("--disconnects")
    async with watched_gateway(tmp_path, settings(count, 0.02, 30.0)) as (door, watched):
        first = ask(door, SLOW, 0)  # What a gateway makes once is made.
        await asyncio.sleep(2)
        first.close()
        await asyncio.sleep(2)
        before = await watched.state()
        clients = []
        for number in range(count):
            clients.append(ask(door, SLOW, number))
            await asyncio.sleep(0.008)
        async with asyncio.timeout(60):
            while await watched.load() < count:
                await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        left_s, freed_s, ended_s = await _leave(clients, watched)
        after = await watched.back_at(before, 30.0)
        charged = await _charged(tmp_path / "data" / "groundswell.db", SLOW, count + 1)
    slots = _delays(left_s, freed_s)
    print(
        f"\n{count} clients left within {left_s[-1] - left_s[0]:.2f} s: slots at the engine free after ",
        end="",
    )
    print(
        f"p50 {percentile(slots, 50):.2f} s, p99 {percentile(slots, 99):.2f} s, max {max(slots):.2f} s; ",
        end="",
    )
    print(f"works ended {ended_s - left_s[-1]:+.2f} s after the last; ", end="")
    print(f"memory {(after.memory - before.memory) / 1e6:+.1f} MB; left behind: {after.left_behind(before)}")
    assert not after.left_behind(before), (before, after)
    assert len(charged) == count + 1, "each is charged once for what it got"
    if count >= FULL:
        assert percentile(slots, 99) <= FREE_S


async def _leave(
    clients: Sequence[socket.socket], watched: Watched
) -> tuple[list[float], list[tuple[float, int]], float]:
    """All go within a second, every other one with a reset. When each left, how many slots were taken when,
    and when the gateway had no work open any more."""
    seen: list[tuple[float, int]] = []

    async def look() -> None:
        while not seen or seen[-1][1]:
            load = await watched.load()
            seen.append((time.monotonic(), load))
            await asyncio.sleep(0.02)

    async def ended() -> float:
        while (await watched.state()).works:
            await asyncio.sleep(0.1)
        return time.monotonic()

    looking, ending = asyncio.create_task(look()), asyncio.create_task(ended())
    left_s = []
    began_s = time.monotonic()
    for number, one in enumerate(clients):
        if number % 2:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        one.close()
        left_s.append(time.monotonic())
        await asyncio.sleep(began_s + 0.9 * (number + 1) / len(clients) - time.monotonic())
    async with asyncio.timeout(60):
        await looking
        return left_s, seen, await ending


def _delays(left_s: Sequence[float], seen: Sequence[tuple[float, int]]) -> list[float]:
    """How long the slot of each that left was taken still: the first that left is the first that is freed."""
    delays, place = [], 0
    for number, at_s in enumerate(left_s, 1):
        while len(left_s) - seen[place][1] < number:
            place += 1
        delays.append(max(0.0, seen[place][0] - at_s))
    return delays


async def _charged(database: Path, model: str, works: int) -> list[int]:
    """The output tokens of each work of this model, once so many are settled: within a second or so."""
    until_s = time.monotonic() + 10
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        while True:
            rows = connection.execute("SELECT output_tokens FROM usage WHERE model = ?", (model,)).fetchall()
            if len(rows) >= works or time.monotonic() > until_s:
                return [tokens for (tokens,) in rows]
            await asyncio.sleep(0.1)
