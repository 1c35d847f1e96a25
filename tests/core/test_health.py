"""The breaker of one engine: when it wants to open, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from groundswell.core.health import Breaker


def test_three_failures_in_a_row_are_enough() -> None:
    """A dead engine must not get a tenth work."""
    breaker = Breaker(("a", "e"))
    assert [breaker.bad(1.0), breaker.bad(1.1), breaker.bad(1.2)] == [False, False, True]


def test_a_success_in_between_starts_the_row_again() -> None:
    """One bad answer among good ones is life."""
    breaker = Breaker(("a", "e"))
    for now in range(4):
        breaker.good(float(now))
        breaker.good(float(now))
        breaker.good(float(now))
        breaker.good(float(now))
        assert not breaker.bad(float(now))


def test_a_fifth_of_ten_outcomes_is_too_many() -> None:
    """A grey engine fails now and then; the share tells."""
    breaker = Breaker(("a", "e"))
    verdicts = []
    for number in range(12):
        if number % 4:
            breaker.good(1.0)
        else:
            verdicts.append(breaker.bad(1.0))
    assert verdicts == [False, False, False]
    assert breaker.bad(1.0)


def new(breaker: Breaker) -> None:
    """Nothing has happened."""


def closed_by_a_probe(breaker: Breaker) -> None:
    for _ in range(3):
        breaker.bad(0.0)
    breaker.trip(0.0)
    breaker.relent()
    breaker.good(6.0)


def long_silent(breaker: Breaker) -> None:
    for _ in range(2):
        breaker.bad(10.0)
        breaker.good(10.0)


@pytest.mark.parametrize(("before", "now_s"), [(new, 7.0), (closed_by_a_probe, 7.0), (long_silent, 70.0)])
def test_nine_outcomes_are_too_few_to_tell(before: Callable[[Breaker], None], now_s: float) -> None:
    """Of an engine that is new, well again, or was idle for long, nothing older is held against it."""
    breaker = Breaker(("a", "e"))
    before(breaker)
    verdicts = []
    for outcome in ("good", "bad", "good", "good", "bad", "good", "good", "good"):
        verdicts.append(getattr(breaker, outcome)(now_s))
    assert not any(verdicts)
    assert not breaker.bad(now_s)
    assert breaker.bad(now_s), "the tenth"


def test_the_bucket_before_counts_and_no_more_than_it_saw() -> None:
    """Eight outcomes in one bucket and two in the next are ten."""
    breaker = Breaker(("a", "e"))
    for outcome in ("bad", "good", "good", "good", "good", "good", "bad"):
        getattr(breaker, outcome)(14.0)
    breaker.good(16.0)
    assert not breaker.bad(16.0)
    assert breaker.bad(16.0)


def test_what_is_long_ago_does_not_count() -> None:
    """Thirty seconds at most, in two buckets."""
    for later_s, verdict in ((20.0, True), (50.0, False)):
        breaker = Breaker(("a", "e"))
        for _ in range(9):
            breaker.good(16.0)
            breaker.bad(16.0)
        breaker.good(16.0)
        assert breaker.bad(16.0 + later_s) is verdict


def test_it_opens_longer_each_time_and_half_opens_between() -> None:
    """Five seconds, doubling to two minutes."""
    breaker = Breaker(("a", "e"))
    spans = []
    for _ in range(7):
        spans.append(breaker.trip(1.0))
        assert (breaker.open, breaker.half_open) == (True, False)
        breaker.relent()
        assert (breaker.open, breaker.half_open) == (False, True)
        assert breaker.bad(1.0), "half open, one failure decides"
    assert spans == [5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 120.0]


def test_a_good_probe_closes_it_and_time_forgives() -> None:
    """After two quiet minutes the next trouble is a first one."""
    breaker = Breaker(("a", "e"))
    breaker.trip(0.0)
    breaker.relent()
    breaker.good(6.0)
    assert not breaker.half_open
    assert breaker.trip(118.0) == 10.0
    breaker.relent()
    breaker.good(150.0)
    assert breaker.trip(300.0) == 5.0
