"""The definitions of the figures, by example."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundswell.core.measure import percentile, tpot_s


def test_the_pace_leaves_the_first_token_out() -> None:
    """Twenty-one tokens have twenty gaps; one token has none."""
    assert tpot_s(11.0, 13.0, 21) == 0.1
    assert tpot_s(11.0, 13.0, 2) == 2.0
    assert tpot_s(11.0, 11.0, 1) is None


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
