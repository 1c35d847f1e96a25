"""Made-up time: a heap of calls in one total order, (time, sequence). Nothing here waits."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Clock:
    """Seconds since the start of the run. Calls for the same moment run in the order they were asked for."""

    __slots__ = ("_heap", "_sequence", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    def at(self, when_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Run ``call(*arguments)`` at that moment, or now if the moment has passed."""
        self._sequence += 1
        heappush(self._heap, (max(when_s, self.now_s), self._sequence, call, arguments))

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Run ``call(*arguments)`` that many seconds from now."""
        self.at(self.now_s + delay_s, call, *arguments)

    def advance(self, until_s: float) -> bool:
        """Run the next call, unless it lies beyond ``until_s``. False when nothing was run."""
        if not self._heap or self._heap[0][0] > until_s:
            return False
        self.now_s, _, call, arguments = heappop(self._heap)
        call(*arguments)
        return True
