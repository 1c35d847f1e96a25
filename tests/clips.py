"""Small real videos, made once per run by the ffmpeg that the package brings."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
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
