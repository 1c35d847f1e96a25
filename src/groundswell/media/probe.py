"""Looking at a user's file before anything is promised, and cutting it up: both in a confined child."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from groundswell.media.demux import Answer, Ask, MediaInfo, Split
from groundswell.model.errors import Unprocessable


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What a source may be. 33,177,600 pixels is 8K; four hours hold any film.

    ``segment_bytes`` bounds one segment and the whole sound track, both of which travel as one message;
    ``segment_s`` bounds what one engine has to do at a stretch. ``memory_bytes`` is enough for one picture of
    8K at 10 bits, and for the index of four hours.
    """

    pixels: int = 33_177_600
    streams: int = 16
    duration_s: float = 4 * 3600.0
    segment_bytes: int = 256 << 20
    segment_s: float = 600.0
    memory_bytes: int = 480 << 20
    probe_wall_s: float = 30.0
    split_wall_s: float = 900.0


LIMITS = MediaLimits()
SPLIT_S_MIN = 240.0
READ_BYTES_PER_S = 1e6
ANSWER_BYTES_MAX = 16 << 20  # 14,400 segments of a second take 2 MB.


def sniff(head: bytes) -> str:
    """The demuxer for a file that begins like this (376 bytes are enough), by our own list.

    The demuxer is then named to libavformat, so that a playlist called ``film.mp4`` is never opened as one.
    Raises ``Unprocessable``.
    """
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"FLV\x01"):
        return "flv"
    if head.startswith(b"OggS"):
        return "ogg"
    if any(
        len(head) > at + step and head[at] == head[at + step] == 0x47 for at, step in ((0, 188), (4, 192))
    ):
        return "mpegts"
    raise rejected(
        "The file is not a video of an accepted format (MP4, MOV, MKV, WebM, MPEG-TS, AVI, FLV, OGG)."
    )


async def probe(path: Path, limits: MediaLimits = LIMITS) -> MediaInfo:
    """What the file holds. Raises ``Unprocessable`` for whatever is not a video that we take."""
    answer = await _ask(path, None, 4.0, limits)
    if answer.info is None:
        raise rejected(answer.rejected or "The file cannot be read.")
    return answer.info


async def split(
    path: Path, folder: Path, target_s: float = 4.0, limits: MediaLimits = LIMITS
) -> tuple[MediaInfo, Split]:
    """Cut the file into NUT segments in ``folder``, which must exist. Raises ``Unprocessable``, and
    ``OSError`` (``ENOSPC``) when the disk is full."""
    answer = await _ask(path, folder, target_s, limits)
    if answer.no_room:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if answer.info is None or answer.split is None:
        raise rejected(answer.rejected or "The file cannot be read.")
    return answer.info, answer.split


async def _ask(path: Path, folder: Path | None, target_s: float, limits: MediaLimits) -> Answer:
    with path.open("rb") as file:
        format_name = sniff(file.read(400))
        size = os.fstat(file.fileno()).st_size
    # Reading is fast; a small file that takes long was made to.
    split_s = min(limits.split_wall_s, SPLIT_S_MIN + size / READ_BYTES_PER_S)
    wall_s = limits.probe_wall_s if folder is None else split_s
    ask = Ask(
        path=str(path),
        format=format_name,
        parent_pid=os.getpid(),
        memory_bytes=limits.memory_bytes,
        cpu_s=int(wall_s),
        # Overlaps of open GOPs make the parts a little larger than the whole.
        file_bytes=0 if folder is None else 2 * size + (1 << 20),
        pixels_max=limits.pixels,
        streams_max=limits.streams,
        duration_max_s=limits.duration_s,
        segment_bytes_max=limits.segment_bytes,
        segment_max_s=limits.segment_s,
        folder="" if folder is None else str(folder),
        target_s=target_s,
    )
    return await _run(ask, wall_s)


async def _run(ask: Ask, wall_s: float) -> Answer:
    # Without HOME, Python asks the system's directory of users for it, over a socket.
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-B", "-m", "groundswell.media.demux",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True, env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8", "HOME": "/"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(wall_s):
            return msgspec.json.decode(await _said(child, msgspec.json.encode(ask)), type=Answer)
    except TimeoutError:
        return Answer(rejected="Reading the file took too long.")
    except msgspec.DecodeError:
        # The child was killed by one of its limits, or by the file.
        return Answer(rejected="The file is damaged, or reading it takes more memory or time than it may.")
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def _said(child: asyncio.subprocess.Process, ask: bytes) -> bytes:
    """Its whole answer, or nothing of one that is longer than any honest one."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        child.stdin.write(ask)
        await child.stdin.drain()
    child.stdin.close()
    out = b""
    while piece := await child.stdout.read(64 << 10):
        out += piece
        if len(out) > ANSWER_BYTES_MAX:
            return b""
    await child.wait()
    return out


def rejected(message: str) -> Unprocessable:
    """The one error for media that is not taken."""
    return Unprocessable(message, code="media_rejected", param="file")
