"""What is taken in, and what is turned away before anything opens it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from clips import clip
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


def png(width: int, height: int) -> bytes:
    """A picture that is small on the disk and huge in memory."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((width // 8 + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
HOSTILE = {
    "empty": b"",
    "one byte": b"\0",
    "playlist": PLAYLIST,
    "playlist behind a byte order mark": b"\xef\xbb\xbf" + PLAYLIST,
    "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "session description": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "manifest": b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/</BaseURL></MPD>',
    "vector picture": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "huge picture": png(16_000, 16_000),
    "archive": b"PK\x03\x04" + b"\0" * 400,
    "mp4 by name only": struct.pack(">I4s", 24, b"ftyp") + b"isom" + b"\0" * 600,
    "playlist after ftyp": struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 0, b"isom") + PLAYLIST * 20,
    "sizes beyond the file": struct.pack(">I4s", 0xFFFFFFFF, b"moov") + b"\xff" * 600,
    "matroska of noise": b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 8,
    "transport stream of noise": (b"\x47" + b"\x1f" * 187) * 20,
}


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
