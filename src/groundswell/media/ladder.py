"""The ladder: which renditions a video gets, and how each is encoded.

Rungs are named by their shorter side, so that a portrait video gets the same names. Rates are capped CRF (a
ceiling, not a target), because every segment starts rate control anew and an average would be missed at
each seam. The ceilings follow the usual recommendations for H.264 at up to 30 frames per second (Apple's
HLS authoring specification, Livepeer's presets) and grow by half for more frames.
"""

from __future__ import annotations

from typing import Any

import msgspec

from groundswell.model.errors import BadRequest

RUNGS_MAX = 8
# Name: shorter side in pixels, CRF, ceiling in kbit/s.
PRESETS: dict[str, tuple[int, int, int]] = {
    "2160p": (2160, 23, 18_000),
    "1440p": (1440, 23, 10_000),
    "1080p": (1080, 23, 6_000),
    "720p": (720, 23, 3_500),
    "480p": (480, 23, 1_800),
    "360p": (360, 23, 1_000),
    "240p": (240, 23, 600),
    "144p": (144, 23, 300),
}
DEFAULT = ("1080p", "720p", "480p", "360p")


class Rung(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rendition. ``crf`` is x264's; ``maxrate_kbps`` caps it over a buffer of two seconds."""

    name: str
    width: int
    height: int
    crf: int
    maxrate_kbps: int


class _Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may ask for, one rung of its own."""

    height: int
    crf: int = 23
    maxrate_kbps: int | None = None


def ladder(width: int, height: int, fps: float, wanted: Any = None) -> tuple[Rung, ...]:
    """The rungs for a source of this display size, largest first; never larger than the source.

    ``wanted`` is None (``DEFAULT``), or a list of preset names and
    ``{height, crf?, maxrate_kbps?}`` objects. Raises ``BadRequest`` for anything else.
    """
    short = min(width, height)
    entries = [entry for entry in parse(list(DEFAULT) if wanted is None else wanted) if entry[1] <= short]
    if not entries:
        # A source below the smallest rung asked for keeps its own size.
        entries = [(f"{short - short % 2}p", short, 23, _ceiling_kbps(short))]
    rungs = [_rung(entry, width, height, fps) for entry in entries]
    return tuple(sorted(rungs, key=lambda rung: (-rung.width * rung.height, rung.name)))


def parse(wanted: Any) -> list[tuple[str, int, int, int]]:
    """Check a client's ladder: (name, shorter side, CRF, ceiling in kbit/s) for each rung."""
    if not isinstance(wanted, list) or not 1 <= len(wanted) <= RUNGS_MAX:
        raise BadRequest(f"ladder must be a list of 1 to {RUNGS_MAX} rungs.", param="ladder")
    entries = [_entry(item) for item in wanted]
    if len({entry[0] for entry in entries}) != len(entries):
        raise BadRequest("ladder names a rung twice.", param="ladder")
    return entries


def _entry(item: Any) -> tuple[str, int, int, int]:
    if isinstance(item, str):
        if item not in PRESETS:
            raise BadRequest(f"Unknown rung; the presets are {', '.join(PRESETS)}.", param="ladder")
        return (item, *PRESETS[item])
    try:
        profile = msgspec.convert(item, _Profile, strict=True)
    except msgspec.ValidationError as error:
        raise BadRequest("A rung is a preset name or {height, crf, maxrate_kbps}.", param="ladder") from error
    maxrate = _ceiling_kbps(profile.height) if profile.maxrate_kbps is None else profile.maxrate_kbps
    if not 64 <= profile.height <= 2160 or profile.height % 2:
        raise BadRequest("height must be an even number from 64 to 2160.", param="ladder")
    if not 16 <= profile.crf <= 40 or not 50 <= maxrate <= 50_000:
        raise BadRequest("crf must be 16 to 40 and maxrate_kbps 50 to 50000.", param="ladder")
    return (f"{profile.height}p", profile.height, profile.crf, maxrate)


def _ceiling_kbps(short: int) -> int:
    """The ceiling of the smallest preset that is at least this tall."""
    fitting = [preset[2] for preset in PRESETS.values() if preset[0] >= short]
    return min(fitting, default=PRESETS["2160p"][2])


def _rung(entry: tuple[str, int, int, int], width: int, height: int, fps: float) -> Rung:
    name, short, crf, maxrate = entry
    scale = short / min(width, height)
    faster = 3 if fps > 31 else 2
    return Rung(name, _even(width * scale), _even(height * scale), crf, maxrate * faster // 2)


def _even(length: float) -> int:
    """H.264 in 4:2:0 needs even sides."""
    return max(2, 2 * round(length / 2))
