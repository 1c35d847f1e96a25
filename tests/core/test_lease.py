"""One attempt: the frames it lets through, its part of the backlog, and how long it may be silent."""

from __future__ import annotations

from typing import Any

import pytest
from fleet import chat, report

from groundswell.core.lease import WINDOW_FRAMES, Entry, Lease
from groundswell.core.membership import Members
from groundswell.core.routing import need_of
from groundswell.core.timers import NEVER, Timers
from groundswell.model.messages import Output


def lease(now_s: float = 1.0, **changes: Any) -> Lease:
    """An attempt that is offered now; its work arrived at 0.5 s."""
    change = Members(Timers()).report(0.0, report("a"))
    assert change is not None
    work = chat(**changes)
    return Lease(Entry(work, 1, 0.5, need_of(work), 3, 10), 1, change.added[0], now_s)


def frame(index: int, tokens: int = 1, **changes: Any) -> Output:
    return Output("w", 1, index, tokens, **changes)


def flowing(left: int = 0) -> Lease:
    one = lease()
    one.load(0, left)
    one.first_content(2.0)
    return one


def test_frames_that_came_too_early_are_let_through_behind_the_one_they_waited_for() -> None:
    """Links reorder and repeat; the client sees one order, each frame once."""
    one = lease()
    assert one.admit(frame(1)) == []
    assert one.admit(frame(1)) == [], "a copy"
    assert one.admit(frame(0)) == [frame(0), frame(1)]
    assert one.admit(frame(0)) == [], "a late copy"
    assert one.admit(frame(2)) == [frame(2)]
    assert not one.early


def test_what_is_held_for_later_is_bounded() -> None:
    """A broken engine that numbers its frames at random must not fill our memory."""
    one = lease()
    assert one.admit(frame(WINDOW_FRAMES + 1)) == []
    assert not one.early
    assert one.admit(frame(WINDOW_FRAMES)) == []
    assert list(one.early) == [WINDOW_FRAMES]


def test_an_attempt_stands_in_the_backlog_until_it_is_over() -> None:
    """The next decision sees it at once, and nothing stays behind of it."""
    one = lease()
    engine = one.engine
    engine.backlog, engine.prefill_tokens, engine.others = 7, 5, 2
    engine.held[("w", 1)] = NEVER
    one.load(40, 140)
    assert (engine.backlog, engine.prefill_tokens, one.sequences) == (147, 45, 3)
    one.unload()
    one.unload()
    assert (engine.backlog, engine.prefill_tokens) == (7, 5)


def test_the_prompt_leaves_the_backlog_with_the_first_content_and_tokens_as_they_come() -> None:
    """The backlog is what is still to be done, however much the engine says beyond its budget."""
    one = lease()
    engine = one.engine
    engine.backlog = engine.prefill_tokens = 1000
    one.load(40, 43)
    one.first_content(2.0)
    assert (engine.backlog, engine.prefill_tokens, one.left) == (1003, 1000, 3)
    one.flow(2.0, frame(0, tokens=2))
    assert (engine.backlog, one.left) == (1001, 1)
    one.flow(2.1, frame(1, tokens=5))
    assert (engine.backlog, one.left, one.tokens) == (1000, 0, 7)


def test_more_prompt_than_work_takes_no_more_than_there_is() -> None:
    """An estimate may be odd; the backlog must not sink below what others have there."""
    one = lease()
    one.engine.backlog = 100
    one.load(40, 10)
    one.first_content(2.0)
    assert (one.engine.backlog, one.left) == (100, 0)


def test_the_first_content_is_remembered_once() -> None:
    """Time to first token counts from the first attempt that sent any; a later one changes nothing."""
    one = lease()
    one.first_content(2.0)
    entry = one.entry
    assert (entry.sent, entry.ttft_s, entry.fingerprint) == (True, 1.5, "f")
    assert (one.first_s, one.last_s, one.flowing, one.limit_s) == (2.0, 2.0, True, 4.0)
    entry.fingerprint = "of the first"
    one.first_content(9.0)
    assert (entry.ttft_s, entry.fingerprint, one.first_s) == (1.5, "of the first", 2.0)


def test_an_answer_that_is_not_streamed_has_sent_nothing_before_its_end() -> None:
    """So it may start again elsewhere, and keeps the limit for all of it."""
    one = lease(streaming=False)
    one.limit_s = 99.0
    one.first_content(2.0)
    one.flow(3.0, frame(0))
    assert (one.entry.sent, one.entry.ttft_s, one.flowing, one.limit_s) == (False, None, False, 99.0)
    assert (one.first_s, one.last_s, one.due_s) == (2.0, 3.0, NEVER)


@pytest.mark.parametrize(("gap_s", "limit_s"), [(0.01, 2.0), (0.3, 3.0), (0.35, 3.5), (3.0, 4.0)])
def test_the_stall_limit_follows_ten_median_gaps_within_bounds(gap_s: float, limit_s: float) -> None:
    """From two to four seconds; a fast stream that stops is moved sooner."""
    one = flowing()
    now_s = 2.0
    for index in range(50):
        now_s += gap_s
        one.flow(now_s, frame(index))
    assert one.limit_s == pytest.approx(limit_s, rel=0.1)
    assert 2.0 <= one.limit_s <= 4.0
    assert one.due_s == now_s + one.limit_s


def test_the_stall_limit_moves_by_tenths() -> None:
    """One odd gap says little about the next."""
    one = flowing()
    one.flow(2.1, frame(0))
    assert one.limit_s == pytest.approx(4.0 / 1.1)
    one.flow(2.6, frame(1))
    assert one.limit_s == pytest.approx(4.0)
    one.limit_s = 2.0
    one.flow(3.1, frame(2))
    assert one.limit_s == pytest.approx(2.2)


def test_a_frame_that_cannot_be_continued_marks_the_work() -> None:
    """A tool call that has begun, for one; nothing later takes it back."""
    one = flowing()
    one.flow(2.1, frame(0))
    assert one.entry.resumable
    one.flow(2.2, frame(1, resumable=False))
    one.flow(2.3, frame(2))
    assert not one.entry.resumable
