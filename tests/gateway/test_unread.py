"""When a client that reads slowly is cut, and who is when too much waits for all of them."""

from __future__ import annotations

from groundswell.gateway.unread import Progress, Unread


def test_a_client_that_takes_enough_is_never_cut_however_slow_it_is() -> None:
    """A thin line is no reason to lose an answer: what counts is that it goes on."""
    progress = Progress(stalled_s=30, progress_bytes=4096)
    progress.begin(0.0, 100_000)
    left = 100_000
    for look in range(1, 25):
        left -= 4096 if look % 6 == 0 else 0
        assert not progress.stands_still(5.0 * look, left)


def test_a_byte_now_and_then_is_no_progress() -> None:
    """It would hold an engine, and the memory of what waits, for hours."""
    progress = Progress(stalled_s=30, progress_bytes=4096)
    progress.begin(0.0, 100_000)
    assert [progress.stands_still(5.0 * look, 100_000 - 100 * look) for look in range(1, 7)] == [
        False
    ] * 5 + [True]


def test_what_was_under_way_when_its_engine_was_paused_is_not_held_against_a_client() -> None:
    """It fell behind by more than was seen first; what it takes counts from there."""
    progress = Progress(stalled_s=30, progress_bytes=4096)
    progress.begin(0.0, 40_000)
    assert not progress.stands_still(25.0, 60_000)
    assert not progress.stands_still(30.0, 55_000)
    assert not progress.stands_still(55.0, 55_000)
    assert progress.stands_still(60.0, 55_000)


class _Reader:
    def __init__(self) -> None:
        self.cuts = 0

    def cut(self) -> None:
        self.cuts += 1


def test_when_too_much_waits_for_all_the_greediest_is_cut() -> None:
    """Memory is one for all; those for whom little waits did no harm."""
    unread = Unread(bytes_max=100)
    small, large, late = _Reader(), _Reader(), _Reader()
    unread.note(small, 10)
    unread.note(large, 80)
    unread.note(late, 20)
    assert (small.cuts, large.cuts, late.cuts) == (0, 1, 0)
    assert (len(unread), unread.total) == (2, 30)


def test_one_that_is_over_the_bound_alone_goes_at_once() -> None:
    """The newest may be the greediest."""
    unread = Unread(bytes_max=100)
    small, huge = _Reader(), _Reader()
    unread.note(small, 60)
    unread.note(huge, 1000)
    assert (small.cuts, huge.cuts, unread.total) == (0, 1, 60)


def test_what_was_taken_counts_no_more() -> None:
    """Otherwise the bound would be reached by clients that are long gone."""
    unread = Unread(bytes_max=100)
    first, second = _Reader(), _Reader()
    unread.note(first, 90)
    unread.note(first, 5)
    unread.note(second, 90)
    unread.forget(first)
    unread.forget(first)
    assert (unread.total, first.cuts, second.cuts) == (90, 0, 0)
