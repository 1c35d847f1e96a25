"""The demuxing child: ``python -m groundswell.media.demux`` probes a user's file or cuts it into segments.

Theory of operation. Packets are copied, never decoded (the probe decodes one picture, to learn its rotation
and to know that it can be decoded at all). A segment begins at the first key frame that is at least
``target_s`` after the last cut, and becomes one NUT file, which keeps any codec and its exact time base.
All times move by the same whole number of seconds, so that B-frames never make one negative. With open GOPs
the pictures that follow a key frame but are shown before it belong to the segment before; they need that
key frame, so both are added to the segment before as well, and the task's ``end`` says where that segment
really ends.

This process trusts nothing in the file and is trusted with nothing: it confines itself before the file is
opened, the demuxer is named by our own look at the first bytes, and its answer is one line of JSON.
"""

from __future__ import annotations

import errno
import itertools
import sys
from array import array
from fractions import Fraction
from pathlib import Path
from statistics import median_low
from typing import Any

import msgspec

from groundswell.media.sandbox import Limits, confine

SHIFT_S = 10
TICKS_PER_S = 90_000
FPS_MAX = 60
# Rates that exist in the world; a measured rate within a thousandth of one of them is that one.
_RATES = tuple(
    Fraction(*pair)
    for pair in (
        (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1),
        (15, 1), (12, 1), (10, 1),
    )
)  # fmt: skip
RATE_SLACK = Fraction(1003, 1000)  # Containers round; 60.06 pictures a second are 60.
# Those that NUT can hold; ProRes, DNxHD and ALAC are not among them.
VIDEO_CODECS = frozenset(
    (
        "h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "theora", "ffv1",
        "h263",
    )
)  # fmt: skip
AUDIO_CODECS = frozenset(
    (
        "aac", "mp3", "mp2", "opus", "vorbis", "ac3", "eac3", "flac", "pcm_s16le", "pcm_s16be", "pcm_s24le",
        "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_u8", "pcm_alaw", "pcm_mulaw",
    )
)  # fmt: skip
SIDE_MAX = 8192  # As of a rung: a strip 65,535 pixels long has no rendition.


class Ask(msgspec.Struct, frozen=True):
    """What the parent wants: a probe, or (with ``folder``) a split as well; ``parent_pid`` is who asks."""

    path: str
    format: str
    parent_pid: int
    memory_bytes: int
    cpu_s: int
    file_bytes: int
    pixels_max: int
    streams_max: int
    duration_max_s: float
    segment_bytes_max: int
    segment_max_s: float
    folder: str = ""
    target_s: float = 4.0


class MediaInfo(msgspec.Struct, frozen=True):
    """What a file holds. Width and height as displayed: turned upright, with square pixels."""

    format: str
    video_codec: str
    width: int
    height: int
    rotation: int
    fps: float
    duration_s: float | None
    audio_codec: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    """One segment: ``start`` and ``end`` (exclusive) in ticks of 1/90000 s, frames between them, its file."""

    index: int
    file: str
    start: int
    end: int
    frames: int
    size: int


class Split(msgspec.Struct, frozen=True):
    """A file cut up. ``rate`` is frames per second as (numerator, denominator); ``vfr`` says that frames come
    at uneven times and have to be put on that rate's grid."""

    chunks: list[Chunk]
    rate: tuple[int, int]
    vfr: bool
    audio_file: str | None


class Answer(msgspec.Struct, frozen=True):
    """One of ``info``, ``rejected`` and ``no_room`` is set; ``rejected`` is a sentence for the client,
    ``no_room`` says that the disk is full, which is no fault of the file."""

    info: MediaInfo | None = None
    split: Split | None = None
    rejected: str | None = None
    no_room: bool = False


class Rejected(Exception):
    """The file cannot be used; the message is for its owner."""


class _Writer:
    """One NUT file that packets of one stream are copied into."""

    def __init__(self, path: Path, template: Any, time_base: Fraction) -> None:
        import av

        self.path = path
        self._out = av.open(str(path), "w", format="nut")
        self._stream = self._out.add_stream_from_template(template, opaque=True)
        self._stream.time_base = time_base
        self._last_dts: int | None = None
        self._second = time_base.denominator

    def write(self, packet: Any) -> None:
        # A demuxer may leave gaps in dts; NUT does not keep it, but the muxer insists on order.
        kept = (packet.pts, packet.dts, packet.duration, packet.time_base)
        if packet.dts is not None:
            dts = min(packet.dts, packet.pts)
        else:
            # Early enough to stay below whatever B-frames come before the first known one.
            dts = packet.pts - self._second if self._last_dts is None else self._last_dts + 1
        if self._last_dts is not None and dts <= self._last_dts:
            dts = self._last_dts + 1
        if dts > packet.pts:
            raise Rejected("The time stamps of the file are out of order.")
        self._last_dts = packet.dts = dts
        packet.stream = self._stream
        self._out.mux(packet)
        # The muxer may have changed the packet's times to a base of its own; a key frame is written twice.
        packet.pts, packet.dts, packet.duration, packet.time_base = kept

    def close(self) -> int:
        self._out.close()
        return self.path.stat().st_size


