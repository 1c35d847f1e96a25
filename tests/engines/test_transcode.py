"""The transcoder as a process, and the adapter that speaks to it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from clips import clip
from groundswell.engines import transcode
from groundswell.engines.transcode import FOLDER_PREFIX, PartReader, TranscodeEngine, own_folder, part
from groundswell.media.encode import Task
from groundswell.media.ladder import Rung
from groundswell.media.probe import split
from groundswell.model.errors import GroundswellError, UpstreamError
from groundswell.model.messages import Fault
from groundswell.model.money import Price, Usage
from groundswell.model.work import Kind
from groundswell.ports import Payload

RUNGS = (Rung("90p", 160, 90, 28, 300), Rung("64p", 114, 64, 28, 200))
LONG = tuple(Rung(f"{n}p", 1280, 720, 20, 9000) for n in range(1, 5))


class Heard:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.data = b""
        self.first = asyncio.Event()
        self.end: asyncio.Future[tuple[Usage, Fault | None, GroundswellError | None]]
        self.end = asyncio.get_running_loop().create_future()

    def output(self, data: bytes, tokens: int, resumable: bool = True) -> None:
        assert tokens == 0
        self.data += data
        self.first.set()

    def ended(self, usage: Usage, fault: Fault | None = None, error: GroundswellError | None = None) -> None:
        self.end.set_result((usage, fault, error))


@pytest.fixture
async def process() -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "groundswell.engines.transcode", "--port", "0", "--slots", "1",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    yield child
    if child.returncode is None:
        child.kill()
    await child.wait()
    child._transport.close()  # type: ignore[attr-defined]


@pytest.fixture
async def url(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    found = re.fullmatch(r"listening (127\.0\.0\.1:\d+)\n", line)
    assert found is not None, line
    return f"http://{found[1]}"


@pytest.fixture
async def engine(url: str) -> AsyncIterator[TranscodeEngine]:
    engine = TranscodeEngine("transcode", url, Price(pixel_nano=150))
    yield engine
    await engine.close()


async def payload(
    folder: Path, rungs: tuple[Rung, ...] = RUNGS, target_s: float = 1.5
) -> tuple[Payload, Task]:
    _, cut = await split(clip("plain.mp4"), folder, target_s)
    one = cut.chunks[0]
    task = Task(kind="video", start=one.start, end=one.end, frames=one.frames, rate=cut.rate, rungs=rungs)
    return Payload(Kind.TRANSCODE, msgspec.to_builtins(task), (folder / one.file).read_bytes()), task


def start(engine: TranscodeEngine, info: object, given: Payload) -> tuple[Heard, object]:
    heard = Heard()
    return heard, engine.start(info.capabilities[0], given, heard)  # type: ignore[attr-defined]


async def test_a_segment_comes_back_in_every_rung_and_its_pixels_are_counted(
    engine: TranscodeEngine, tmp_path: Path
) -> None:
    """Life signs, one file per rung, and a bill for what really came."""
    given, task = await payload(tmp_path)
    info = await engine.probe()
    assert (info.slots, info.capabilities[0].kinds) == (1, {Kind.TRANSCODE})
    heard, _ = start(engine, info, given)
    usage, fault, error = await heard.end
    kinds = [kind for kind, _ in PartReader().feed(heard.data)]
    assert (fault, error) == (None, None)
    assert (kinds[0], kinds.count(b"F"), kinds[-1]) == (b"P", 2, b"D")
    assert usage == Usage(pixels=(160 * 90 + 114 * 64) * task.frames, media_ms=2000)


async def test_cancelling_ends_ffmpeg_within_a_second(
    engine: TranscodeEngine, process: asyncio.subprocess.Process, tmp_path: Path
) -> None:
    """The slot is free for the next one, and no process is left over."""
    given, _ = await payload(tmp_path, LONG, 30)
    info = await engine.probe()
    heard, running = start(engine, info, given)
    await heard.first.wait()
    while not ffmpegs(process.pid):
        await asyncio.sleep(0.02)
    began = time.monotonic()
    running.cancel()  # type: ignore[attr-defined]
    while ffmpegs(process.pid):
        await asyncio.sleep(0.02)
    assert time.monotonic() - began < 1
    assert not heard.end.done()
    small, _ = await payload(tmp_path)
    again, _ = start(engine, info, small)
    assert (await again.end)[1] is None


def ffmpegs(pid: int) -> list[psutil.Process]:
    return [one for one in psutil.Process(pid).children(recursive=True) if "ffmpeg" in one.name()]


async def test_nothing_outlives_a_killed_transcoder(
    engine: TranscodeEngine, process: asyncio.subprocess.Process, tmp_path: Path
) -> None:
    """A node that loses its engine restarts it; an orphan would eat the machine beside the new one."""
    given, _ = await payload(tmp_path, LONG, 30)
    heard, _ = start(engine, await engine.probe(), given)
    while not (left := ffmpegs(process.pid)):
        await asyncio.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    _, fault, _ = await heard.end
    assert fault is Fault.LOST
    _, alive = psutil.wait_procs(left, timeout=2)
    assert not alive


async def test_a_transcoder_that_says_nothing_is_taken_as_lost(
    url: str, process: asyncio.subprocess.Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process keeps its connection open; only its silence tells."""
    monkeypatch.setattr(transcode, "SILENCE_S", 2.0)
    engine = TranscodeEngine("transcode", url)
    given, _ = await payload(tmp_path, LONG, 30)
    heard, _ = start(engine, await engine.probe(), given)
    await heard.first.wait()
    os.kill(process.pid, signal.SIGSTOP)
    _, fault, _ = await heard.end
    assert fault is Fault.LOST
    await engine.close()


