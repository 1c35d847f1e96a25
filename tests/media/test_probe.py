"""What is taken in, and what is turned away before anything opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clips import HOSTILE, clip
from groundswell.media import probe as probe_module
from groundswell.media.probe import MediaLimits, probe, sniff, split
from groundswell.model.errors import Unprocessable
from hostile_files import X264, film, made, repeated, source


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


@pytest.mark.parametrize(
    ("name", "codec", "arguments"),
    [
        ("x.mkv", "av1", ["-c:v", "libaom-av1", "-cpu-used", "8", "-c:a", "libmp3lame"]),
        ("x.ts", "mpeg2video", ["-c:v", "mpeg2video", "-c:a", "mp2"]),
        ("x.ogv", "theora", ["-c:v", "libtheora", "-c:a", "libvorbis"]),
        ("x.webm", "vp8", ["-c:v", "libvpx", "-c:a", "libopus"]),
        ("x.avi", "mpeg4", ["-c:v", "mpeg4", "-c:a", "pcm_s16le"]),
    ],
)
async def test_codecs_whose_decoder_has_another_name_are_taken(
    name: str, codec: str, arguments: list[str], tmp_path: Path
) -> None:
    """AV1 is decoded by libdav1d and MP3 by mp3float; what counts is what the file holds."""
    film = made(*source(seconds="1"), "-f", "lavfi", "-i", "sine=d=1", *arguments, name=name)
    (tmp_path / "source").write_bytes(film)
    info, cut = await split(tmp_path / "source", tmp_path)
    assert info.video_codec == codec
    assert (sum(chunk.frames for chunk in cut.chunks), cut.audio_file) == (25, "audio.nut")


@pytest.mark.parametrize(
    ("arguments", "name", "reason"),
    [
        ([*source(), *X264, *["-map", "0:v"] * 30], "x.mkv", "more than 16 streams"),
        ([*source("16000x2000", "1", "1"), *X264], "x.mp4", "picture size"),
        ([*source(seconds="1"), "-c:v", "prores"], "x.mov", "video codec"),
        ([*source("32x32", "1", "660"), *X264, "-g", "99999"], "x.mp4", "too few key frames"),
        ([*source("32x32", "0.2", "15000"), "-c:v", "mjpeg"], "x.mkv", "longer than"),
    ],
    ids=["streams", "strip", "codec", "key frames", "length"],
)
async def test_a_refusal_says_which_limit_it_was(
    arguments: list[str], name: str, reason: str, tmp_path: Path
) -> None:
    """Not that the file is damaged, which it is not."""
    (tmp_path / "source").write_bytes(made(*arguments, name=name))
    with pytest.raises(Unprocessable, match=reason):
        await split(tmp_path / "source", tmp_path)


async def test_a_codec_that_nobody_knows_is_no_damage(tmp_path: Path) -> None:
    """There is no decoder to ask; the child must not stumble over that."""
    (tmp_path / "source").write_bytes(film().replace(b"avc1", b"zzzz"))
    with pytest.raises(Unprocessable, match="video codec"):
        await probe(tmp_path / "source")


async def test_data_that_are_used_again_and_again_do_not_fill_the_disk(tmp_path: Path) -> None:
    """An index may name one picture 14,000 times: 300 KB that would become hundreds of megabytes."""
    (tmp_path / "source").write_bytes(repeated(14_000, 15_360))
    with pytest.raises(Unprocessable, match="again and again"):
        await split(tmp_path / "source", tmp_path)
    written = sum(path.stat().st_size for path in tmp_path.glob("*.nut"))
    assert written < 3 * (tmp_path / "source").stat().st_size + (2 << 20)


async def test_an_endless_answer_of_the_child_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes over a demuxer must not be able to fill the gateway's memory."""
    monkeypatch.setattr(probe_module, "ANSWER_BYTES_MAX", 10)
    with pytest.raises(Unprocessable):
        await probe(clip("plain.mp4"))