class _Segment:
    """The segment being written, with the times of the frames that are shown in it."""

    def __init__(self, index: int, writer: _Writer, key_pts: int) -> None:
        self.index, self.writer, self.key_pts = index, writer, key_pts
        self.shown = array("q")
        self.last_end = key_pts
        self.bytes = 0

    def add(self, packet: Any) -> None:
        self.bytes += packet.size
        self.writer.write(packet)

    def show(self, packet: Any, step: int) -> None:
        if packet.pts >= self.key_pts and not packet.is_discard:
            self.shown.append(packet.pts)
            self.last_end = max(self.last_end, packet.pts + (packet.duration or step))


class Splitter:
    """Cuts one video stream; feed it packets in the file's order, then ``close``."""

    def __init__(self, ask: Ask, stream: Any, shift_s: int) -> None:
        self.ask, self.stream = ask, stream
        # 10 s must be a whole number of ticks, which a base such as 1001/30000 does not give.
        self.scale = stream.time_base.numerator
        self.time_base = Fraction(1, stream.time_base.denominator)
        self.shift = shift_s * stream.time_base.denominator
        self.target = int(ask.target_s * stream.time_base.denominator)
        self.segment_max = int(ask.segment_max_s * stream.time_base.denominator)
        self.length_max = int(ask.duration_max_s * stream.time_base.denominator)
        guess = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.step = max(1, int(1 / (guess * self.time_base)))
        self.done: list[tuple[_Segment, int]] = []
        self.current: _Segment | None = None
        self.key: Any = None
        self.leading: list[Any] = []
        self.bytes, self.counted = 0, 0  # Of all segments; and of the current one, what is among them.

    def feed(self, packet: Any) -> None:
        pts = packet.dts if packet.pts is None else packet.pts
        if pts is None:
            raise Rejected("The video has no time stamps.")
        packet.pts = pts * self.scale + self.shift
        packet.dts = None if packet.dts is None else packet.dts * self.scale + self.shift
        packet.duration = (packet.duration or 0) * self.scale
        packet.time_base = self.time_base
        self._check()
        if self.key is not None:
            if packet.pts < self.key.pts:
                self.leading.append(packet)
                return
            self._cut()
        if self.current is None:
            if packet.is_keyframe:
                self._begin(packet)
            return
        if packet.is_keyframe and packet.pts - self.current.key_pts >= self.target:
            self.key = packet
            return
        if packet.pts < self.current.key_pts and self.current.index > 0:
            raise Rejected("The time stamps of the file go backwards.")
        self.current.add(packet)
        self.current.show(packet, self.step)

    def close(self) -> list[tuple[_Segment, int]]:
        if self.key is not None:
            self._cut()
        if self.current is not None:
            self._check()
            self.done.append((self.current, self.current.writer.close()))
        return [(segment, size) for segment, size in self.done if segment.shown]

    def _begin(self, key: Any) -> None:
        index = len(self.done)
        latest = self.length_max + 2 * SHIFT_S * self.time_base.denominator
        if index == 0 and not 0 <= key.pts <= latest:
            raise Rejected("The video begins at a time that makes no sense.")
        writer = _Writer(Path(self.ask.folder) / f"{index:05d}.nut", self.stream, self.time_base)
        self.current = _Segment(index, writer, key.pts)
        self.current.add(key)
        self.current.show(key, self.step)

    def _cut(self) -> None:
        """The key frame that waited begins a new segment; its leading pictures end the one before."""
        assert self.current is not None
        if self.leading:
            self.current.add(self.key)
            for packet in self.leading:
                self.current.add(packet)
                self.current.show(packet, self.step)
        self.done.append((self.current, self.current.writer.close()))
        self.counted = 0
        key, self.key, self.leading = self.key, None, []
        self._begin(key)

    def _check(self) -> None:
        """Hold what was read so far against the limits; a file may claim anything about what is to come."""
        if self.current is None:
            return
        length = self.current.last_end - self.current.key_pts
        if self.current.bytes > self.ask.segment_bytes_max or length > self.segment_max:
            raise Rejected("The video has too few key frames to be cut into segments of a usable size.")
        # One piece of data may be many frames of a small file, which would fill the disk.
        self.bytes += self.current.bytes - self.counted
        self.counted = self.current.bytes
        if self.bytes > self.ask.file_bytes:
            raise Rejected("The file uses the same data again and again.")
        first = self.done[0][0] if self.done else self.current
        if self.current.last_end - first.key_pts > self.length_max:
            raise Rejected(f"The video is longer than {self.ask.duration_max_s:.0f} s.")


