"""Fragmented MP4, as far as we need it: read boxes, count frames, move a fragment in time, cut audio into
segments.

An exit status of ffmpeg says nothing about how many frames it wrote, so frames are counted here, in the
``trun`` boxes of what came back. And x264's B-frames make ffmpeg start a fragment late by their delay
(there is no edit list in a CMAF segment), so every segment's ``tfdt`` is moved until its first *presented*
frame lies exactly on the segment's start (ISO/IEC 14496-12 names the boxes).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from groundswell.model.errors import UpstreamError

_BOXES_MAX = 100_000
_SAMPLES_MAX = 1_000_000  # Five hours of AAC; a count is four bytes that anyone can write.


@dataclass(frozen=True, slots=True)
class Box:
    """One box: ``kind``, and where its content lies, in bytes from the file's start."""

    kind: bytes
    start: int
    body: int
    end: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame: decode time, duration and presentation offset in ticks, and where its bytes lie."""

    time: int
    duration: int
    offset: int
    position: int
    size: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes between two positions, not descending. Raises ``UpstreamError`` when sizes make no sense."""
    end = len(data) if end is None else end
    count = 0
    while start < end:
        count += 1
        if end - start < 8 or count > _BOXES_MAX:
            raise _broken()
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1 and end - start >= 16:
            size = struct.unpack_from(">Q", data, body)[0]
            body += 8
        if size < body - start or start + size > end:
            raise _broken()
        yield Box(kind, start, body, start + size)
        start += size


def find(data: bytes, path: str, start: int = 0, end: int | None = None) -> Box | None:
    """The first box at a path such as ``moov/trak/mdia/mdhd``."""
    head, _, rest = path.partition("/")
    for box in boxes(data, start, end):
        if box.kind == head.encode():
            return find(data, rest, box.body, box.end) if rest else box
    return None


def _need(data: bytes, path: str, start: int = 0, end: int | None = None) -> Box:
    box = find(data, path, start, end)
    if box is None:
        raise _broken()
    return box


def split_init(data: bytes) -> tuple[bytes, bytes]:
    """(initialisation segment, fragments). Drops index and trailer boxes, which CMAF segments do not need."""
    init, media = [], []
    for box in boxes(data):
        if box.kind in (b"ftyp", b"moov"):
            init.append(data[box.start : box.end])
        elif box.kind in (b"styp", b"moof", b"mdat"):
            media.append(data[box.start : box.end])
    if not init or not media:
        raise _broken()
    return b"".join(init), b"".join(media)


def timescale(init: bytes) -> int:
    """Ticks per second of the first track."""
    box = _need(init, "moov/trak/mdia/mdhd")
    try:
        ticks = int(struct.unpack_from(">I", init, box.body + (20 if init[box.body] else 12))[0])
    except (struct.error, IndexError) as error:
        raise _broken() from error
    if ticks == 0:
        raise _broken()
    return ticks


def samples(media: bytes) -> list[Sample]:
    """Every sample of the first track, in decode order."""
    try:
        return list(_samples(media))
    except (struct.error, IndexError) as error:
        raise _broken() from error


def _samples(media: bytes) -> Iterator[Sample]:
    for moof in boxes(media):
        if moof.kind != b"moof":
            continue
        traf = _need(media, "traf", moof.body, moof.end)
        duration, size = _defaults(media, _need(media, "tfhd", traf.body, traf.end))
        tfdt = _need(media, "tfdt", traf.body, traf.end)
        time = _decode_time(media, tfdt)
        for trun in boxes(media, traf.body, traf.end):
            if trun.kind == b"trun":
                for sample in _run(media, trun, moof.start, time, duration, size):
                    yield sample
                    time = sample.time + sample.duration


def _defaults(media: bytes, tfhd: Box) -> tuple[int, int]:
    """(duration, size) that samples have unless they say otherwise."""
    flags = int.from_bytes(media[tfhd.body + 1 : tfhd.body + 4])
    at, duration, size = tfhd.body + 8, 0, 0
    at += (8 if flags & 1 else 0) + (4 if flags & 2 else 0)
    if flags & 8:
        duration = struct.unpack_from(">I", media, at)[0]
        at += 4
    if flags & 16:
        size = struct.unpack_from(">I", media, at)[0]
    return duration, size


def _decode_time(media: bytes, tfdt: Box) -> int:
    wide = media[tfdt.body] == 1
    return int(struct.unpack_from(">Q" if wide else ">I", media, tfdt.body + 4)[0])


