"""Which renditions a source gets."""

from __future__ import annotations

from typing import Any

import pytest

from groundswell.media.ladder import RUNGS_MAX, ladder
from groundswell.model.errors import BadRequest


def names(width: int, height: int, wanted: Any = None) -> list[str]:
    return [rung.name for rung in ladder(width, height, 30, wanted)]


def test_the_default_ladder_begins_at_the_source_and_never_above() -> None:
    """Scaling up costs bytes and shows nothing more."""
    assert names(1920, 1080) == ["1080p", "720p", "480p", "360p"]
    assert names(1280, 720) == ["720p", "480p", "360p"]
    assert names(3840, 2160)[0] == "1080p"


def test_a_source_below_every_rung_keeps_its_size() -> None:
    """Somebody with a tiny video still gets one."""
    (rung,) = ladder(321, 181, 30)
    assert (rung.width, rung.height) == (322, 180) or (rung.width % 2, rung.height % 2) == (0, 0)


def test_an_upright_video_is_named_by_its_shorter_side() -> None:
    """720p of a phone's video is 720 wide."""
    assert [(rung.name, rung.width, rung.height) for rung in ladder(1080, 1920, 30)][1] == ("720p", 720, 1280)


def test_sides_are_even_whatever_the_aspect() -> None:
    """H.264 in 4:2:0 has no odd sides."""
    for width in range(1900, 1941, 7):
        assert all(rung.width % 2 == rung.height % 2 == 0 for rung in ladder(width, 1080, 30))


def test_more_frames_get_a_higher_ceiling() -> None:
    """Sixty pictures a second need more bits than thirty."""
    slow, fast = ladder(1920, 1080, 30)[0], ladder(1920, 1080, 60)[0]
    assert fast.maxrate_kbps == slow.maxrate_kbps * 3 // 2


def test_a_client_may_describe_rungs_of_its_own() -> None:
    """Presets do not fit everybody."""
    (rung,) = ladder(1920, 1080, 30, [{"height": 540, "crf": 25, "maxrate_kbps": 2000}])
    assert (rung.name, rung.width, rung.height, rung.crf, rung.maxrate_kbps) == ("540p", 960, 540, 25, 2000)


@pytest.mark.parametrize(
    "wanted",
    [
        [], "720p", {"height": 720}, ["720p"] * (RUNGS_MAX + 1), ["720p", "720p"], ["8000p"], [5], [None],
        [{"height": 10**5}], [{"height": 721}], [{"height": 720, "crf": -1}],
        [{"height": 720, "maxrate_kbps": -1}], [{"height": 720, "filter": "movie=/etc/passwd"}],
        [{"height": "720"}], [{}], ["720p", {"height": 720}],
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_the_clients_error(wanted: Any) -> None:
    """Nobody's ladder becomes ffmpeg's filter text."""
    with pytest.raises(BadRequest):
        ladder(1920, 1080, 30, wanted)
