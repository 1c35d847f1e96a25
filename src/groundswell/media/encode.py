"""Making all renditions of one segment with one ffmpeg: its arguments, its confinement, and a check of its
work.

Theory of operation. One process decodes once and scales in a cascade, each rung from the one above it. The
task names the exact span of ticks and how many frames lie in it; ffmpeg's word that it succeeded is not
enough, so the frames of every output are counted. Times are passed through untouched in 90 kHz (an encoder
time base of one frame would move 29.97 by milliseconds), so that segments made on different machines meet
exactly.

Nothing a client wrote reaches the command line: a task is numbers and our own file names.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from groundswell.media import fmp4
from groundswell.media.ladder import RUNGS_MAX, Rung
from groundswell.media.sandbox import Limits, confine
from groundswell.model.errors import InternalError, UpstreamError
from groundswell.model.money import Usage

TICKS_PER_S = 90_000
GOP_S = 2
AUDIO_RATE = 48_000
PIXELS_MAX = 33_177_600
# 8K into 2160p, 1080p and 720p takes 1.7 GB on four threads; 10 bits and 4:2:2 take more than twice that.
MEMORY_BYTES = 4 << 30
STALL_S = 20.0  # It reports twice a second, however slow the work is; a machine may be busy beyond reason.
OUTPUT_BYTES_MAX = 2 << 30
FFMPEG_VARIABLE = "GROUNDSWELL_VIDEO_FFMPEG"

_Ticks = Annotated[int, msgspec.Meta(ge=0, le=1 << 52)]


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to make of one NUT file: ``video`` gives one fMP4 per rung, ``audio`` one fMP4 with AAC.

    ``start`` and ``end`` (exclusive) are ticks of 1/90000 s; ``frames`` is how many frames every output has.
    ``rate`` is frames per second as a fraction; with ``vfr`` frames are put on its grid. ``rotation`` in
    degrees, clockwise, makes the picture upright.
    """

    kind: Literal["video", "audio"]
    start: _Ticks
    end: _Ticks
    frames: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    rate: tuple[Annotated[int, msgspec.Meta(ge=1)], Annotated[int, msgspec.Meta(ge=1)]] = (25, 1)
    vfr: bool = False
    rotation: Literal[0, 90, 180, 270] = 0
    rungs: Annotated[tuple[Rung, ...], msgspec.Meta(max_length=RUNGS_MAX)] = ()

    @property
    def duration_s(self) -> float:
        return (self.end - self.start) / TICKS_PER_S

    def usage(self) -> Usage:
        """What this task counts for when every output is whole."""
        pixels = sum(rung.width * rung.height for rung in self.rungs) * self.frames
        return Usage(pixels=pixels, media_ms=round(self.duration_s * 1000))


def ffmpeg_path(configured: str = "") -> str:
    """The program: the one ``configured``, or of ``GROUNDSWELL_VIDEO_FFMPEG``, or of imageio-ffmpeg."""
    named = configured or os.environ.get(FFMPEG_VARIABLE)
    if named:
        return named
    return _packaged_ffmpeg()


@functools.cache
def _packaged_ffmpeg() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def arguments(task: Task, source: str, outputs: list[str], threads: int) -> list[str]:
    """ffmpeg's argument list, without the program."""
    head = [
        "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", "-y", "-copyts",
        "-progress", "pipe:1", "-stats_period", "0.5",
        "-protocol_whitelist", "file,pipe", "-f", "nut", "-max_pixels", str(PIXELS_MAX),
        "-max_streams", "4", "-noautorotate", "-threads", str(threads), "-i", source,
    ]  # fmt: skip
    tail = [
        "-map_metadata", "-1", "-avoid_negative_ts", "disabled", "-fflags", "+bitexact",
        "-movflags", "+cmaf+frag_keyframe+empty_moov+default_base_moof+frag_discont", "-f", "mp4",
    ]  # fmt: skip
    if task.kind == "audio":
        return [*head, *_audio(task), *tail, outputs[0]]
    head += ["-filter_complex_threads", str(threads), "-filter_complex", filter_graph(task)]
    for place, rung in enumerate(task.rungs):
        head += ["-map", f"[o{place}]", *video_arguments(task, rung, threads), *tail, outputs[place]]
    return head


def filter_graph(task: Task) -> str:
    """Decode once, trim exactly, scale down step by step."""
    rate = f"{task.rate[0]}/{task.rate[1]}"
    stages = []
    if task.vfr:
        # The last frame is held to the segment's end, and the grid begins exactly at its start.
        stages.append(f"tpad=stop_mode=clone:stop_duration={task.duration_s + 1:.6f}")
        stages.append(f"fps={rate}:start_time={task.start / TICKS_PER_S:.9f}")
    stages.append("settb=1/90000")
    stages.append(f"trim=start_pts={task.start}:end_pts={task.end}")
    stages += {90: ["transpose=clock"], 180: ["hflip", "vflip"], 270: ["transpose=cclock"]}.get(
        task.rotation, []
    )
    chains, source, last = [], f"[0:v:0]{','.join(stages)},", len(task.rungs) - 1
    for place, rung in enumerate(task.rungs):
        scale = f"{source}scale={rung.width}:{rung.height}:flags=bicubic,setsar=1,format=yuv420p"
        chains.append(scale + (f"[o{place}]" if place == last else f",split=2[o{place}][c{place}]"))
        source = f"[c{place}]"
    return ";".join(chains)


