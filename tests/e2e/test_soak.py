"""Long runs: a gateway at 60 % of its capacity while its engines die every 20 seconds.

`make soak` runs an hour and prints a line every 30 s; `make test` three minutes. Samples are written to
var/soak.csv. Ctrl-C ends the load early, and what was seen so far is judged.
"""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import median

import httpx
import psutil
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
SLOPE_SAMPLES_MAX = 300  # Spread over the run; all pairs of them are looked at.
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
    """What can be seen of a gateway from outside. Bytes, counts, seconds since the beginning.

    ``memory`` is the gateway's own; what it shares with others (the code of libraries) would make growth look
    smaller than it is."""

    at_s: float
    memory: int
    resident: int
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
            memory=psutil.Process(self.gateway.process.pid).memory_full_info().uss,
            resident=int(value["process_resident_memory_bytes"]),
            tasks=int(value["groundswell_tasks"]),
            connections=int(value["groundswell_connections"]),
            files=int(value["process_open_fds"]),
            works_open=int(value["groundswell_works_open"]),
            queued=int(value["groundswell_queue_length"]),
            database=size(data / "groundswell.db"),
            wal=size(data / "groundswell.db-wal"),
            results=size(*(data / "jobs").glob("job_*/[!sw]*")),
            scratch=size(*scratch(data)),
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


def scratch(data: Path) -> list[Path]:
    """Where uploads lie, and the sources and segments of jobs."""
    return [data / "blobs", *(data / "jobs").glob("job_*/[sw]o*")]


def said(sample: Sample) -> str:
    return (
        f"{sample.at_s:6.0f} s: {sample.memory / 2**20:.1f} MiB ({sample.resident / 2**20:.1f} resident), "
        f"{sample.tasks} tasks, {sample.files} files, "
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
    """By which share memory grew over these samples: on the line with the median slope of all their pairs
    (Theil and Sen), which neither the peak of an upload nor a pause of the machine can tilt."""
    some = samples[:: -(-len(samples) // SLOPE_SAMPLES_MAX)]
    slope = median((b.memory - a.memory) / (b.at_s - a.at_s) for a, b in itertools.combinations(some, 2))
    first = median(one.memory - slope * (one.at_s - samples[0].at_s) for one in some)
    return slope * (samples[-1].at_s - samples[0].at_s) / first


def faults(soak: Soak, before: Sample, after: Sample, settled: Sequence[Sample]) -> list[str]:
    """What was not as it must be, each with what was seen."""
    samples, rows, data = soak.samples, after.ended - before.ended, soak.gateway.folder / "data"
    behind, grown = left(before, after), growth(settled)
    stray = [str(path) for path in scratch(data) if size(path)]
    most_wal, most_results = max(one.wal for one in samples), max(one.results for one in samples)
    database = after.database + after.wal - before.database
    by_time = [f"{one.memory / 2**20:.1f}" for one in settled[:: -(-len(settled) // 25)]]
    checks = [
        (not soak.load.broken, f"{len(soak.load.broken)} works broken: {soak.load.broken[:10]}"),
        (not behind, f"left behind: {behind}\n  before {said(before)}\n  after {said(after)}"),
        (
            grown <= SLOPE_MAX,
            f"memory grew by {100 * grown:.2f} % (at most {100 * SLOPE_MAX:.0f} %): {' '.join(by_time)} MiB",
        ),
        (most_wal <= WAL_BYTES_MAX, f"the WAL had {most_wal} bytes (at most {WAL_BYTES_MAX})"),
        (most_results <= RESULT_BYTES_MAX, f"results had {most_results} bytes (at most {RESULT_BYTES_MAX})"),
        (after.scratch == 0, f"{after.scratch} bytes of ended jobs that are no results: {stray[:10]}"),
        (
            database <= WAL_BYTES_MAX + rows * USAGE_ROW_BYTES_MAX,
            f"the database and its WAL grew by {database} bytes in {rows} works",
        ),
    ]
    return [seen for is_so, seen in checks if not is_so]


def errors_in(log: Path) -> list[str]:
    """Lines of the gateway's log that tell of a defect, and those that are no log lines: what Python itself
    wrote, such as a traceback."""
    found = []
    for line in log.read_text().splitlines():
        try:
            is_fine = json.loads(line)["level"] not in ("error", "critical")
        except (ValueError, TypeError, KeyError):
            is_fine = False
        found += [] if is_fine else [line[:1000]]
    return found


def test_growth_is_seen_through_peaks_and_pauses() -> None:
    """A judge that a short peak convinces, or that overlooks a slow leak, is of no use in an hour."""
    now = Sample(*([0] * len(fields(Sample))))
    steady = [replace(now, at_s=2.0 * at, memory=70_000_000) for at in range(1500)]
    leaking = [replace(one, memory=one.memory + int(1200 * one.at_s)) for one in steady]
    assert growth(steady) == 0
    assert growth(leaking) == pytest.approx(3 * 1200 / 70_000, rel=0.01)
    peaks = [replace(one, memory=2 * one.memory) if at > 1350 else one for at, one in enumerate(leaking)]
    assert growth(peaks) == pytest.approx(3 * 1200 / 70_000, rel=0.3)


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
    print(f"from {settled[0].at_s:.0f} s to {settled[-1].at_s:.0f} s memory grew by ", end="")
    print(f"{100 * grown:+.2f} %, ", end="")
    print(f"most {most / 2**20:.1f} MiB; left behind: {left(before, after) or 'nothing'}; ", end="")
    print(f"{soak.load.whole.total() + len(soak.load.cut)} charges, wrong: {wrong or 'none'}")
    found = faults(soak, before, after, settled)
    found += [f"charges: {wrong}"] if wrong else []
    errors = errors_in(tmp_path / "log.jsonl")
    found += [f"{len(errors)} errors in the log: {errors[:5]}"] if errors else []
    assert not found, "\n".join(found)
