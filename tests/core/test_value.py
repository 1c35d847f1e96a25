"""Values are compared by what they say, and may be keys."""

from __future__ import annotations

from dataclasses import replace

from groundswell.core.contract import Deliver
from groundswell.model.messages import Accepted, Withdraw


def test_values_are_equal_by_kind_and_fields_and_may_be_keys() -> None:
    """Transcripts compare them, and sets hold them."""
    assert Deliver("w", 1, 2) == Deliver("w", 1, 2) != Deliver("w", 1, 3)
    assert Accepted("w", 1) != Withdraw("w", 1)
    assert len({Deliver("w", 1, 2), Deliver("w", 1, 2), replace(Deliver("w", 1, 2), index=3)}) == 2


def test_a_value_has_no_room_for_what_is_not_one_of_its_fields() -> None:
    """A misspelt field must not pass for a new one."""
    assert not hasattr(Deliver("w", 1, 2), "__dict__")
