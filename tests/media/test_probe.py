"""What is taken in, and what is turned away before anything opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clips import HOSTILE, clip
from groundswell.media.probe import MediaLimits, probe, sniff
from groundswell.model.errors import Unprocessable


@pytest.mark.parametrize(
    ("name", "video", "audio"),
    [
        ("plain.mp4", "h264", "aac"),
        ("ntsc.mkv", "h264", "opus"),
        ("late.ts", "h264", "aac"),
        ("vp9.webm", "vp9", None),
    ],
)
async def test_common_files_are_understood(name: str, video: str, audio: str | None) -> None:
    """People upload what their tools made."""
    info = await probe(clip(name))
    assert (info.video_codec, info.audio_codec) == (video, audio)
    assert (info.width, info.height) in ((320, 180), (160, 90))


async def test_a_phone_held_upright_makes_an_upright_video() -> None:
    """The turn is a note in the file, which a cut segment no longer has."""
    info = await probe(clip("turned.mp4"))
    assert (info.width, info.height) == (180, 320)
    assert info.rotation in (90, 270)


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_no_video_is_refused_in_the_clients_own_words(name: str, tmp_path: Path) -> None:
    """A playlist would make libavformat open other files; a bomb would eat the memory."""
    path = tmp_path / "in.bin"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(Unprocessable) as caught:
        await probe(path)
    assert caught.value.code == "media_rejected"
    assert "/" not in caught.value.message


async def test_a_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    """The index of an MP4 lies at its end: half a file has none."""
    path = tmp_path / "in.bin"
    path.write_bytes(clip("plain.mp4").read_bytes()[:20_000])
    with pytest.raises(Unprocessable):
        await probe(path)


async def test_sound_without_a_picture_is_refused() -> None:
    """There is nothing to make a ladder of."""
    with pytest.raises(Unprocessable, match="no video"):
        await probe(clip("sound.mp4"))


@pytest.mark.parametrize(
    "limits",
    [MediaLimits(pixels=100 * 100), MediaLimits(duration_s=3), MediaLimits(streams=1)],
    ids=["pixels", "duration", "streams"],
)
async def test_each_limit_is_kept(limits: MediaLimits) -> None:
    """One upload must not take more than its share."""
    with pytest.raises(Unprocessable):
        await probe(clip("plain.mp4"), limits)


async def test_a_probe_that_takes_too_long_is_ended() -> None:
    """A file can be made to keep a demuxer busy for hours."""
    with pytest.raises(Unprocessable, match="too long"):
        await probe(clip("plain.mp4"), MediaLimits(probe_wall_s=0.01))


def test_the_demuxer_is_named_by_the_first_bytes() -> None:
    """The name of the file says nothing; it is never asked."""
    assert sniff(clip("plain.mp4").read_bytes()[:400]) == "mov"
    assert sniff(clip("late.ts").read_bytes()[:400]) == "mpegts"
    assert sniff(clip("vp9.webm").read_bytes()[:400]) == "matroska"