def _run(media: bytes, trun: Box, origin: int, time: int, duration: int, size: int) -> Iterator[Sample]:
    signed = media[trun.body] == 1
    flags = int.from_bytes(media[trun.body + 1 : trun.body + 4])
    count = struct.unpack_from(">I", media, trun.body + 4)[0]
    at, position = trun.body + 8, 0
    if flags & 1:
        position = origin + struct.unpack_from(">i", media, at)[0]
        at += 4
    at += 4 if flags & 4 else 0
    fields = [bit for bit in (0x100, 0x200, 0x400, 0x800) if flags & bit]
    if count > _SAMPLES_MAX or count * 4 * len(fields) > trun.end - at:
        raise _broken()
    for _ in range(count):
        offset = 0
        for bit in fields:
            value = struct.unpack_from(">i" if bit == 0x800 and signed else ">I", media, at)[0]
            at += 4
            if bit == 0x100:
                duration = value
            elif bit == 0x200:
                size = value
            elif bit == 0x800:
                offset = value
        yield Sample(time, duration, offset, position, size)
        position += size
        time += duration


def move(media: bytes, first_pts: int) -> bytes:
    """The same fragments, moved so that the earliest presentation time is ``first_pts`` ticks.

    Decoding begins at that time, too: the delay of B-frames goes out of the decode times and into signed
    offsets, as CMAF has it (ISO/IEC 23000-19, 7.5.16). A player that places a segment by its decode time
    (hls.js does) would otherwise find a hole as long as the delay at the start."""
    run = samples(media)
    if not run:
        raise _broken()
    earliest = min(sample.time + sample.offset for sample in run)
    delay = earliest - run[0].time
    out = bytearray(media)
    tracks = [_need(media, "traf", moof.body, moof.end) for moof in boxes(media) if moof.kind == b"moof"]
    runs = [box for traf in tracks for box in boxes(media, traf.body, traf.end) if box.kind == b"trun"]
    if not all(int.from_bytes(media[trun.body + 1 : trun.body + 4]) & 0x800 for trun in runs):
        delay = 0  # There are no offsets to put it in.
    for traf in tracks:
        tfdt = _need(media, "tfdt", traf.body, traf.end)
        wide = media[tfdt.body] == 1
        time = _decode_time(media, tfdt) + first_pts - earliest + delay
        if not 0 <= time < 1 << (64 if wide else 32):
            raise _broken()
        struct.pack_into(">Q" if wide else ">I", out, tfdt.body + 4, time)
    if delay:
        for trun in runs:
            _take_from_offsets(out, trun, delay)
    return bytes(out)


def _take_from_offsets(media: bytearray, trun: Box, delay: int) -> None:
    """Lower every presentation offset of a run, which has them, by ``delay`` ticks; they are signed then."""
    signed = media[trun.body] == 1
    flags = int.from_bytes(media[trun.body + 1 : trun.body + 4])
    count = struct.unpack_from(">I", media, trun.body + 4)[0]
    size = 4 * (flags >> 8 & 0xF).bit_count()
    # The offset is the last field of a sample; before the samples there may be two words.
    at = trun.body + 8 + 4 * (flags & 1) + (flags & 4) + size - 4
    media[trun.body] = 1
    for place in range(at, at + count * size, size):
        offset = struct.unpack_from(">i" if signed else ">I", media, place)[0] - delay
        if not -(1 << 31) <= offset < 1 << 31:
            raise _broken()
        struct.pack_into(">i", media, place, offset)


def audio_segment(media: bytes, run: list[Sample], number: int) -> bytes:
    """One CMAF fragment of these consecutive samples (all of them sync samples, as AAC's are)."""
    sizes = b"".join(struct.pack(">II", sample.duration, sample.size) for sample in run)
    tfhd = _full(b"tfhd", 0, 0x020000, struct.pack(">I", 1))
    tfdt = _full(b"tfdt", 1, 0, struct.pack(">Q", run[0].time))
    mfhd = _full(b"mfhd", 0, 0, struct.pack(">I", number))
    # moof = 8, traf = 8, trun = 12 + count + data offset + sizes; the data begin after mdat's own 8 bytes.
    length = 8 + len(mfhd) + 8 + len(tfhd) + len(tfdt) + 12 + 8 + len(sizes)
    trun = _full(b"trun", 0, 0x000301, struct.pack(">II", len(run), length + 8) + sizes)
    moof = _box(b"moof", mfhd + _box(b"traf", tfhd + tfdt + trun))
    body = b"".join(media[sample.position : sample.position + sample.size] for sample in run)
    return moof + _box(b"mdat", body)


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _full(kind: bytes, version: int, flags: int, body: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags) + body)


def codec(init: bytes) -> str:
    """The RFC 6381 name for CODECS: ``avc1.64001f`` or ``mp4a.40.2``."""
    stsd = _need(init, "moov/trak/mdia/minf/stbl/stsd")
    entry = next(boxes(init, stsd.body + 8, stsd.end), None)
    if entry is None:
        raise _broken()
    if entry.kind == b"mp4a":
        return "mp4a.40.2"  # We encode AAC-LC only.
    avcc = _need(init, "avcC", entry.body + 78, entry.end)
    if avcc.end - avcc.body < 4:
        raise _broken()
    profile, constraints, level = init[avcc.body + 1 : avcc.body + 4]
    return f"avc1.{profile:02x}{constraints:02x}{level:02x}"


def _broken() -> UpstreamError:
    return UpstreamError("An engine returned a video file that cannot be read.", code="malformed_output")
