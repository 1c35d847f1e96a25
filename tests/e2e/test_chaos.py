"""Broken on purpose: engines killed, stopped and hung in mid-stream; the gateway killed with accepted jobs.

`make chaos` runs this at full length (200 streams, 100 jobs) and prints the figures; `make test` less.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from gateway_process import GatewayProcess, gateway_process

from groundswell.config import Config, Gateway, LocalEngine, Node
from groundswell.core.measure import percentile
from groundswell.engines.transcode import ffmpeg_path
from groundswell.wiring import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
LLAMA_SERVER = Path(os.environ.get("LLAMA_SERVER", ROOT / ".llama" / "llama-server"))
SEED = 20261122
TOKENS = 120
# What a lane's engines can suffer. A child of a node that hangs with its connection open is a stopped one, or
# the emulated engine's own fault; both look the same from outside.
LANES = {"emulated": ("kill", "stop", "hang"), "builtin": ("kill", "stop"), "llama": ("kill", "stop")}
SHARES = {"emulated": 0.5, "builtin": 0.3, "llama": 0.2}
STALL_LIMIT_S = {"kill": 2.0, "stop": 5.0, "hang": 5.0}
PROMPTS = (
    "Explain how Groundswell works in detail",
    "Tell me a story about a fox",
    "Count from 1 to 50",
    "What is a gateway and what does it do?",
)


class LlamaServers:
    """Two real llama.cpp servers on one model file, restarted by hand when they were killed."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.ports = [_free_port(), _free_port()]
        self.processes = [self._start(port) for port in self.ports]

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        where = ("--host", "127.0.0.1", "--port", str(port))
        command = [LLAMA_SERVER, "-m", self.model, *where, "-c", "4096", "-np", "4", "--threads", "1"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def mend(self) -> None:
        """Start again what was killed, let go on what was stopped."""
        for place, process in enumerate(self.processes):
            if process.poll() is not None:
                self.processes[place] = self._start(self.ports[place])
            else:
                process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@dataclass
class Outcome:
    """One stream that was broken."""

    fault: str
    text: str
    stall_s: float
    tokens: int
    struck: bool


@dataclass
class Report:
    """What came of a lane's streams."""

    outcomes: list[Outcome] = field(default_factory=list)
    equal: int = 0
    broken: list[str] = field(default_factory=list)


@asynccontextmanager
async def network(folder: Path, continuation: bool = True) -> AsyncIterator[Service]:
    """A gateway and three nodes for each of two models; engines are processes of their own."""
    emulated = LocalEngine(kind="emulated", model="emulated", profile="h100-8b")
    nodes = [Node(id=f"emulated-{n}", engines=(emulated,)) for n in range(3)]
    nodes += [Node(id=f"builtin-{n}", engines=(LocalEngine(kind="builtin"),)) for n in range(3)]
    gateway = Gateway(port=0, continuation=continuation, drain_s=5.0)
    async with Service.running(Config(data=str(folder), gateway=gateway, nodes=tuple(nodes))) as service:
        assert not await service.ready(60)
        await _healthy(service, "emulated-", 3)
        await _healthy(service, "builtin-", 3)
        yield service


async def test_no_stream_breaks_whatever_happens_to_engines(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The promise that the project is named for: a pause, then the rest; nothing lost, nothing doubled."""
    streams = pytestconfig.getoption("--streams")
    llama = LlamaServers(_gguf(tmp_path)) if LLAMA_SERVER.exists() else None
    try:
        async with network(tmp_path / "data") as service, _client(service) as client:
            lanes = ["emulated", "builtin"]
            if llama is not None:
                await _add_llama(service, llama)
                lanes.append("llama")
            counts = {lane: max(2, round(streams * SHARES[lane])) for lane in lanes}
            reports = await asyncio.gather(
                *(_lane(service, client, lane, counts[lane], llama) for lane in lanes)
            )
    finally:
        if llama is not None:
            llama.close()
    _print(dict(zip(lanes, reports, strict=True)))
    assert llama is not None, f"no llama.cpp server at {LLAMA_SERVER}: run tests/llama/build.sh"
    assert not [text for report in reports for text in report.broken]
    assert reports[0].equal == len(reports[0].outcomes), "the emulated engine's text is exact"
    for fault, limit_s in STALL_LIMIT_S.items():
        stalls = [o.stall_s for report in reports for o in report.outcomes if o.fault == fault and o.struck]
        assert percentile(stalls, 99) <= limit_s, (fault, sorted(stalls)[-5:])
    struck = sum(outcome.struck for report in reports for outcome in report.outcomes)
    assert struck >= 0.8 * sum(counts.values()), "most faults must hit a stream that is still running"


async def test_without_continuation_the_same_faults_break_streams(tmp_path: Path) -> None:
    """The control run: above, streams came through because they were continued, not by luck."""
    async with network(tmp_path / "data", continuation=False) as service, _client(service) as client:
        report = await _lane(service, client, "emulated", 4, None)
    struck = sum(outcome.struck for outcome in report.outcomes)
    assert len(report.broken) + len(report.outcomes) == 4
    assert report.broken
    assert not struck, "a stream that was struck cannot have come through"
    assert all("stream_interrupted" in text for text in report.broken)


async def _lane(
    service: Service, client: openai.AsyncOpenAI, lane: str, count: int, llama: LlamaServers | None
) -> Report:
    """Streams one after the other, each broken once at a random token."""
    chance = random.Random(f"{SEED} {lane}")
    report = Report()
    references: dict[str, tuple[str, int]] = {}
    for number in range(count):
        request = _request(lane, chance.choice(PROMPTS), number % 2 == 1)
        name = repr(sorted(request.items(), key=str))
        if name not in references:
            reference = await _stream(client, request, None, 0)
            references[name] = (reference.text, reference.tokens)
        text, tokens = references[name]
        fault = LANES[lane][number % len(LANES[lane])]
        at = chance.randrange(1, max(2, int(tokens * 0.8)))
        struck: list[int] = []
        strike = _strike(service, lane, fault, llama, struck)
        if fault == "hang":
            await _arm(service, "hang", at)
        try:
            outcome = await _stream(client, request, strike, at)
        except openai.APIError as error:
            report.broken.append(f"{lane} {number} {fault} at {at}: {error} {error.body}")
        else:
            outcome.fault = fault
            report.outcomes.append(outcome)
            report.equal += outcome.text == text
            if lane == "emulated" and (outcome.text, outcome.tokens) != (text, tokens):
                report.broken.append(f"{lane} {number} {fault} at {at}: other text or usage")
            if not outcome.text:
                report.broken.append(f"{lane} {number}: nothing came")
        await _mend(service, lane, llama, struck)
    return report


def _request(lane: str, prompt: str, seeded: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"temperature": 0}
    # A seed cannot be carried into a foreign engine in mid-stream, so there only the temperature is raised.
    if seeded:
        options = {"temperature": 0.8} | ({"seed": 7} if lane != "llama" else {})
    return {"model": lane, "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS, **options}


async def _stream(client: openai.AsyncOpenAI, request: dict[str, Any], strike: Any, at: int) -> Outcome:
    """Read one stream to its end; strike when ``at`` pieces have come."""
    pieces: list[str] = []
    last_s: float | None = None
    stall_s, tokens, struck = 0.0, 0, False
    finishes: list[str] = []
    stream = await client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        now_s = time.monotonic()
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.finish_reason:
                finishes.append(choice.finish_reason)
            if choice.delta.content:
                if last_s is not None:
                    stall_s = max(stall_s, now_s - last_s)
                last_s = now_s
                pieces.append(choice.delta.content)
                if len(pieces) == at and strike is not None:
                    struck = await strike()
    assert finishes in (["stop"], ["length"]), finishes
    return Outcome("", "".join(pieces), stall_s, tokens, struck)


def _strike(service: Service, lane: str, fault: str, llama: LlamaServers | None, struck: list[int]) -> Any:
    """What breaks the engine that serves the lane's one stream; it says whether it found it at work, and
    notes in ``struck`` which process it broke."""

    async def strike() -> bool:
        # Reports come each two seconds; the relay itself knows now.
        serving = [
            node_id
            for entry in service.relay._open.values()
            for node_id in entry.nodes.values()
            if entry.work.model == lane
        ]
        if not serving:
            return False
        if lane == "llama":
            assert llama is not None
            place = next(i for i, port in enumerate(llama.ports) if serving[0].endswith(str(port)))
            pid = llama.processes[place].pid
        else:
            pid = service.fleet.pids()[serving[0]][lane]
        if fault == "hang":
            await _arm(service, "none", 0)  # The one that serves hangs now; no other shall.
        else:
            struck.append(pid)
            os.kill(pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        return True

    return strike


async def _arm(service: Service, kind: str, after_tokens: int) -> None:
    """Tell all emulated engines to hang after so many tokens, or not to any more."""
    body = {"kind": kind, "after_tokens": after_tokens, "streams": 1}
    async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
        for node_id, pids in service.fleet.pids().items():
            if not node_id.startswith("emulated") or "emulated" not in pids:
                continue
            # One that was struck before may end or be restarted at any moment.
            with contextlib.suppress(httpx.HTTPError, psutil.Error):
                for connection in psutil.Process(pids["emulated"]).net_connections("tcp4"):
                    if connection.status == psutil.CONN_LISTEN:
                        await client.post(f"http://127.0.0.1:{connection.laddr.port}/faults", json=body)


async def _mend(service: Service, lane: str, llama: LlamaServers | None, struck: list[int]) -> None:
    """Until two engines of the lane are healthy again, so that the next stream has somewhere to go. One that
    was stopped counts as healthy until its node has noticed and ended it, so that is waited for first."""
    if lane == "llama":
        assert llama is not None
        llama.mend()
        await _healthy(service, "127-0-0-1", 2)
        return
    async with asyncio.timeout(60):
        while any(pid in pids.values() for pid in struck for pids in service.fleet.pids().values()):
            await asyncio.sleep(0.05)
    await _healthy(service, f"{lane}-", 2)


async def _healthy(service: Service, prefix: str, count: int) -> None:
    async with asyncio.timeout(60):
        while True:
            up = [
                view.report.node_id
                for view in service.relay.nodes()
                for engine in view.report.engines
                if engine.healthy and view.report.node_id.startswith(prefix)
            ]
            if len(up) >= count:
                return
            await asyncio.sleep(0.05)


async def _add_llama(service: Service, llama: LlamaServers) -> None:
    for port in llama.ports:
        url = f"http://127.0.0.1:{port}"
        async with asyncio.timeout(60):
            while True:
                try:
                    await service.fleet.add({"url": url, "aliases": {"llama": str(llama.model)}})
                    break
                except Exception:
                    await asyncio.sleep(0.2)
    await _healthy(service, "127-0-0-1", 2)


@asynccontextmanager
async def _client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    token, _ = await service.keys.create("default", "chaos", ["inference"])
    async with openai.AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key=token, max_retries=0) as client:
        yield client


def _gguf(folder: Path) -> Path:
    path = folder / "builtin.gguf"
    subprocess.run([sys.executable, ROOT / "tests/llama/make_gguf.py", path], check=True)
    return path


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _print(reports: dict[str, Report]) -> None:
    """The figures, for whoever runs this with -s."""
    for lane, report in reports.items():
        total = len(report.outcomes) + len(report.broken)
        print(f"\n{lane}: {total} streams, {len(report.broken)} broken, {report.equal} byte-equal", end="")
    stalls: dict[str, list[float]] = defaultdict(list)
    for report in reports.values():
        for outcome in report.outcomes:
            if outcome.struck:
                stalls[outcome.fault].append(outcome.stall_s)
    for fault, found in sorted(stalls.items()):
        print(f"\n{fault}: {len(found)} struck, longest pause p50 {percentile(found, 50):.2f} s, ", end="")
        print(f"p99 {percentile(found, 99):.2f} s, max {max(found):.2f} s", end="")
    print()


# --- a gateway dies with accepted work ---

TRANSCODER = """
[[nodes]]
id = "a"
engines = [{kind = "transcode", slots = 2}]
"""


def test_a_killed_gateway_loses_no_accepted_transcode_and_charges_none_twice(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Accepted means committed: kill -9 in the middle, three times, and every job still ends, paid once."""
    count = pytestconfig.getoption("--jobs")
    clip = _clip(tmp_path)
    chance = random.Random(SEED)
    accepted: list[str] = []
    for life in range(4):
        with gateway_process(tmp_path, TRANSCODER) as gateway:
            gateway.wait_for_model("transcode")
            started_s = time.monotonic()
            if life == 0:
                accepted = _accept(gateway, clip, count)
            if life < 3:
                time.sleep(max(0.0, chance.uniform(0.5, 2.0) - (time.monotonic() - started_s)))
                gateway.kill()
                continue
            jobs = _wait_for(gateway, accepted, 30 + 6 * count)
            assert Counter(job["status"] for job in jobs) == {"done": count}
    charged = _usage(tmp_path / "data" / "groundswell.db")
    print(f"\n{count} transcodes accepted, gateway killed 3 times: {len(jobs)} done, {len(charged)} charges")
    assert len(charged) == len(set(charged)), "a work that is charged twice"
    segments = sum(len(job["segments"]) + (job["audio"] is not None) for job in jobs)
    assert len(charged) == segments
    assert sum(charged.values()) == sum(job["cost_nano"] for job in jobs)


def _clip(folder: Path) -> bytes:
    path = folder / "clip.mp4"
    picture, tone = "testsrc2=size=320x180:rate=25:duration=2", "sine=frequency=300:duration=2"
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", picture]
    command += ["-f", "lavfi", "-i", tone, "-c:v", "libx264", "-g", "25", "-c:a", "aac", str(path)]
    subprocess.run(command, check=True)
    return path.read_bytes()


def _accept(gateway: GatewayProcess, clip: bytes, count: int) -> list[str]:
    ids = []
    with gateway.client() as client:
        for number in range(count):
            answer = client.post(
                "/v1/transcodes",
                files={"file": ("clip.mp4", clip)},
                headers={"idempotency-key": f"clip-{number}"},
            )
            assert answer.status_code == 202, answer.text
            ids.append(answer.json()["id"])
    return ids


def _wait_for(gateway: GatewayProcess, ids: list[str], limit_s: float) -> list[dict[str, Any]]:
    deadline = time.monotonic() + limit_s
    with gateway.client() as client:
        while True:
            jobs = [client.get(f"/v1/transcodes/{one}").json() for one in ids]
            if all(job["status"] not in ("queued", "running") for job in jobs):
                return jobs
            assert time.monotonic() < deadline, Counter(job["status"] for job in jobs)
            time.sleep(0.5)


def _usage(database: Path) -> dict[str, int]:
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT work_id, cost_nano FROM usage").fetchall()
    assert len(rows) == len({work_id for work_id, _ in rows})
    return dict(rows)
