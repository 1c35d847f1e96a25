"""Long runs: a gateway at 60 % of its capacity while its engines die every 20 seconds.

`make soak` runs an hour and prints a line every 30 s; `make test` three minutes. Samples are written to
var/soak.csv. Ctrl-C ends the load early, and what was seen so far is judged.
"""

from __future__ import annotations

import asyncio
import csv
import itertools
import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import httpx
import pytest
from gateway_process import GatewayProcess, gateway_process
from raw_client import Door
from soak_load import EMBEDDER, MODEL, Load, wrong_charges

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2 * 3600)]

ENGINES, SLOTS = 3, 4
SHARE = 0.6
KILL_EVERY_S = 20.0
TRANSCODE_EVERY_S = 40.0
SAMPLE_EVERY_S = 2.0
SAY_EVERY_S = 30.0
SETTLING_S = 600.0  # Not judged: caches, pools and tables fill. In a short run: its first third.
DRAIN_S = 90.0
SLOPE_MAX = 0.05
WAL_BYTES_MAX = 16 << 20  # SQLite starts its log anew at 4 MiB; a reader may hold it for a while.
USAGE_ROW_BYTES_MAX = 1024
RESULT_BYTES_MAX = 64 << 20

# Blobs are kept shortly, so that an hour shows whether they go. A quarter of the real speed: what is measured
# here is what stays, not how fast it goes.
SETTINGS = """
[limits]
blob_keep_s = 120
[video]
segment_s = 2
[[nodes]]
id = "video"
engines = [{kind = "transcode", slots = 1}, {kind = "embeddings"}]
[[nodes]]
id = "embedder"
engines = [{kind = "embeddings"}]
""" + "".join(
    f"""
[[nodes]]
id = "n{number}"
engines = [{{kind = "emulated", model = "{MODEL}", slots = {SLOTS}, speed = 0.25}}]
"""
    for number in range(ENGINES)
)


@dataclass(frozen=True)
class Sample:
    """What can be seen of a gateway from outside. Bytes, counts, seconds since the beginning."""

    at_s: float
    memory: int
    tasks: int
    connections: int
    files: int
    works_open: int
    queued: int
    database: int
    wal: int
    results: int
    scratch: int
    ended: int
    broken: int
    killed: int


