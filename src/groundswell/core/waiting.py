"""The waiting room: works that have no slot yet, within bounds, most urgent first.

Theory of operation. Works with equal needs wait in one *lane*: whatever keeps the first of them waiting
keeps the others waiting too, so that giving out a slot looks at the heads of a few lanes and never at every
work. In a lane there is a line for each rank: what was lost and must go on, then the classes from live to
batch; within a line, first come, first served. Two bounds hold, on works and on their units (tokens, or
pixels counted as tokens), since a thousand long prompts are not a thousand short ones. Lost work was
accepted once and is never turned away here; there is never more of it than there were slots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from groundswell.core.lease import Entry
from groundswell.core.routing import Need, PoolKey, output_expected
from groundswell.model.work import Kind, Work, WorkClass

RANKS: Final = {one: rank for rank, one in enumerate(WorkClass, start=1)}
RANK_LOST: Final = 0
PIXELS_PER_UNIT: Final = 20_000  # About as long to encode as a token takes to decode.


def units_of(work: Work) -> int:
    """The size of a work in the room's bound, in tokens or what takes as long."""
    if work.kind is Kind.TRANSCODE:
        return work.pixels // PIXELS_PER_UNIT + 1
    return work.prompt_tokens + output_expected(work)


class Lane:
    """Works of equal needs, one line for each rank."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: tuple[OrderedDict[str, Entry], ...] = tuple(OrderedDict() for _ in range(len(RANKS) + 1))

    def head(self) -> Entry | None:
        """The one that is next."""
        for line in self.lines:
            if line:
                return next(iter(line.values()))
        return None

    def __iter__(self) -> Iterator[Entry]:
        for line in self.lines:
            yield from line.values()


class WaitingRoom:
    """All lanes."""

    def __init__(self, works_max: int, units_max: int) -> None:
        self.works_max = works_max
        self.units_max = units_max
        self.works = 0
        self.units = 0
        self._lanes: dict[PoolKey, dict[Need, Lane]] = {}
        self._pool_units: dict[PoolKey, int] = {}

    def admits(self, units: int) -> bool:
        """Whether one more work of this size may wait. An empty room takes a work of any size."""
        return not self.works or (self.works < self.works_max and self.units + units <= self.units_max)

    def add(self, entry: Entry) -> None:
        """The entry waits, last in its line."""
        key = entry.need.pool
        lane = self._lanes.setdefault(key, {}).setdefault(entry.need, Lane())
        lane.lines[entry.rank][entry.work.id] = entry
        self.works += 1
        self.units += entry.units
        self._pool_units[key] = self._pool_units.get(key, 0) + entry.units

    def remove(self, entry: Entry) -> None:
        """The entry waits no longer. An empty lane goes with it."""
        key = entry.need.pool
        lanes = self._lanes[key]
        del lanes[entry.need].lines[entry.rank][entry.work.id]
        self.works -= 1
        self.units -= entry.units
        self._pool_units[key] -= entry.units
        if lanes[entry.need].head() is None:
            del lanes[entry.need]
        if not lanes:
            del self._lanes[key], self._pool_units[key]

    def lanes(self, pools: Iterable[PoolKey]) -> list[Lane]:
        """The lanes of these pools that are not empty."""
        return [lane for key in pools for lane in self._lanes.get(key, {}).values()]

    def pool_units(self, pool: PoolKey) -> int:
        """The units that wait for seats of this pool."""
        return self._pool_units.get(pool, 0)

    def lost(self, pool: PoolKey) -> bool:
        """Whether lost work waits for seats of this pool."""
        return any(lane.lines[RANK_LOST] for lane in self._lanes.get(pool, {}).values())

    def waits(self, need: Need) -> bool:
        """Whether somebody with these needs waits already."""
        return self.works > 0 and need in self._lanes.get(need.pool, {})