async def test_a_transcoder_without_room_says_so_and_keeps_its_slots(tmp_path: Path) -> None:
    """A full disk is no defect of the file, and one that is empty again is as good as before."""
    said: list[dict[str, object]] = []
    app = transcode.TranscodeServer(1, 1, tmp_path / "gone")
    task = b'{"kind":"audio","start":0,"end":9}'
    scope = {"type": "http", "method": "POST", "path": "/v1/segments", "headers": [(b"x-task", task)]}

    async def send(message: dict[str, object]) -> None:
        said.append(message)

    await app(scope, None, send)  # type: ignore[arg-type]
    assert said[0]["status"] == 502
    assert b"cannot write" in said[1]["body"]  # type: ignore[operator]
    assert app.running == 0


async def test_a_damaged_segment_is_a_broken_attempt_that_says_why(
    engine: TranscodeEngine, tmp_path: Path
) -> None:
    """Another node may try; the process lives on."""
    given, _ = await payload(tmp_path)
    info = await engine.probe()
    given.data = given.data[: len(given.data) // 2]
    heard, _ = start(engine, info, given)
    usage, fault, error = await heard.end
    assert (usage, fault) == (Usage(), Fault.BROKEN)
    assert isinstance(error, UpstreamError)
    assert "/" not in error.message
    assert (await engine.probe()).slots == 1


async def test_a_task_that_makes_no_sense_is_rejected(engine: TranscodeEngine, tmp_path: Path) -> None:
    """It would fail everywhere, so nobody else is asked."""
    given, task = await payload(tmp_path)
    info = await engine.probe()
    given.body = msgspec.to_builtins(msgspec.structs.replace(task, end=task.start))
    heard, _ = start(engine, info, given)
    assert (await heard.end)[1] is Fault.REJECTED


async def test_a_full_transcoder_refuses(engine: TranscodeEngine, url: str, tmp_path: Path) -> None:
    """Slots are a promise about the machine."""
    given, _ = await payload(tmp_path, LONG, 30)
    info = await engine.probe()
    heard, running = start(engine, info, given)
    await heard.first.wait()
    async with httpx.AsyncClient() as client:
        task = msgspec.json.encode(given.body).decode()
        answer = await client.post(f"{url}/v1/segments", headers={"x-task": task}, content=b"x")
    assert answer.status_code == 503
    running.cancel()  # type: ignore[attr-defined]


async def test_an_engine_that_is_not_there_is_not_ready() -> None:
    """A probe tells the node so."""
    engine = TranscodeEngine("transcode", "http://127.0.0.1:9")
    with pytest.raises(UpstreamError):
        await engine.probe()
    await engine.close()


def test_parts_are_whole_whatever_the_network_cuts() -> None:
    """TCP splits where it likes."""
    data = part(b"P", b"{}") + part(b"F", bytes(1000)) + part(b"D", b"")
    for step in (1, 3, 7, 500, 5000):
        reader = PartReader()
        found = [one for at in range(0, len(data), step) for one in reader.feed(data[at : at + step])]
        assert found == [(b"P", b"{}"), (b"F", bytes(1000)), (b"D", b"")]


@pytest.mark.parametrize("data", [b"X\0\0\0\0", b"F\xff\xff\xff\xff"])
def test_an_answer_of_another_kind_is_refused(data: bytes) -> None:
    """Four bytes of length must not make the gateway wait for gigabytes."""
    with pytest.raises(UpstreamError):
        list(PartReader().feed(data))


def test_what_a_killed_transcoder_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    """Each kill leaves a segment and its renditions behind: a crash loop would fill the disk."""
    for name in ("dead", "young"):
        (tmp_path / f"{FOLDER_PREFIX}{name}").mkdir()
        (tmp_path / f"{FOLDER_PREFIX}{name}" / "lock").touch()
    long_ago = (time.time() - 60,) * 2
    os.utime(tmp_path / f"{FOLDER_PREFIX}dead" / "lock", long_ago)
    with own_folder(tmp_path) as alive:
        os.utime(alive / "lock", long_ago)
        with own_folder(tmp_path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([alive, other, tmp_path / f"{FOLDER_PREFIX}young"])
    assert list(tmp_path.iterdir()) == [tmp_path / f"{FOLDER_PREFIX}young"]
