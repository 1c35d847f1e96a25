"""The transcoder: ``groundswell serve transcode`` beside a node, and the adapter that speaks to it.

Protocol, on the loopback only. ``POST /v1/segments`` with the task as JSON in the header ``x-task`` and one
NUT file as the body is answered by a stream of parts, each one byte of kind, four bytes of length and as
many bytes: ``P`` progress (JSON), ``F`` a finished file, one per rung in the task's order, and last either
``D`` (done) or ``E`` (an error as JSON). Whoever hangs up stops the work: ffmpeg is killed at once. ``GET
/health`` tells slots and whether the ffmpeg at hand works; that is found out by encoding five frames.

The adapter counts pixels in the files that come back, never in what the engine says.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec

from groundswell.engines import server
from groundswell.media import encode, fmp4
from groundswell.media.encode import FFMPEG_VARIABLE, Task, ffmpeg_path
from groundswell.model.errors import BadRequest, GroundswellError, Overloaded, TooLarge, UpstreamError
from groundswell.model.messages import Fault
from groundswell.model.money import Price, Usage
from groundswell.model.node import Capability
from groundswell.model.work import Kind
from groundswell.ports import EngineInfo, Payload, Running, Sink

MODEL = "transcode"
SEGMENT_BYTES_MAX = 300 << 20
PART_BYTES_MAX = 1 << 30
PIECE_BYTES = 256 << 10
FOLDER_PREFIX = "groundswell-transcode-"
FOLDER_AGE_S = 10.0
SILENCE_S = 2 * encode.STALL_S  # After which the transcoder itself is taken as lost.
NO_PRICE = Price()
_HEAD = struct.Struct(">cI")


def part(kind: bytes, body: bytes) -> bytes:
    """One part of an answer."""
    return _HEAD.pack(kind, len(body)) + body


class PartReader:
    """Takes the bytes of an answer as they come, gives the parts that are complete.

    Raises ``UpstreamError`` for a part of an unknown kind or beyond ``PART_BYTES_MAX``.
    """

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._kept += data
        while len(self._kept) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._kept)
            if kind not in (b"P", b"F", b"D", b"E") or length > PART_BYTES_MAX:
                raise UpstreamError("The transcoder's answer cannot be read.", code="malformed_output")
            end = _HEAD.size + length
            if len(self._kept) < end:
                return
            yield kind, bytes(memoryview(self._kept)[_HEAD.size : end])
            del self._kept[:end]


# --- the server ---


class TranscodeServer:
    """The ASGI application of ``serve transcode``: at most ``slots`` segments at a time, refuses the next."""

    def __init__(self, slots: int, threads: int, folder: Path | None = None) -> None:
        self.slots, self.threads, self.running = slots, threads, 0
        self._folder = folder  # Where segments are worked on; None: the system's place for such files.
        self._works: bool | None = None

    async def __call__(self, scope: server.Scope, receive: server.Receive, send: server.Send) -> None:
        if scope["type"] != "http":
            return
        answer = _Answer(send)
        try:
            match scope["method"], scope["path"]:
                case "GET", "/health":
                    await answer.json(await self._health())
                case "POST", "/v1/segments":
                    await self._segment(scope, receive, answer)
                case _:
                    await answer.json({"error": {"message": "not served here"}}, 404)
        except GroundswellError as error:
            await answer.fail(error)
        except OSError:
            # A full disk, mostly: another node may have room.
            await answer.fail(
                UpstreamError("The transcoder cannot write its files.", code="transcode_failed")
            )

    async def _health(self) -> dict[str, Any]:
        if self._works is None:
            self._works = await encode.works()
        return {
            "status": "ok" if self._works else "no_encoder",
            "slots": self.slots,
            "running": self.running,
            "encoders": ["libx264", "aac"] if self._works else [],
        }

    async def _segment(self, scope: server.Scope, receive: server.Receive, answer: _Answer) -> None:
        task = _task(dict(scope["headers"]).get(b"x-task", b""))
        if self.running >= self.slots:
            raise Overloaded("All slots are taken.")
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        self.running += 1
        try:
            if not await _store(receive, folder / "in.nut"):
                return
            work = asyncio.ensure_future(self._work(task, folder, answer))
            gone = asyncio.ensure_future(_gone(receive))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
                work.cancel()
                await asyncio.wait({work, gone})
            if not work.cancelled():
                work.result()
        finally:
            self.running -= 1
            shutil.rmtree(folder, ignore_errors=True)

    async def _work(self, task: Task, folder: Path, answer: _Answer) -> None:
        """Encode, report progress at once and twice a second, then send the files."""
        told: asyncio.Queue[int | None] = asyncio.Queue()
        encoding = asyncio.ensure_future(encode.encode(task, folder, "in.nut", self.threads, told.put_nowait))
        encoding.add_done_callback(lambda _: told.put_nowait(None))
        try:
            done_ms: int | None = 0
            while done_ms is not None:
                await answer.part(b"P", json.dumps({"media_ms": done_ms}).encode())
                done_ms = await told.get()
            for output in await encoding:
                await answer.file(output)
            await answer.part(b"D", b"{}", last=True)
        finally:
            encoding.cancel()
            await asyncio.wait({encoding})


class _Answer:
    """The response to one request."""

    def __init__(self, send: server.Send) -> None:
        self._send = send
        self._started = False

    async def json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        await self._start(status, b"application/json", [(b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: GroundswellError) -> None:
        body = server.error_body(error)
        if self._started:
            await self.part(b"E", json.dumps(body).encode(), last=True)
        else:
            await self.json(body, error.status)

    async def part(self, kind: bytes, body: bytes, last: bool = False) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": part(kind, body), "more_body": not last})

    async def file(self, path: Path) -> None:
        await self._begin()
        with path.open("rb") as file:
            head = _HEAD.pack(b"F", os.fstat(file.fileno()).st_size)
            await self._send({"type": "http.response.body", "body": head, "more_body": True})
            while piece := file.read(PIECE_BYTES):
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _begin(self) -> None:
        if not self._started:
            await self._start(200, b"application/octet-stream", [])

    async def _start(self, status: int, content_type: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        headers = [(b"content-type", content_type), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def _task(header: bytes) -> Task:
    try:
        task = msgspec.json.decode(header, type=Task)
    except msgspec.DecodeError as error:
        raise BadRequest("The task cannot be read.") from error
    if task.end <= task.start or (task.kind == "video") != bool(task.rungs):
        raise BadRequest("The task contradicts itself.")
    if any(
        not 2 <= min(rung.width, rung.height) <= max(rung.width, rung.height) <= 8192 for rung in task.rungs
    ):
        raise BadRequest("A rung's size is outside of what is accepted.")
    return task


async def _store(receive: server.Receive, path: Path) -> bool:
    """Write the body to a file. False when the client went away."""
    size = 0
    with path.open("wb") as file:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            body = message.get("body", b"")
            size += len(body)
            if size > SEGMENT_BYTES_MAX:
                raise TooLarge(f"A segment is larger than {SEGMENT_BYTES_MAX} bytes.")
            file.write(body)
            if not message.get("more_body", False):
                return True


async def _gone(receive: server.Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A folder for this process, removed at its end, or by the next one after a kill: the lock in it goes
    with whoever holds it."""
    for lock in parent.glob(f"{FOLDER_PREFIX}*/lock"):
        with contextlib.suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that is just being made is not locked yet.
            if time.time() - lock.stat().st_mtime > FOLDER_AGE_S:
                shutil.rmtree(lock.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
    try:
        with (folder / "lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """Transcode segments until told to stop; the exit status."""
    about = "Segments of video through ffmpeg."
    parser = server.command_line("transcode", about, 1, "segments at once; others are refused")
    parser.add_argument("--threads", type=int, default=0, help="of each encoder; 0: what fits the cores")
    parser.add_argument("--ffmpeg", default="", help="path of ffmpeg; empty: the one of the package")
    options = parser.parse_args(argv)
    if options.ffmpeg:
        os.environ[FFMPEG_VARIABLE] = options.ffmpeg
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    slots = max(1, options.slots)
    # Each rung has an encoder of its own and they run side by side: four times one thread fill four cores.
    threads = options.threads or max(1, cores // (4 * slots))
    with own_folder(Path(tempfile.gettempdir())) as folder:
        app: Any = TranscodeServer(slots, threads, folder)  # Plain ASGI; bodies go to disk, not to memory.
        return server.serve(app, options.host, options.port)


# --- the adapter ---


class TranscodeEngine:
    """Speaks to one ``serve transcode`` by its URL. ``price`` is asked per million output pixels."""

    def __init__(self, engine_id: str, base_url: str, price: Price = NO_PRICE) -> None:
        import httpx

        self.engine_id = engine_id
        self._price = price
        self._client = httpx.AsyncClient(
            base_url=base_url,
            timeout=httpx.Timeout(10.0, read=SILENCE_S),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=8),
            trust_env=False,
        )
        self._attempts: set[_Attempt] = set()

    async def probe(self) -> EngineInfo:
        """See ``ports.Engine``."""
        import httpx

        try:
            answer = await self._client.get("/health", timeout=25.0)
            health = answer.raise_for_status().json()
            slots = int(health["slots"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise UpstreamError("The transcoder does not answer.") from error
        if health.get("status") != "ok":
            raise UpstreamError("The transcoder's ffmpeg cannot encode.", code="ffmpeg_unusable")
        capability = Capability(
            model=MODEL,
            engine_model=MODEL,
            kinds=frozenset({Kind.TRANSCODE}),
            fingerprint="h264-aac",
            price=self._price,
        )
        return EngineInfo(slots, (capability,), "transcode")

    def start(self, capability: Capability, payload: Payload, sink: Sink) -> Running:
        """See ``ports.Engine``; ``payload.body`` is a ``Task`` as JSON values, ``data`` its NUT file."""
        attempt = _Attempt(self._client, payload, sink, self._attempts.discard)
        self._attempts.add(attempt)
        return attempt

    async def close(self) -> None:
        """Stop what runs and drop the connections."""
        for attempt in list(self._attempts):
            attempt.cancel()
        await self._client.aclose()


class _Attempt:
    """One segment on its way through the transcoder."""

    def __init__(self, client: Any, payload: Payload, sink: Sink, forget: Any) -> None:
        self._client, self._payload, self._sink = client, payload, sink
        self._open_gate = asyncio.Event()
        self._open_gate.set()
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(lambda _: forget(self))

    def cancel(self) -> None:
        self._task.cancel()

    def pause(self) -> None:
        self._open_gate.clear()

    def resume(self) -> None:
        self._open_gate.set()

    async def _run(self) -> None:
        import httpx

        usage = Usage()
        fault: Fault | None = None
        error: GroundswellError | None = None
        try:
            usage = await self._exchange()
        except httpx.HTTPError:
            # The process died, or was never there: no fault of the segment.
            fault, error = Fault.LOST, UpstreamError("The transcoder was lost.")
        except BadRequest as wrong:
            fault, error = Fault.REJECTED, wrong
        except GroundswellError as broken:
            fault, error = Fault.BROKEN, broken
        except (msgspec.MsgspecError, ValueError):
            fault, error = Fault.BROKEN, UpstreamError("The transcoder's answer cannot be read.")
        self._sink.ended(usage, fault, error)

    async def _exchange(self) -> Usage:
        task = msgspec.convert(self._payload.body, Task)
        headers = {
            "x-task": msgspec.json.encode(task).decode(),
            "content-length": str(len(self._payload.data)),
        }
        body = _pieces(self._payload.data)
        reader, files, done = PartReader(), [], False
        async with self._client.stream("POST", "/v1/segments", content=body, headers=headers) as answer:
            if answer.status_code != 200:
                raise _refusal(answer.status_code, await answer.aread())
            async for data in answer.aiter_raw():
                await self._open_gate.wait()
                self._sink.output(data, 0)
                for kind, content in reader.feed(data):
                    if kind == b"F":
                        files.append(_frames(content))
                    elif kind == b"E":
                        raise _refusal(502, content)
                    done = done or kind == b"D"
        if not done:
            raise UpstreamError("The transcoder's answer ended too soon.", code="malformed_output")
        return _counted(task, files)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])


def _refusal(status: int, body: bytes) -> GroundswellError:
    """The engine's own error, in our tree; its message is one of ours and fit for a client."""
    message, code = "The transcoder failed.", None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = json.loads(body)["error"]
        message, code = str(error["message"])[:300], error.get("code")
    if status in (400, 413, 422):
        return BadRequest(message, code=code)
    return UpstreamError(message, code=code)


def _frames(content: bytes) -> int:
    return len(fmp4.samples(fmp4.split_init(content)[1]))


def _counted(task: Task, frames: list[int]) -> Usage:
    """Pixels as they came back. Raises ``UpstreamError`` when files or frames are missing."""
    wanted = [task.frames] * len(task.rungs) if task.kind == "video" else None
    if (wanted is not None and frames != wanted) or (wanted is None and len(frames) != 1):
        raise UpstreamError("A segment came back with frames missing.", code="frames_missing")
    return task.usage()


__all__ = ["MODEL", "PartReader", "TranscodeEngine", "TranscodeServer", "ffmpeg_path", "main"]

if __name__ == "__main__":
    raise SystemExit(main())
