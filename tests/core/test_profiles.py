"""The shipped priors, and what a profile may be."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from groundswell.core.profiles import BLOCK_TOKENS, DEFAULT_PROFILE, PROFILES, profile_named

PLAIN = PROFILES["h100-8b"]


@pytest.mark.parametrize("name", ["c0_s", "b_s", "kv_blocks", "step_tokens_max", "sequences_max"])
def test_what_work_needs_is_above_zero(name: str) -> None:
    """A step of no length or an engine without a place would keep it busy, or waiting, for ever."""
    with pytest.raises(ValueError, match="above zero"):
        replace(PLAIN, **{name: 0})


@pytest.mark.parametrize("name", ["a2_s", "d_s", "e_s", "ingress_s", "finish_s"])
def test_what_may_cost_nothing_may_not_give_time_back(name: str) -> None:
    """Zero is a fit; below it, more work would take less time."""
    assert getattr(replace(PLAIN, **{name: 0.0}), name) == 0.0
    with pytest.raises(ValueError, match="negative"):
        replace(PLAIN, **{name: -1e-9})


def test_a_slower_engine_takes_longer_for_everything_and_is_no_smaller() -> None:
    """The emulated engine's speed is one number."""
    before, after = asdict(PLAIN), asdict(PLAIN.slower(2.0))
    for name, value in before.items():
        assert after[name] == (2 * value if name.endswith("_s") else value), name


def test_an_unknown_profile_is_the_middle_of_the_shipped_ones() -> None:
    """A URL that the user gave says nothing of its machine."""
    assert all(profile_named(name) is profile for name, profile in PROFILES.items())
    assert profile_named("nobody knows it").name == DEFAULT_PROFILE
    assert PLAIN.kv_tokens == PLAIN.kv_blocks * BLOCK_TOKENS
