"""When a refused client should come back."""

from __future__ import annotations

import pytest

from groundswell.core import pace
from groundswell.core.pace import Paces
from groundswell.model.work import Kind

KEY = (Kind.CHAT, "m")


def test_the_wait_is_the_time_to_drain_spread_by_the_draw() -> None:
    """Never before the queue is empty, and not all at once."""
    paces = Paces()
    paces.meet(KEY)
    for _ in range(200):
        paces.learn(KEY, 1000, 10.0)
    waits = [paces.retry_after_s(KEY, 8000, 4, draw) for draw in range(100)]
    assert all(25.0 <= one <= 37.6 for one in waits)
    assert max(waits) - min(waits) > 8.0


def test_the_wait_has_bounds() -> None:
    """A second at least; two minutes at most, as far as official clients go; something sane without slots."""
    paces = Paces()
    paces.meet(KEY)
    paces.learn((Kind.CHAT, "unknown"), 1, 1.0)
    assert all(80.0 <= paces.retry_after_s(KEY, 10**9, 1, draw) <= 120.0 for draw in range(50))
    assert 30.0 <= paces.retry_after_s(KEY, 10**9, 0, 1) <= 45.0
    for _ in range(200):
        paces.learn(KEY, 100, 0.01)
    assert 1.0 <= paces.retry_after_s(KEY, 0, 9, 1) <= 1.5


def test_the_memory_of_models_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that invents model names must not fill our memory."""
    monkeypatch.setattr(pace, "MODELS_MAX", 2)
    paces = Paces()
    for name in "abc":
        paces.meet((Kind.CHAT, name))
    assert (Kind.CHAT, "a") not in paces
    assert (Kind.CHAT, "b") in paces
    assert (Kind.CHAT, "c") in paces