@dataclass
class Soak:
    """One run and what it saw."""

    gateway: GatewayProcess
    load: Load
    samples: list[Sample] = field(default_factory=list)
    killed: int = 0
    capacity: float = 0.0
    began_s: float = field(default_factory=time.monotonic)

    async def run(self, seconds: float, path: Path) -> tuple[Sample, Sample]:
        """Baseline, capacity, load, drain: the samples before and after."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        async with httpx.AsyncClient(
            base_url=self.gateway.url, headers=self.gateway.headers, timeout=30, trust_env=False
        ) as client:
            await asyncio.gather(
                *(self.load.start(kind) for kind in ("stream", "whole", "embed", "transcode"))
            )
            before = await self._drained(client)
            self.capacity = await self.load.saturate(ENGINES * SLOTS, min(60.0, seconds / 12))
            print(f"\ncapacity {self.capacity:.2f} requests/s; load {SHARE * self.capacity:.2f}", flush=True)
            self.began_s = time.monotonic()
            until_s = asyncio.get_running_loop().time() + seconds
            beside = [
                asyncio.create_task(one)
                for one in (self._kill(), self._transcode(), self._watch(client, path))
            ]
            await self.load.pace(SHARE * self.capacity, until_s, stop)
            for task in beside:
                task.cancel()
            ends = await asyncio.gather(*beside, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
            if self.load.running:
                await asyncio.wait(self.load.running)
            after = await self._drained(client, before)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        return before, after

    async def _kill(self) -> None:
        """kill -9 one engine after the other; the one for video once in a while."""
        for number in itertools.count(1):
            await asyncio.sleep(KILL_EVERY_S)
            kind = {0: "transcode", 1: "embeddings"}.get(number % 6, "emulated")
            engines = self.gateway.engines(kind)
            if engines:
                self.load.chance.choice(engines).kill()
                self.killed += 1

    async def _transcode(self) -> None:
        while True:
            self.load.start("transcode")
            await asyncio.sleep(TRANSCODE_EVERY_S)

    async def _watch(self, client: httpx.AsyncClient, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        said_s = 0.0
        with path.open("w", newline="") as file:
            rows = csv.DictWriter(file, [one.name for one in fields(Sample)])
            rows.writeheader()
            while True:
                sample = await self._sample(client)
                self.samples.append(sample)
                rows.writerow(asdict(sample))
                if sample.at_s >= said_s:
                    said_s += SAY_EVERY_S
                    file.flush()
                    print(f"{said(sample)}; {dict(self.load.ended)}", flush=True)
                await asyncio.sleep(SAMPLE_EVERY_S)

    async def _sample(self, client: httpx.AsyncClient) -> Sample:
        page = (await client.get("/metrics")).text
        value = {name: float(rest) for name, rest in re.findall(r"^(\w+) (\S+)$", page, re.MULTILINE)}
        data = self.gateway.folder / "data"
        return Sample(
            at_s=round(time.monotonic() - self.began_s, 1),
            memory=int(value["process_resident_memory_bytes"]),
            tasks=int(value["groundswell_tasks"]),
            connections=int(value["groundswell_connections"]),
            files=int(value["process_open_fds"]),
            works_open=int(value["groundswell_works_open"]),
            queued=int(value["groundswell_queue_length"]),
            database=size(data / "groundswell.db"),
            wal=size(data / "groundswell.db-wal"),
            results=size(*(data / "jobs").glob("job_*/[!sw]*")),
            scratch=size(data / "blobs", *(data / "jobs").glob("job_*/[sw]o*")),
            ended=self.load.ended.total(),
            broken=len(self.load.broken),
            killed=self.killed,
        )

    async def _drained(self, client: httpx.AsyncClient, before: Sample | None = None) -> Sample:
        """When all has ended, and connections that are kept for a while are closed. After ``before``, as soon
        as all is back where it was then, and at the latest after ``DRAIN_S``."""
        deadline_s = time.monotonic() + DRAIN_S
        last, same = await self._sample(client), 0
        while time.monotonic() < deadline_s:
            await asyncio.sleep(SAMPLE_EVERY_S)
            this = await self._sample(client)
            same = 0 if left(last, this) or left(this, last) else same + 1
            last = this
            if last.works_open == 0 and (same >= 5 if before is None else not left(before, last)):
                break
        return last


def size(*paths: Path) -> int:
    """Bytes of these files and of all that is in these folders."""
    total = 0
    for file in itertools.chain(paths, *(path.rglob("*") for path in paths)):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # Removed in between.
            continue
    return total


def said(sample: Sample) -> str:
    return (
        f"{sample.at_s:6.0f} s: {sample.memory / 2**20:.1f} MiB, {sample.tasks} tasks, {sample.files} files, "
        f"{sample.works_open} works, {sample.ended} ended, {sample.broken} broken, {sample.killed} killed, "
        f"database {sample.database / 2**20:.1f} MiB, WAL {sample.wal / 2**20:.1f}, "
        f"results {sample.results / 2**20:.1f}, scratch {sample.scratch / 2**20:.1f}"
    )


def left(before: Sample, after: Sample) -> dict[str, int]:
    """What did not come back to where it was."""
    more = {
        name: getattr(after, name) - getattr(before, name)
        for name in ("tasks", "files", "connections", "works_open")
    }
    return {name: count for name, count in more.items() if count > 0}


def growth(samples: Sequence[Sample]) -> float:
    """By which share memory grew over these samples, on the line that fits them best."""
    count = len(samples)
    middle_s = sum(one.at_s for one in samples) / count
    mean = sum(one.memory for one in samples) / count
    spread = sum((one.at_s - middle_s) ** 2 for one in samples)
    slope = sum((one.at_s - middle_s) * (one.memory - mean) for one in samples) / spread
    first = mean + slope * (samples[0].at_s - middle_s)
    return slope * (samples[-1].at_s - samples[0].at_s) / first


async def test_nothing_grows_and_nothing_breaks_in_a_long_run(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """A service that must be restarted each week is none. Engines die all the while; no client sees it."""
    seconds = 60.0 * pytestconfig.getoption("--soak-minutes")
    chance = random.Random(pytestconfig.getoption("--seed"))
    with gateway_process(tmp_path, SETTINGS, apart=True) as gateway:
        gateway.wait_for_model(MODEL, ENGINES)
        gateway.wait_for_model(EMBEDDER, 2)
        gateway.wait_for_model("transcode")
        soak = Soak(gateway, Load(Door(gateway.url, gateway.key), chance))
        before, after = await soak.run(seconds, pytestconfig.rootpath / "var" / "soak.csv")
        database = tmp_path / "data" / "groundswell.db"
        await asyncio.sleep(2)  # The last charges are written within a second.
        wrong = wrong_charges(soak.load, database)
    settled = [one for one in soak.samples if one.at_s >= min(SETTLING_S, seconds / 3)]
    grown, most = growth(settled), max(one.memory for one in soak.samples)
    print(f"{said(after)}; {dict(soak.load.ended)}")
    print(
        f"from {settled[0].at_s:.0f} s to {settled[-1].at_s:.0f} s memory grew by {100 * grown:+.2f} %, ",
        end="",
    )
    print(f"most {most / 2**20:.1f} MiB; left behind: {left(before, after) or 'nothing'}; ", end="")
    print(f"{soak.load.whole.total() + len(soak.load.cut)} charges, wrong: {wrong or 'none'}")
    assert not soak.load.broken, soak.load.broken[:10]
    assert not wrong, wrong[:10]
    assert not left(before, after), (before, after)
    assert grown <= SLOPE_MAX, [one.memory >> 10 for one in settled[:: max(1, len(settled) // 20)]]
    assert max(one.wal for one in soak.samples) <= WAL_BYTES_MAX
    assert max(one.results for one in soak.samples) <= RESULT_BYTES_MAX
    assert after.scratch == 0, "a job that has ended leaves its results, and nothing else"
    rows = after.ended - before.ended
    assert after.database + after.wal - before.database <= WAL_BYTES_MAX + rows * USAGE_ROW_BYTES_MAX
    log = (tmp_path / "log.jsonl").read_text()
    assert not [line for line in log.splitlines() if '"level": "error"' in line][:5]
