"""Bytes from an engine are bytes from a stranger."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clips import clip
from groundswell.media import encode, fmp4
from groundswell.media.encode import Task
from groundswell.media.ladder import Rung
from groundswell.media.probe import split
from groundswell.model.errors import UpstreamError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One real output of a transcoder."""
    import asyncio

    folder: Path = tmp_path_factory.mktemp("made")

    async def make() -> bytes:
        _, cut = await split(clip("plain.mp4"), folder, 1.5)
        one = cut.chunks[0]
        task = Task(
            kind="video", start=one.start, end=one.end, frames=one.frames, rate=cut.rate,
            rungs=(Rung("64p", 114, 64, 30, 100),),
        )  # fmt: skip
        return (await encode.encode(task, folder, one.file, 1, lambda _ms: None))[0].read_bytes()

    return asyncio.run(make())


def test_a_segment_says_its_codec_clock_and_frames(made: bytes) -> None:
    """The playlists and the bill rest on these."""
    init, media = fmp4.split_init(made)
    assert fmp4.codec(init).startswith("avc1.64")
    assert fmp4.timescale(init) == 90_000
    assert len(fmp4.samples(media)) == 60


def test_moving_changes_times_and_nothing_else(made: bytes) -> None:
    """All frames are presented later or earlier by one amount; their order and their bytes stay."""
    media = fmp4.split_init(made)[1]
    moved = fmp4.move(media, 5_000_000)
    before, after = fmp4.samples(media), fmp4.samples(moved)
    assert min(one.time + one.offset for one in after) == 5_000_000
    shifts = {new.time + new.offset - old.time - old.offset for old, new in zip(before, after, strict=True)}
    assert len(shifts) == 1
    assert [(one.duration, one.size, one.position) for one in before] == [
        (one.duration, one.size, one.position) for one in after
    ]
    payload = media.index(b"mdat")
    assert media[payload:] == moved[payload:]


def test_decoding_begins_when_the_first_frame_is_presented(made: bytes) -> None:
    """Players place a segment by its decode time: a delay there is a hole at the start of every video."""
    media = fmp4.split_init(made)[1]
    before = fmp4.samples(media)
    assert before[0].offset > 0, "B-frames delay the first frame, as ffmpeg writes it"
    after = fmp4.samples(fmp4.move(media, 900_000))
    assert after[0].time == 900_000
    assert after[0].offset == 0
    assert min(one.offset for one in after) < 0
    assert fmp4.move(fmp4.move(media, 5_000_000), 900_000) == fmp4.move(media, 900_000)


def test_a_time_before_zero_is_refused(made: bytes) -> None:
    """It would wrap around to the far future."""
    with pytest.raises(UpstreamError):
        fmp4.move(fmp4.split_init(made)[1], -1)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_an_upstream_error_and_never_another(made: bytes, data: st.DataObject) -> None:
    """A broken node must not break the gateway."""
    damaged = bytearray(made)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, min(4000, len(made) - 1)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(made)))
    for candidate in (bytes(damaged), made[:cut]):
        with contextlib.suppress(UpstreamError):
            init, media = fmp4.split_init(candidate)
            fmp4.samples(media)
            fmp4.timescale(init)
            fmp4.codec(init)
            fmp4.move(media, 900_000)


def test_a_count_of_samples_beyond_the_box_is_refused() -> None:
    """Four bytes must not make us loop four thousand million times."""

    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), kind) + body

    run = box(b"trun", struct.pack(">II", 0, 0xFFFFFFFF))
    head = box(b"tfhd", struct.pack(">III", 0, 1, 0)) + box(b"tfdt", struct.pack(">II", 0, 0))
    with pytest.raises(UpstreamError):
        fmp4.samples(box(b"moof", box(b"traf", head + run)))
