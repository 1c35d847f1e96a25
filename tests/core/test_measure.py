"""The definitions of the figures, by example."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundswell.core.measure import (
    Served,
    Target,
    cost_of,
    goodput_per_s,
    is_good,
    percentile,
    queue_wait_s,
    tpot_s,
    ttft_s,
)
from groundswell.model.money import Price, Usage
from groundswell.model.work import WorkClass, WorkState

GOOD = Served(10.0, 10.5, 11.0, 13.0, 21, WorkState.DONE, WorkClass.INTERACTIVE)


def test_waits_begin_at_acceptance() -> None:
    """What the client felt, queueing included."""
    assert queue_wait_s(10.0, 10.5) == 0.5
    assert ttft_s(10.0, 11.0) == 1.0


def test_the_pace_leaves_the_first_token_out() -> None:
    """Twenty-one tokens have twenty gaps; one token has none."""
    assert tpot_s(11.0, 13.0, 21) == 0.1
    assert tpot_s(11.0, 13.0, 2) == 2.0
    assert tpot_s(11.0, 11.0, 1) is None


@pytest.mark.parametrize(
    ("served", "good"),
    [
        (GOOD, True),
        (replace(GOOD, state=WorkState.FAILED), False),
        (replace(GOOD, first_s=12.0), True),
        (replace(GOOD, first_s=12.5), False),
        (replace(GOOD, last_s=15.0), True),
        (replace(GOOD, last_s=16.0), False),
        (replace(GOOD, first_s=None), True),
        (replace(GOOD, output_tokens=1, last_s=11.0), True),
        (replace(GOOD, first_s=None, last_s=None, output_tokens=0), True),
        (replace(GOOD, work_class=WorkClass.BATCH, first_s=9999.0, last_s=99999.0), True),
    ],
)
def test_goodput_counts_what_was_done_in_time(served: Served, good: bool) -> None:
    """An answer that came too late, or not at all, is no good."""
    assert is_good(served) is good


def test_goodput_is_a_rate_over_the_whole_span() -> None:
    """A target may be named; otherwise that of the class holds."""
    assert goodput_per_s([GOOD, GOOD, replace(GOOD, state=WorkState.REFUSED)], 4.0) == 0.5
    assert goodput_per_s([GOOD], 1.0, Target(0.5, 0.5)) == 0.0
    with pytest.raises(ValueError, match="span"):
        goodput_per_s([], 0.0)


def test_cost_is_that_of_the_combined_usage() -> None:
    """Rounded up once."""
    assert cost_of(Usage(1, 1), Price(1_000_000, 2_500_001)) == 4


def test_a_percentile_is_a_value_that_was_seen() -> None:
    """Nearest rank, by example."""
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [percentile(values, one) for one in (1, 20, 21, 50, 99, 100)] == [1.0, 1.0, 2.0, 3.0, 5.0, 5.0]
    assert percentile(range(1, 201), 100) == 200


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_a_percentile_out_of_range_is_an_error(percent: float) -> None:
    """Silence would hide a mistake in a report."""
    with pytest.raises(ValueError, match="percentile"):
        percentile([1.0], percent)


def test_no_values_have_no_percentile() -> None:
    """A zero would look like a very good figure."""
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=60), st.integers(1, 100))
def test_the_percentile_is_the_smallest_that_covers_the_share(values: list[int], percent: int) -> None:
    """Against the plain definition."""
    seen = percentile(values, percent)
    assert sum(one <= seen for one in values) * 100 >= percent * len(values)
    assert sum(one < seen for one in values) * 100 < percent * len(values)
