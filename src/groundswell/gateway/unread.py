"""Answers that their clients do not read: how long a client may stand still, and how much may wait for all.

A client is *behind* while writing to it is paused, and after its answer is complete until it has taken the
last byte. Whoever is behind must make *progress*: take ``progress_bytes`` of what waits for it in
``stalled_s``. A byte now and then is none, or it would hold an engine for hours. What waits is counted where
we can see it, in this process; what the kernel holds besides is bounded where the server listens.

Nothing here reads a clock or touches a socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

LOOKS = 6  # In ``stalled_s``: progress is noticed at most a sixth of it late, and so a client is cut.


class Reader(Protocol):
    """A client that is behind; ``protocol.GatewayProtocol``."""

    def cut(self) -> None:
        """Let it go, with all that waits for it."""


@dataclass(slots=True)
class Progress:
    """Whether one client that is behind takes what waits for it. Times in seconds, sizes in bytes."""

    stalled_s: float
    progress_bytes: int
    _since_s: float = 0.0
    _left: int = 0

    def begin(self, now_s: float, left: int) -> None:
        """It has fallen behind by ``left``."""
        self._since_s, self._left = now_s, left

    def stands_still(self, now_s: float, left: int) -> bool:
        """Look again: whether it has taken too little for too long."""
        if left <= self._left - self.progress_bytes:
            self._since_s, self._left = now_s, left
            return False
        self._left = max(self._left, left)  # What was under way when its engine was paused.
        return now_s - self._since_s >= self.stalled_s


class Unread:
    """What waits for all clients that are behind, at most ``bytes_max``: beyond it, who has most is cut.

    Whole answers are what it is for: a stream's engine is paused long before.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes: dict[Reader, int] = {}
        self.total = 0

    def __len__(self) -> int:
        return len(self._bytes)

    def note(self, reader: Reader, left: int) -> None:
        """So much waits for this one now. It, or another, may be cut before this returns."""
        self.total += left - self._bytes.get(reader, 0)
        self._bytes[reader] = left
        while self.total > self._bytes_max:
            most = max(self._bytes, key=self._bytes.__getitem__)
            self.forget(most)
            most.cut()

    def forget(self, reader: Reader) -> None:
        """It has all, or is gone. Idempotent."""
        self.total -= self._bytes.pop(reader, 0)
