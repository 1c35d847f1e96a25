"""HLS playlists for video on demand (RFC 8216): a master playlist, and one media playlist per rendition.

All addresses are relative, so that the files play from any place they are copied to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

AUDIO_NAME = "audio"


# Of the files of a result, by suffix.
CONTENT_TYPES = {".m3u8": "application/vnd.apple.mpegurl", ".m4s": "video/iso.segment", ".mp4": "video/mp4"}


@dataclass(frozen=True, slots=True)
class Piece:
    """One segment of a rendition: its file, its initialisation segment's file, length and size."""

    uri: str
    init: str
    duration_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Rendition:
    """One rung, as the master playlist describes it. ``name`` is also its folder."""

    name: str
    width: int
    height: int
    fps: float
    codec: str
    pieces: Sequence[Piece]


def media_playlist(pieces: Sequence[Piece]) -> str:
    """All segments of one rendition. A new initialisation segment (another encoder) is a discontinuity."""
    longest_s = max(piece.duration_s for piece in pieces)
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        # Every segment's length, rounded to the nearest second, must stay within the target (4.3.3.1).
        f"#EXT-X-TARGETDURATION:{max(1, math.floor(longest_s + 0.5))}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:VOD",
        "#EXT-X-INDEPENDENT-SEGMENTS",
    ]
    init = None
    for piece in pieces:
        if piece.init != init:
            if init is not None:
                lines.append("#EXT-X-DISCONTINUITY")
            init = piece.init
            lines.append(f'#EXT-X-MAP:URI="{init}"')
        lines += [f"#EXTINF:{piece.duration_s:.6f},", piece.uri]
    return "\n".join([*lines, "#EXT-X-ENDLIST", ""])


def master_playlist(renditions: Sequence[Rendition], audio: Sequence[Piece], audio_codec: str) -> str:
    """All renditions, with one sound track that they share when there is one."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-INDEPENDENT-SEGMENTS"]
    if audio:
        lines.append(
            f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="{AUDIO_NAME}",NAME="Audio",DEFAULT=YES,AUTOSELECT=YES,'
            f'CHANNELS="2",URI="{AUDIO_NAME}/index.m3u8"'
        )
    audio_peak, audio_mean = _rates(audio)
    for rendition in renditions:
        peak, mean = _rates(rendition.pieces)
        codecs = f"{rendition.codec},{audio_codec}" if audio else rendition.codec
        group = f',AUDIO="{AUDIO_NAME}"' if audio else ""
        lines += [
            f"#EXT-X-STREAM-INF:BANDWIDTH={peak + audio_peak},AVERAGE-BANDWIDTH={mean + audio_mean},"
            f"RESOLUTION={rendition.width}x{rendition.height},FRAME-RATE={rendition.fps:.3f},"
            f'CODECS="{codecs}"{group}',
            f"{rendition.name}/index.m3u8",
        ]
    return "\n".join([*lines, ""])


def _rates(pieces: Sequence[Piece]) -> tuple[int, int]:
    """(peak, mean) bits per second. The peak is over segments of at least half the target (4.3.4.2)."""
    if not pieces:
        return 0, 0
    target_s = max(piece.duration_s for piece in pieces)
    counted = [piece for piece in pieces if piece.duration_s >= target_s / 2]
    peak = max(math.ceil(piece.size_bytes * 8 / piece.duration_s) for piece in counted)
    total_s = sum(piece.duration_s for piece in pieces)
    return peak, math.ceil(sum(piece.size_bytes for piece in pieces) * 8 / total_s)