def video_arguments(task: Task, rung: Rung, threads: int) -> list[str]:
    """The encoder's arguments for one rung."""
    gop = max(1, round(GOP_S * task.rate[0] / task.rate[1]))
    return [
        "-c:v", "libx264", "-preset", "veryfast", "-profile:v", "high", "-threads", str(threads),
        "-crf", str(rung.crf), "-maxrate", f"{rung.maxrate_kbps}k", "-bufsize", f"{2 * rung.maxrate_kbps}k",
        "-g", str(gop), "-keyint_min", str(gop), "-sc_threshold", "0",
        # The rate is named, since a guess from a short last segment would give that one another header. The
        # buffer begins as full as it is on average: x264's 0.9 gave every segment 6 to 8 per cent more bytes.
        "-x264-params", f"fps={task.rate[0]}/{task.rate[1]}:vbv-init=0.6",
        "-fps_mode", "passthrough", "-enc_time_base", "1:90000", "-video_track_timescale", "90000",
    ]  # fmt: skip


def _audio(task: Task) -> list[str]:
    """One unbroken AAC track as long as the video: silence fills gaps and the end, an early start is cut."""
    first = task.start * AUDIO_RATE // TICKS_PER_S
    span = f"atrim=start={task.start / TICKS_PER_S:.6f}:end={task.end / TICKS_PER_S:.6f}"
    return [
        # Two steps, because the resampler counts ``first_pts`` at the rate of its input.
        "-map", "0:a:0", "-af",
        f"aresample={AUDIO_RATE},aresample=async=1:first_pts={first},apad,{span}",
        "-c:a", "aac", "-b:a", "128k", "-ac", "2", "-frag_duration", "2000000",
    ]  # fmt: skip


Progress = Callable[[int], None]


async def encode(task: Task, folder: Path, source: str, threads: int, on_progress: Progress) -> list[Path]:
    """Run ffmpeg in ``folder`` on the file ``source`` in it; the outputs, one per rung, checked.

    ``on_progress`` hears media milliseconds, about twice a second. Cancelling kills ffmpeg and all that it
    started. Raises ``UpstreamError``: ``transcode_failed`` (it failed, ran out of time or memory) or
    ``frames_missing``.
    """
    names = ["out0.mp4"] if task.kind == "audio" else [f"out{n}.mp4" for n in range(len(task.rungs))]
    limits = Limits(
        memory_bytes=MEMORY_BYTES,
        cpu_s=120 + int(200 * task.duration_s),
        file_bytes=OUTPUT_BYTES_MAX,
        files=256,
    )
    child = await asyncio.create_subprocess_exec(
        ffmpeg_path(), *arguments(task, source, names, threads), cwd=folder,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True, env={"PATH": os.environ.get("PATH", ""), "TMPDIR": str(folder)},
        preexec_fn=functools.partial(confine, limits, os.getpid()),
    )  # fmt: skip
    try:
        async with asyncio.timeout(120 + 100 * task.duration_s):
            said = await _follow(child, on_progress)
    except TimeoutError:
        raise UpstreamError("A segment took too long to transcode.", code="transcode_failed") from None
    except _Silent:
        raise UpstreamError("ffmpeg stopped answering.", code="transcode_failed") from None
    finally:
        await _kill(child)
    if child.returncode != 0:
        raise UpstreamError(f"A segment could not be transcoded{said}.", code="transcode_failed")
    outputs = [folder / name for name in names]
    await asyncio.to_thread(_check, task, outputs)
    return outputs


async def _follow(child: asyncio.subprocess.Process, on_progress: Progress) -> str:
    """Read until the child ends; a short reason from what it said, without paths or addresses."""
    assert child.stdout is not None
    assert child.stderr is not None
    errors = asyncio.ensure_future(_tail(child.stderr))
    try:
        while line := await _line(child.stdout):
            name, _, value = line.partition(b"=")
            if name == b"out_time_us":
                on_progress(int(value) // 1000 if value.strip().lstrip(b"-").isdigit() else 0)
        await child.wait()
        text = await errors
    finally:
        errors.cancel()
    for mark, reason in ((b"allocate memory", "memory ran out"), (b"Invalid data", "the data are damaged")):
        if mark in text:
            return f": {reason}"
    return ""


class _Silent(Exception):
    """No sign of life for ``STALL_S``."""


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(STALL_S):
            return await stream.readline()
    except TimeoutError as error:
        raise _Silent from error


async def _tail(stream: asyncio.StreamReader, limit: int = 4096) -> bytes:
    """The last bytes of a stream that may be endless."""
    kept = b""
    while piece := await stream.read(4096):
        kept = (kept + piece)[-limit:]
    return kept


async def _kill(child: asyncio.subprocess.Process) -> None:
    """End the whole process group; nothing is left behind, whatever ffmpeg was doing."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await asyncio.shield(child.wait())


def _check(task: Task, outputs: list[Path]) -> None:
    """Count what was really made."""
    for output in outputs:
        found = fmp4.samples(fmp4.split_init(output.read_bytes())[1])
        if task.kind == "video" and len(found) != task.frames:
            raise UpstreamError(
                f"A segment came out with {len(found)} of {task.frames} frames.", code="frames_missing"
            )


async def works(threads: int = 1) -> bool:
    """Whether this ffmpeg can do what we need, by encoding five frames with it."""
    try:
        child = await asyncio.create_subprocess_exec(
            ffmpeg_path(), "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", "color=s=64x64:r=25",
            "-frames:v", "5", "-c:v", "libx264", "-threads", str(threads), "-f", "null", "-",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise InternalError("ffmpeg was not found.", code="ffmpeg_missing") from error
    try:
        async with asyncio.timeout(20):
            return await child.wait() == 0
    except TimeoutError:
        return False
    finally:
        await _kill(child)
