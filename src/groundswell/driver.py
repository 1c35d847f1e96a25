"""The real clock and loop around a machine: feed it events, perform what it returns, wake it when it asks.

A machine decides (``step(now_s, event) -> effects``) and says when it wants to be woken (``wake_s``). The
driver does the rest, and nothing else: no policy lives here. Events that are raised while effects are being
performed wait in a queue until the running step is done, so that a machine never sees itself half-way.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

_log = logging.getLogger(__name__)

LATE_S = 1.0
PORTION_BYTES = 4096

EventT = TypeVar("EventT")
EffectT = TypeVar("EffectT")
_EventIn = TypeVar("_EventIn", contravariant=True)


class Machine(Protocol[_EventIn, EffectT]):
    """What every brain looks like from outside."""

    @property
    def wake_s(self) -> float | None:
        """When it next wants a tick, on the clock that ``step`` is given; None or infinity: never."""

    def step(self, now_s: float, event: _EventIn) -> list[EffectT]: ...


class Chance:
    """Chance for ids and draws, taken from the system in portions: asking it each time is dear."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """So many bytes that nobody can foretell; at most ``PORTION_BYTES``."""
        at = self._at
        if at + size > len(self._bytes):
            self._bytes, at = os.urandom(PORTION_BYTES), 0
        self._at = at + size
        return self._bytes[at : at + size]

    def draw(self) -> int:
        """64 bits."""
        return int.from_bytes(self.take(8), "little")


class Driver(Generic[EventT, EffectT]):
    """Drives one machine on the running event loop.

    ``perform`` must not block and should not raise: an effect that does is logged, and the others go on.
    ``tick`` is the machine's own event for "time has passed". When a tick is more than ``LATE_S`` late, this
    process itself was stopped or starved: ``hear_first_s`` is how long the machine then first hears what was
    sent meanwhile, before it is told how late it is and takes everybody for silent.
    """

    def __init__(
        self,
        machine: Machine[EventT, EffectT],
        perform: Callable[[EffectT], None],
        tick: EventT,
        hear_first_s: float = 0.0,
    ) -> None:
        self._machine = machine
        self._perform = perform
        self._tick = tick
        self._loop = asyncio.get_running_loop()
        self._queue: deque[EventT] = deque()
        self.stepping = False  # Whether a step is in progress, so that an event fed now waits for its turn.
        self._timer: asyncio.Handle | None = None  # uvloop's for a time that has come is no TimerHandle.
        self._timer_s = 0.0
        self._hear_first_s = hear_first_s
        self._hearing = False
        self._closed = False

    def feed(self, event: EventT) -> None:
        """Step the machine with ``event``, now or right after the step that is in progress."""
        if self._closed:
            return
        if self.stepping:
            self._queue.append(event)
            return
        self.stepping = True
        try:
            self._step(event)
            while self._queue:
                self._step(self._queue.popleft())
        finally:
            self.stepping = False
        wake_s = self._machine.wake_s
        if wake_s is not None and (self._timer is None or wake_s < self._timer_s):
            self._set_timer(wake_s)

    def close(self) -> None:
        """Stop the timer; events that still come are dropped."""
        self._closed = True
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _step(self, event: EventT) -> None:
        try:
            effects = self._machine.step(self._loop.time(), event)
        except Exception:
            # A defect in a brain must not take the process and every other work with it.
            _log.exception("the machine failed on an event", extra={"event": type(event).__name__})
            return
        for effect in effects:
            try:
                self._perform(effect)
            except Exception:
                _log.exception("an effect failed", extra={"effect": type(effect).__name__})

    def _set_timer(self, wake_s: float) -> None:
        """One timer, moved only to an earlier time: a tick that comes too early costs less than a new timer
        for each event, and the machine says again when it wants to be woken."""
        if wake_s == math.inf or self._closed or self._hearing:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_s = self._loop.call_at(wake_s, self._wake), wake_s

    def _wake(self) -> None:
        self._timer = None
        late_s = self._loop.time() - self._timer_s
        if late_s > LATE_S and self._hear_first_s and not self._hearing:
            _log.warning("this process was stopped or starved", extra={"late_s": round(late_s, 1)})
            self._hearing = True
            self._timer = self._loop.call_later(self._hear_first_s, self._wake)
            return
        self._hearing = False
        self.feed(self._tick)
