"""Timers that are cheap to put off: one heap entry for each alarm, moved only when it comes up.

Theory of operation. A stream puts its stall limit off with every frame, thousands of times a second, and
lets it fire almost never. So putting off is one assignment to ``due_s``; the heap keeps the old, earlier
time. When that time comes the alarm is looked at: not due yet, it goes back with its new time; due, it is
handed out. Setting an alarm earlier than its heap entry adds an entry, and the later one is recognised as
stale by ``queued_s``. Switched-off alarms leave their entry behind until it comes up, or until such entries
outnumber the live ones.
"""

from __future__ import annotations

import heapq
from typing import Final

NEVER: Final = float("inf")
SLACK: Final = 64  # Dead entries that are not worth a rebuild.


class Alarm:
    """Something that may come due. ``due_s`` may be raised freely; lower it only with ``Timers.set``."""

    __slots__ = ("due_s", "queued_s")

    def __init__(self) -> None:
        self.due_s = NEVER
        self.queued_s = NEVER


class Timers:
    """All alarms of one machine, in order of time and then of setting."""

    __slots__ = ("_count", "_dead", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Alarm]] = []
        self._count = 0
        self._dead = 0

    def set(self, alarm: Alarm, due_s: float) -> None:
        """The alarm is due at ``due_s``, whatever it was before."""
        alarm.due_s = due_s
        if due_s < alarm.queued_s:
            self._push(alarm, due_s)

    def off(self, alarm: Alarm) -> None:
        """The alarm never comes due, until it is set again."""
        alarm.due_s = NEVER
        if alarm.queued_s != NEVER:
            self._dead += 1
            if self._dead > SLACK and 2 * self._dead > len(self._heap):
                self._rebuild()

    @property
    def wake_s(self) -> float | None:
        """When ``due`` should be asked next, None for never. It may come too early, never too late."""
        heap = self._heap
        while heap and (heap[0][0] != heap[0][2].queued_s or heap[0][2].due_s == NEVER):
            self._drop()
        return heap[0][0] if heap else None

    def due(self, now_s: float) -> list[Alarm]:
        """Take out every alarm whose time has come, in order. Each is off until it is set again."""
        heap = self._heap
        ripe: list[Alarm] = []
        while heap and heap[0][0] <= now_s:
            alarm = self._drop()
            if alarm is None or alarm.due_s == NEVER:
                continue
            if alarm.due_s > now_s:
                self._push(alarm, alarm.due_s)
                continue
            alarm.due_s = NEVER
            ripe.append(alarm)
        return ripe

    def _drop(self) -> Alarm | None:
        """Pop the first entry; its alarm, unless an earlier entry has taken its place."""
        when_s, _, alarm = heapq.heappop(self._heap)
        if alarm.queued_s != when_s:
            return None
        alarm.queued_s = NEVER
        return alarm

    def _push(self, alarm: Alarm, when_s: float) -> None:
        alarm.queued_s = when_s
        self._count += 1
        heapq.heappush(self._heap, (when_s, self._count, alarm))

    def _rebuild(self) -> None:
        live = []
        for entry in self._heap:
            when_s, _, alarm = entry
            if alarm.queued_s != when_s:
                continue
            if alarm.due_s == NEVER:
                alarm.queued_s = NEVER
            else:
                live.append(entry)
        heapq.heapify(live)
        self._heap = live
        self._dead = 0