def inspect(container: Any, ask: Ask) -> MediaInfo:
    """Check a file's streams against the limits and say what it holds."""
    if len(container.streams) > ask.streams_max:
        raise Rejected(f"The file has more than {ask.streams_max} streams.")
    if not container.streams.video:
        raise Rejected("The file has no video stream.")
    video = container.streams.video[0]
    context = video.codec_context
    # A decoder's own name, such as libdav1d or mp3float, is not that of the codec.
    if context is None or context.codec.canonical_name not in VIDEO_CODECS:
        raise Rejected("The video codec is not one that is accepted.")
    _check_size(context.width, context.height, ask)
    audio = container.streams.audio[0] if container.streams.audio else None
    sound = None if audio is None else audio.codec_context
    if audio is not None and (sound is None or sound.codec.canonical_name not in AUDIO_CODECS):
        raise Rejected("The audio codec is not one that is accepted.")
    duration_s = container.duration / 1_000_000 if container.duration else None
    if duration_s is not None and duration_s > ask.duration_max_s:
        raise Rejected(f"The video is longer than {ask.duration_max_s:.0f} s.")
    frame = _first_frame(container, video)
    _check_size(frame.width, frame.height, ask)
    width, height = frame.width, frame.height
    aspect = video.sample_aspect_ratio
    if aspect and Fraction(1, 10) < aspect < 10:
        width = round(width * aspect)
    rotation = int(round(getattr(frame, "rotation", 0) / 90) * 90) % 360
    if rotation in (90, 270):
        width, height = height, width
    _check_size(width, height, ask)
    return MediaInfo(
        format=container.format.name.split(",")[0],
        video_codec=context.codec.canonical_name,
        width=width,
        height=height,
        rotation=rotation,
        fps=float(video.average_rate or video.guessed_rate or 0),
        duration_s=duration_s,
        audio_codec=None if sound is None else sound.codec.canonical_name,
    )


def _check_size(width: int, height: int, ask: Ask) -> None:
    if width * height > ask.pixels_max or min(width, height) < 16 or max(width, height) > SIDE_MAX:
        raise Rejected("The picture size is outside of what is accepted.")


def _first_frame(container: Any, video: Any) -> Any:
    """Decode one picture; reading stops early whatever the file claims."""
    video.thread_count = 1
    for packet in itertools.islice(container.demux(video), 250):
        frames = packet.decode()
        if frames:
            return frames[0]
    raise Rejected("No picture in the video can be decoded.")


def split(container: Any, ask: Ask) -> Split:
    """Copy the packets of the first video and the first audio stream into NUT files in ``ask.folder``."""
    video = container.streams.video[0]
    audio = container.streams.audio[0] if container.streams.audio else None
    start_s = (container.start_time or 0) // 1_000_000
    shift_s = SHIFT_S - start_s
    cutter = Splitter(ask, video, shift_s)
    sound = None if audio is None else _Sound(ask, audio, shift_s)
    for packet in container.demux([stream for stream in (video, audio) if stream is not None]):
        if packet.size == 0:
            continue
        if packet.stream.index == video.index:
            cutter.feed(packet)
        elif sound is not None:
            sound.feed(packet)
    segments = cutter.close()
    audio_file = None if sound is None else sound.close()
    if not segments:
        raise Rejected("The video has no key frame to begin at.")
    return _describe(segments, cutter.time_base, audio_file)


class _Sound:
    """Copies the audio stream into one file."""

    def __init__(self, ask: Ask, stream: Any, shift_s: int) -> None:
        self.scale = stream.time_base.numerator
        self.time_base = Fraction(1, stream.time_base.denominator)
        self.shift = shift_s * stream.time_base.denominator
        self.bytes_max = ask.segment_bytes_max
        self.bytes, self.last = 0, -1
        self.writer = _Writer(Path(ask.folder) / "audio.nut", stream, self.time_base)

    def feed(self, packet: Any) -> None:
        pts = packet.dts if packet.pts is None else packet.pts
        self.bytes += packet.size
        if self.bytes > self.bytes_max:
            raise Rejected("The sound track is too large.")
        if pts is None or pts * self.scale + self.shift < 0:
            return
        # Containers that count milliseconds may give two short packets the same time.
        self.last = packet.pts = packet.dts = max(pts * self.scale + self.shift, self.last + 1)
        packet.duration = (packet.duration or 0) * self.scale
        packet.time_base = self.time_base
        self.writer.write(packet)

    def close(self) -> str | None:
        self.writer.close()
        return "audio.nut" if self.bytes else None


