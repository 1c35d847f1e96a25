"""A clock that a test moves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class HandClock:
    """A clock that goes when told to."""

    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s
