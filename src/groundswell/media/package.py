"""The files of one transcode: moved into place in time, synced, named, and listed in playlists.

Everything here blocks and runs in threads. A file is there whole and synced, or not at all, so that a task
that was completed stays completed whatever happens to the machine.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groundswell.media import fmp4, hls
from groundswell.media.encode import TICKS_PER_S, Task
from groundswell.model.errors import Overloaded, UpstreamError

FREE_BYTES_MIN = 256 << 20  # Kept free for the database, which often lies on the same disk.


def adopt(folder: Path, source: Path) -> None:
    """Give a job its source by a link, or a copy. Raises ``Overloaded`` (``storage_full``)."""
    # Its segments and its result each take about as much again.
    if shutil.disk_usage(folder.parent).free < FREE_BYTES_MIN + 3 * source.stat().st_size:
        raise Overloaded("There is no room for this video.", code="storage_full", retry_after_s=60)
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        os.link(source, folder / "source")
    except OSError:
        # Another disk, or one that knows no links.
        shutil.copyfile(source, folder / "source")
        _sync(folder / "source")
    _sync(folder)
    _sync(folder.parent)


def fresh(folder: Path) -> None:
    """An empty folder, whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Every file in it, and their names, are on the disk once this returns."""
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


def _write(path: Path, data: bytes) -> None:
    """The file is there, whole and synced, or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def _keep_init(folder: Path, init: bytes) -> str:
    """Initialisation segments are named by what is in them, so that equal ones are one file."""
    name = f"init-{hashlib.sha256(init).hexdigest()[:16]}.mp4"
    if not (folder / name).exists():
        _write(folder / name, init)
    return name


def keep_video(folder: Path, number: int, task: Task, files: list[bytes]) -> list[dict[str, Any]]:
    """Move each rendition to its place in time, check it once more, and write it."""
    if len(files) != len(task.rungs):
        raise UpstreamError("A segment came back with renditions missing.", code="malformed_output")
    outputs = []
    for rung, data in zip(task.rungs, files, strict=True):
        init, media = fmp4.split_init(data)
        if len(fmp4.samples(media)) != task.frames or fmp4.timescale(init) != TICKS_PER_S:
            raise UpstreamError("A segment came back with frames missing.", code="frames_missing")
        media = fmp4.move(media, task.start)
        name = f"{number:05d}.m4s"
        _write(folder / rung.name / name, media)
        outputs.append(
            {
                "file": name,
                "init": _keep_init(folder / rung.name, init),
                "codec": fmp4.codec(init),
                "size": len(media),
            }
        )
        _sync(folder / rung.name)
    _sync(folder)
    return outputs


def keep_audio(folder: Path, cuts: list[int], files: list[bytes]) -> list[dict[str, Any]]:
    """Cut the one sound track where the picture is cut, between two AAC frames."""
    if len(files) != 1:
        raise UpstreamError("The sound track came back incomplete.", code="malformed_output")
    init, media = fmp4.split_init(files[0])
    rate, run = fmp4.timescale(init), fmp4.samples(media)
    name, place = _keep_init(folder / hls.AUDIO_NAME, init), 0
    outputs = []
    for number, end in enumerate(cuts[1:]):
        first = place
        last = number == len(cuts) - 2
        while place < len(run) and (last or run[place].time * TICKS_PER_S < end * rate):
            place += 1
        if place == first:
            continue
        data = fmp4.audio_segment(media, run[first:place], number + 1)
        file = f"{number:05d}.m4s"
        _write(folder / hls.AUDIO_NAME / file, data)
        ticks = sum(sample.duration for sample in run[first:place])
        outputs.append({"file": file, "init": name, "size": len(data), "duration_s": ticks / rate})
    if not outputs:
        raise UpstreamError("The sound track came back empty.", code="malformed_output")
    _sync(folder / hls.AUDIO_NAME)
    return outputs


def write_playlists(
    folder: Path, tasks: Sequence[Task], outputs: Sequence[Sequence[Mapping[str, Any]]],
    sound: Sequence[Mapping[str, Any]],
) -> list[str]:  # fmt: skip
    """Write all playlists; the names of all files of the result, the master playlist first.

    ``outputs`` is what ``keep_video`` said of each task, ``sound`` what ``keep_audio`` said.
    """
    audio = [hls.Piece(one["file"], one["init"], one["duration_s"], one["size"]) for one in sound]
    fps = tasks[0].rate[0] / tasks[0].rate[1]
    renditions = []
    for place, rung in enumerate(tasks[0].rungs):
        column = [output[place] for output in outputs]
        pieces = [
            hls.Piece(one["file"], one["init"], task.duration_s, one["size"])
            for task, one in zip(tasks, column, strict=True)
        ]
        renditions.append(hls.Rendition(rung.name, rung.width, rung.height, fps, column[0]["codec"], pieces))
    lists: dict[str, Sequence[hls.Piece]] = {rendition.name: rendition.pieces for rendition in renditions}
    if audio:
        lists[hls.AUDIO_NAME] = audio
    files = ["master.m3u8"]
    for name, pieces_of in lists.items():
        _write(folder / name / "index.m3u8", hls.media_playlist(pieces_of).encode())
        inits = dict.fromkeys(piece.init for piece in pieces_of)
        files += [f"{name}/index.m3u8", *(f"{name}/{init}" for init in inits)]
        files += [f"{name}/{piece.uri}" for piece in pieces_of]
    _write(folder / "master.m3u8", hls.master_playlist(renditions, audio, "mp4a.40.2").encode())
    _sync(folder)
    return files
