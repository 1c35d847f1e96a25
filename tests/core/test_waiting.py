"""The waiting room: lanes, lines and bounds."""

from __future__ import annotations

from dataclasses import replace

from fleet import chat

from groundswell.core.lease import Entry
from groundswell.core.routing import need_of
from groundswell.core.waiting import PIXELS_PER_UNIT, RANK_LOST, RANKS, WaitingRoom, units_of
from groundswell.model.work import Kind, WorkClass

KEY = (Kind.CHAT, "m")


def entry(work_id: str, rank: int = 3, units: int = 10, **changes: object) -> Entry:
    work = chat(work_id, **changes)
    return Entry(work, 1, 0.0, need_of(work), rank, units)


def test_equal_needs_share_a_lane_and_other_needs_do_not() -> None:
    """What keeps the first of a lane waiting keeps the others waiting."""
    room = WaitingRoom(10, 1000)
    first, second, third = entry("a"), entry("b"), entry("c", region="north")
    for one in (first, second, third):
        room.add(one)
    lanes = room.lanes([KEY])
    assert [[one.work.id for one in lane] for lane in lanes] == [["a", "b"], ["c"]]
    assert room.waits(first.need)
    room.remove(third)
    assert not room.waits(third.need)


def test_lost_work_is_first_then_the_classes() -> None:
    """And within a line who came first."""
    room = WaitingRoom(10, 1000)
    for work_id, rank in (("s", 3), ("l", RANKS[WorkClass.LIVE]), ("s2", 3), ("lost", RANK_LOST)):
        room.add(entry(work_id, rank))
    (lane,) = room.lanes([KEY])
    assert [one.work.id for one in lane] == ["lost", "l", "s", "s2"]
    head = lane.head()
    assert head is not None
    assert head.work.id == "lost"


def test_bounds_hold_on_works_and_units() -> None:
    """A single work of any size may wait, or it could never run."""
    room = WaitingRoom(2, 100)
    assert room.admits(10_000)
    only = entry("a", units=90)
    room.add(only)
    assert room.admits(10)
    assert not room.admits(11)
    room.add(entry("b", units=1))
    assert not room.admits(1)
    assert room.pool_units(KEY) == 91
    room.remove(only)
    assert room.pool_units(KEY) == room.units == 1


def test_a_work_is_as_large_as_what_it_keeps_busy() -> None:
    """Tokens, and pixels in what takes as long; never nothing."""
    assert units_of(chat(prompt_tokens=10, output_tokens_max=100)) == 110
    video = replace(chat(), kind=Kind.TRANSCODE)
    assert units_of(replace(video, pixels=0)) == 1
    assert units_of(replace(video, pixels=3 * PIXELS_PER_UNIT + 7)) == 4


def test_an_empty_lane_goes() -> None:
    """Nothing is kept of what no longer waits."""
    room = WaitingRoom(2, 100)
    only = entry("a")
    room.add(only)
    (lane,) = room.lanes([KEY])
    room.remove(only)
    assert lane.head() is None
    assert room.lanes([KEY]) == []
    assert room.pool_units(KEY) == room.works == room.units == 0
