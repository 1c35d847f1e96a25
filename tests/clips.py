"""Small real videos, made once per run by the ffmpeg that the package brings, and files that mean harm."""

from __future__ import annotations

import atexit
import functools
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

from groundswell.media.encode import ffmpeg_path

_TONE = ["-f", "lavfi", "-i", "sine=frequency=440:d=6"]
_X264 = ["-c:v", "libx264", "-preset", "veryfast", "-threads", "1"]
# Name to arguments. All are 320x180 or smaller, about six seconds long.
_RECIPES: dict[str, list[str]] = {
    "plain.mp4": [
        "-f", "lavfi", "-i", "testsrc2=s=320x180:r=30:d=6", *_TONE, *_X264, "-g", "60", "-c:a", "aac",
    ],
    "opengop.mp4": [
        "-f", "lavfi", "-i", "testsrc2=s=320x180:r=30:d=6", *_TONE, *_X264,
        "-x264-params", "open-gop=1:keyint=48:bframes=3:scenecut=0", "-c:a", "aac",
    ],
    "ntsc.mkv": [
        "-f", "lavfi", "-i", "testsrc2=s=320x180:r=30000/1001:d=6", *_TONE, *_X264, "-g", "50",
        "-ar", "44100", "-c:a", "libopus", "-ar", "48000",
    ],
    "ntsc.mp4": ["-f", "lavfi", "-i", "testsrc2=s=320x180:r=30000/1001:d=6", *_X264, "-g", "50"],
    "vfr.mp4": [
        "-f", "lavfi", "-i", "testsrc2=s=320x180:r=30:d=6",
        "-vf", "select='not(eq(mod(n,7),3)+eq(mod(n,11),5))'", "-fps_mode", "vfr", *_X264, "-g", "60",
    ],
    "late.ts": [
        "-f", "lavfi", "-i", "testsrc2=s=320x180:r=25:d=6", *_TONE, *_X264, "-g", "50", "-c:a", "aac",
        "-output_ts_offset", "3600",
    ],
    "vp9.webm": [
        "-f", "lavfi", "-i", "testsrc2=s=160x90:r=24:d=3", "-c:v", "libvpx-vp9", "-deadline", "realtime",
        "-cpu-used", "8", "-g", "24",
    ],
    "sound.mp4": [*_TONE, "-c:a", "aac"],
}  # fmt: skip


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="groundswell-clips-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def clip(name: str) -> Path:
    """The clip of this name; ``turned.mp4`` is ``plain.mp4`` as a phone held upright marks it."""
    path = _folder() / name
    if name == "turned.mp4":
        arguments = ["-display_rotation", "90", "-i", str(clip("plain.mp4")), "-c", "copy"]
    else:
        arguments = _RECIPES[name]
    subprocess.run([ffmpeg_path(), "-nostdin", "-loglevel", "error", "-y", *arguments, str(path)], check=True)
    return path


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