def _describe(segments: list[tuple[_Segment, int]], base: Fraction, audio_file: str | None) -> Split:
    shown = sorted(pts for segment, _ in segments for pts in segment.shown)
    rate, vfr = frame_rate(shown, base)
    # A cut is where a segment's first frame is shown; the last one ends where its last frame does.
    cuts = [min(segment.shown) for segment, _ in segments]
    cuts.append(max(segment.last_end for segment, _ in segments))
    # On the grid of a rate, or exactly where the source has them.
    grid = [round(cut * base * rate) for cut in cuts]
    ticks = [round_ticks(n / rate) for n in grid] if vfr else [round_ticks(cut * base) for cut in cuts]
    chunks: list[Chunk] = []
    for place, (segment, size) in enumerate(segments):
        frames = grid[place + 1] - grid[place] if vfr else len(segment.shown)
        if frames > 0:
            file = segment.writer.path.name
            chunks.append(Chunk(len(chunks), file, ticks[place], ticks[place + 1], frames, size))
    if not chunks:
        raise Rejected("The video has no frame that lasts.")
    return Split(chunks, (rate.numerator, rate.denominator), vfr, audio_file)


def frame_rate(shown: list[int], base: Fraction) -> tuple[Fraction, bool]:
    """(frames per second, whether frames come at uneven times) from all presentation times, sorted.

    Even means: within 1.5 ms and one tick of a straight line, which is what containers that count
    milliseconds do to an even rate.
    """
    if len(shown) < 3 or shown[-1] == shown[0]:
        return Fraction(25), False
    step = Fraction(shown[-1] - shown[0], len(shown) - 1)
    slack = Fraction(3, 2000) / base + 1
    even = all(abs(pts - shown[0] - place * step) <= slack for place, pts in enumerate(shown))
    measured = 1 / (step * base) if even else 1 / (max(1, median_low(_steps(shown))) * base)
    rate = _nearest(measured)
    if even and measured <= FPS_MAX * RATE_SLACK:
        return rate, False
    return min(rate, Fraction(FPS_MAX)), True


def _steps(shown: list[int]) -> list[int]:
    return [after - before for before, after in itertools.pairwise(shown)]


def _nearest(measured: Fraction) -> Fraction:
    # Millisecond containers put the step of 30 frames per second at 33 ms: three per cent off.
    best = min(_RATES, key=lambda rate: abs(rate - measured) / rate)
    if abs(best - measured) <= best * Fraction(3, 1000) or measured > FPS_MAX:
        return best if measured <= FPS_MAX else Fraction(FPS_MAX)
    return max(Fraction(1), measured.limit_denominator(1001))


def round_ticks(seconds: Fraction) -> int:
    """Seconds in ticks of 1/90000, halves away from zero, as ffmpeg rounds when it changes a time base."""
    return int(seconds * TICKS_PER_S * 2 + 1) // 2


def answer(ask: Ask) -> Answer:
    """Do what is asked; whatever the file makes libavformat say becomes one sentence."""
    import av

    options = {
        "protocol_whitelist": "file",
        "format_whitelist": "mov,mp4,matroska,webm,mpegts,avi,ogg,flv",
        "probesize": "8000000",
        "analyzeduration": "10000000",
        "max_streams": str(ask.streams_max + 1),  # With one too many there is something to refuse.
    }
    try:
        with av.open(ask.path, format=ask.format, options=options) as container:
            info = inspect(container, ask)
        if not ask.folder:
            return Answer(info=info)
        with av.open(ask.path, format=ask.format, options=options) as container:
            return Answer(info=info, split=split(container, ask))
    except Rejected as error:
        return Answer(rejected=str(error))
    except (av.FFmpegError, OSError, ValueError, IndexError, OverflowError, MemoryError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return Answer(no_room=True)
        return Answer(rejected="The file is damaged, or is not a video of an accepted format.")


def main() -> None:
    """Read an ``Ask`` as JSON from standard input, write an ``Answer`` to standard output."""
    ask = msgspec.json.decode(sys.stdin.buffer.read(), type=Ask)
    confine(Limits(ask.memory_bytes, ask.cpu_s, ask.file_bytes), ask.parent_pid)
    sys.stdout.buffer.write(msgspec.json.encode(answer(ask)))


if __name__ == "__main__":
    main()
