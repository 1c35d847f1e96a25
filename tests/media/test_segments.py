"""Cut, encode, join: as many frames as the source, and no seam."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest

from clips import clip
from groundswell.media import encode, fmp4, package
from groundswell.media.demux import Split
from groundswell.media.encode import Task
from groundswell.media.ladder import Rung
from groundswell.media.probe import MediaLimits, split
from groundswell.model.errors import Unprocessable, UpstreamError
from hostile_files import X264, made, source

RUNGS = (Rung("90p", 160, 90, 28, 300), Rung("64p", 114, 64, 28, 200))


def tasks(cut: Split, rungs: tuple[Rung, ...] = RUNGS) -> list[Task]:
    return [
        Task(
            kind="video",
            start=one.start,
            end=one.end,
            frames=one.frames,
            rate=cut.rate,
            vfr=cut.vfr,
            rungs=rungs,
        )
        for one in cut.chunks
    ]


async def run(task: Task, folder: Path, source: str) -> list[bytes]:
    outputs = await encode.encode(task, folder, source, 1, lambda _ms: None)
    return [output.read_bytes() for output in outputs]


@pytest.mark.parametrize(
    ("name", "frames", "step"),
    [
        ("plain.mp4", 180, 3000),
        ("opengop.mp4", 180, 3000),
        ("ntsc.mp4", 180, 3003),
        ("vfr.mp4", 180, 3000),
        ("late.ts", 150, 3600),
    ],
)
async def test_no_frame_is_lost_and_no_step_is_off_over_all_seams(
    name: str, frames: int, step: int, tmp_path: Path
) -> None:
    """Open GOPs lose frames, other time bases drift, uneven sources overlap: unless each is cared for."""
    _, cut = await split(clip(name), tmp_path, 1.5)
    assert len(cut.chunks) >= 3
    shown, decoded, inits = list[int](), list[int](), set[bytes]()
    for task, chunk in zip(tasks(cut), cut.chunks, strict=True):
        init, media = fmp4.split_init((await run(task, tmp_path, chunk.file))[1])
        found = fmp4.samples(fmp4.move(media, chunk.start))
        assert min(one.time + one.offset for one in found) == chunk.start
        shown += sorted(one.time + one.offset for one in found)
        decoded += [one.time for one in found]
        inits.add(init)
    assert len(shown) == frames
    assert {after - before for before, after in pairwise(shown)} == {step}
    assert all(after > before for before, after in pairwise(decoded))
    assert len(inits) == 1


async def test_milliseconds_of_the_container_are_kept_as_they_are(tmp_path: Path) -> None:
    """Matroska rounds to milliseconds; such a source counts as even, and its times pass through."""
    _, cut = await split(clip("ntsc.mkv"), tmp_path, 1.5)
    assert (cut.vfr, cut.rate, sum(one.frames for one in cut.chunks)) == (False, (30000, 1001), 180)


async def test_sound_is_one_unbroken_track_cut_where_the_picture_is(tmp_path: Path) -> None:
    """AAC that is encoded piece by piece has a gap at every seam."""
    _, cut = await split(clip("plain.mp4"), tmp_path, 1.5)
    cuts = [one.start for one in cut.chunks] + [cut.chunks[-1].end]
    assert cut.audio_file is not None
    files = await run(Task(kind="audio", start=cuts[0], end=cuts[-1]), tmp_path, cut.audio_file)
    outputs = package.keep_audio(tmp_path / "result", cuts, files)
    assert len(outputs) == len(cut.chunks)
    parts = [(tmp_path / "result" / "audio" / one["file"]).read_bytes() for one in outputs]
    found = [one for part in parts for one in fmp4.samples(part)]
    assert {after.time - before.time for before, after in pairwise(found)} == {1024}
    for part, start in zip(parts[1:], cuts[1:], strict=False):
        assert 0 <= fmp4.samples(part)[0].time - start * 48_000 / 90_000 < 1024
    whole = fmp4.samples(fmp4.split_init(files[0])[1])
    data = fmp4.split_init(files[0])[1]
    assert b"".join(
        part[one.position : one.position + one.size] for part in parts for one in fmp4.samples(part)
    ) == (b"".join(data[one.position : one.position + one.size] for one in whole))


async def test_a_turned_source_comes_out_upright(tmp_path: Path) -> None:
    """A player shows what is in the frames."""
    info, cut = await split(clip("turned.mp4"), tmp_path, 1.5)
    task = Task(
        kind="video", start=cut.chunks[0].start, end=cut.chunks[0].end, frames=cut.chunks[0].frames,
        rate=cut.rate, rotation=info.rotation, rungs=(Rung("90p", 90, 160, 28, 300),),
    )  # fmt: skip
    init, _ = fmp4.split_init((await run(task, tmp_path, cut.chunks[0].file))[0])
    box = fmp4.find(init, "moov/trak/tkhd")
    assert box is not None
    assert init[box.end - 8 : box.end] == (90 << 16).to_bytes(4) + (160 << 16).to_bytes(4)


async def test_a_segment_that_breaks_off_is_an_error_and_not_a_shorter_segment(tmp_path: Path) -> None:
    """ffmpeg ends with status 0 after a few frames of it."""
    _, cut = await split(clip("plain.mp4"), tmp_path, 1.5)
    path = tmp_path / cut.chunks[1].file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(UpstreamError) as caught:
        await run(tasks(cut)[1], tmp_path, cut.chunks[1].file)
    assert caught.value.code in ("transcode_failed", "frames_missing")


async def test_a_playlist_in_a_segments_clothes_is_not_followed(tmp_path: Path) -> None:
    """The demuxer is named, so nothing but NUT is ever read."""
    (tmp_path / "in.nut").write_bytes(b"#EXTM3U\n#EXTINF:5,\n/etc/passwd\n#EXT-X-ENDLIST\n")
    task = Task(kind="video", start=0, end=90_000, frames=30, rate=(30, 1), rungs=RUNGS)
    with pytest.raises(UpstreamError):
        await run(task, tmp_path, "in.nut")


async def test_a_source_with_too_few_key_frames_is_refused(tmp_path: Path) -> None:
    """A segment travels as one message."""
    with pytest.raises(Unprocessable):
        await split(clip("plain.mp4"), tmp_path, 1.5, MediaLimits(segment_bytes=20_000))


def test_nothing_but_numbers_and_our_own_names_reach_the_command_line() -> None:
    """Arguments that end an option, name a protocol or a filter would be a way in."""
    task = Task(kind="video", start=900_000, end=990_000, frames=30, rate=(30, 1), rungs=RUNGS)
    line = encode.arguments(task, "in.nut", ["out0.mp4", "out1.mp4"], 1)
    at = line.index("-i")
    assert line[at - 20 : at].count("-protocol_whitelist") == 1
    assert line[line.index("-f") + 1] == "nut"
    assert "-xerror" in line
    assert "-nostdin" in line


async def test_ffmpeg_is_gone_at_once_when_the_work_is_cancelled(tmp_path: Path) -> None:
    """A cancelled segment must not go on burning the machine."""
    _, cut = await split(clip("plain.mp4"), tmp_path, 30)
    task = tasks(cut, tuple(Rung(f"{n}p", 1280, 720, 20, 9000) for n in (1, 2, 3, 4)))[0]
    work = asyncio.create_task(run(task, tmp_path, cut.chunks[0].file))
    while not (children := _children()):
        await asyncio.sleep(0.02)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


def _children() -> list[int]:
    import psutil

    return [one.pid for one in psutil.Process().children() if "ffmpeg" in one.name()]


async def test_no_more_than_sixty_pictures_a_second_come_out(tmp_path: Path) -> None:
    """A thousand a second would cost seventeen times as much, and no screen shows them."""
    (tmp_path / "source").write_bytes(made(*source(rate="1000", seconds="1"), *X264))
    _, cut = await split(tmp_path / "source", tmp_path)
    assert (cut.rate, cut.vfr, [chunk.frames for chunk in cut.chunks]) == ((60, 1), True, [60])
    [task] = tasks(cut)
    init, media = fmp4.split_init((await run(task, tmp_path, cut.chunks[0].file))[1])
    assert len(fmp4.samples(media)) == 60
    assert init


async def test_an_ffmpeg_that_is_stopped_is_given_up_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells of itself twice a second; one that says nothing will not come back, and holds a slot."""
    monkeypatch.setattr(encode, "STALL_S", 3.0)
    _, cut = await split(clip("plain.mp4"), tmp_path, 30)
    long = tuple(Rung(f"{n}p", 1280, 720, 20, 9000) for n in range(1, 5))
    encoding = asyncio.ensure_future(
        encode.encode(tasks(cut, long)[0], tmp_path, cut.chunks[0].file, 1, lambda _ms: None)
    )
    while not (found := _children()):
        await asyncio.sleep(0.01)
    os.kill(found[0], signal.SIGSTOP)
    with pytest.raises(UpstreamError, match="stopped answering"):
        await encoding
    assert not _children()
