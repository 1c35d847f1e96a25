"""How fast the seats of each model get work done, and so when a refused client should come back.

Theory of operation. Every finished work teaches what one slot does in a second, in units of the queue's
bound, and how long a work holds its slot. What waits, divided by what all slots do together, is when the
queue will be empty; half a work's time is added for those that run. The prediction is spread by up to a
half with the work's own draw, so that clients that were refused together do not come back together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from groundswell.core.chance import mix, unit
from groundswell.core.routing import PoolKey

MODELS_MAX: Final = 4096  # Models that are remembered when no node offers them any more.
RETRY_MIN_S: Final = 1.0
DRAIN_MAX_S: Final = 80.0  # With the spread at most 120 s, as far as official clients wait.
UNKNOWN_S: Final = 30.0  # Without a single slot nothing can be predicted.
LEARN: Final = 0.1


@dataclass(slots=True)
class _Pace:
    """One pool: units per second of one slot, and seconds that a work holds it."""

    units_s: float = 50.0
    service_s: float = 5.0


class Paces:
    """The pace of every model that was ever offered, within bounds."""

    def __init__(self) -> None:
        self._paces: dict[PoolKey, _Pace] = {}

    def __contains__(self, pool: PoolKey) -> bool:
        return pool in self._paces

    def meet(self, pool: PoolKey) -> None:
        """A node offers this model. Beyond the bound the model that was met first is forgotten."""
        self._paces.setdefault(pool, _Pace())
        if len(self._paces) > MODELS_MAX:
            del self._paces[next(iter(self._paces))]

    def learn(self, pool: PoolKey, units: int, busy_s: float) -> None:
        """A work of so many units held a slot for so long."""
        pace = self._paces.get(pool)
        if pace is not None:
            pace.units_s += LEARN * (max(units, 1) / busy_s - pace.units_s)
            pace.service_s += LEARN * (busy_s - pace.service_s)

    def retry_after_s(self, pool: PoolKey, waiting_units: int, slots: int, draw: int) -> float:
        """When to come back, in seconds, 1 to 120."""
        pace = self._paces.get(pool) or _Pace()
        drain_s = waiting_units / (pace.units_s * slots) + pace.service_s / 2 if slots else UNKNOWN_S
        return max(RETRY_MIN_S, min(drain_s, DRAIN_MAX_S)) * (1.0 + 0.5 * unit(mix(draw)))
