"""The breaker of one engine: it is taken out of rotation for a while when its recent outcomes are bad.

Theory of operation. Closed, it counts. Three failures in a row, more than a fifth of at least ten outcomes
in 30 s, or all its streams hung at once open it: no new work for 5 s, doubling with each time up to 120 s.
After that it is half open: one single work is let through, and its outcome decides. Whether it *may* open is
for the caller to say, who sees the other engines: if more than half of a model's seats would be out, the
fault is more likely ours or the work's, and taking more away only makes it worse (Envoy's panic threshold).
The window is two buckets of 15 s, so that an outcome costs a few additions.
"""

from __future__ import annotations

from typing import Final

from groundswell.core.timers import Alarm

FAILURES_IN_ROW: Final = 3
OUTCOMES_MIN: Final = 10
FAILURE_SHARE: Final = 0.2
BUCKET_S: Final = 15.0
OPEN_FIRST_S: Final = 5.0
OPEN_MAX_S: Final = 120.0
FORGIVEN_S: Final = 120.0  # Closed this long, the next opening is a first one again.


class Breaker(Alarm):
    """Closed, open until ``due_s``, or half open. ``owner`` is (node id, engine id), over all restarts."""

    __slots__ = (
        "_bucket_s",
        "_counts",
        "_in_row",
        "_trips",
        "closed_s",
        "half_open",
        "open",
        "owner",
        "probe",
    )

    def __init__(self, owner: tuple[str, str]) -> None:
        super().__init__()
        self.owner = owner
        self.open = False
        self.half_open = False
        self.probe: tuple[str, int] | None = None
        self.closed_s = 0.0
        self._trips = 0
        self._in_row = 0
        self._bucket_s = 0.0
        self._counts = [0, 0, 0, 0]  # good and bad of this bucket, good and bad of the one before

    def good(self, now_s: float) -> None:
        """A work went well. Half open, that closes it."""
        self._turn(now_s)
        self._counts[0] += 1
        self._in_row = 0
        if self.half_open:
            self._clear(now_s)

    def bad(self, now_s: float) -> bool:
        """A work failed by the engine's fault. True: it is time to open."""
        self._turn(now_s)
        self._counts[1] += 1
        self._in_row += 1
        failed = self._counts[1] + self._counts[3]
        seen = failed + self._counts[0] + self._counts[2]
        often = seen >= OUTCOMES_MIN and failed > FAILURE_SHARE * seen
        return self.half_open or often or self._in_row >= FAILURES_IN_ROW

    def trip(self, now_s: float) -> float:
        """Open it; seconds until it is half open."""
        if now_s - self.closed_s > FORGIVEN_S and not self.half_open:
            self._trips = 0
        open_s = min(OPEN_FIRST_S * 2.0**self._trips, OPEN_MAX_S)
        self._trips += open_s < OPEN_MAX_S
        self.open, self.half_open, self.probe = True, False, None
        return open_s

    def relent(self) -> None:
        """The time is over: let one work through."""
        self.open, self.half_open, self.probe = False, True, None

    def _clear(self, now_s: float) -> None:
        self.half_open, self.probe, self.closed_s = False, None, now_s
        self._counts = [0, 0, 0, 0]

    def _turn(self, now_s: float) -> None:
        """Begin a new bucket when this one is full; what is older than two is forgotten."""
        if now_s - self._bucket_s < BUCKET_S:
            return
        fresh = now_s - self._bucket_s < 2 * BUCKET_S
        self._counts = [0, 0, *self._counts[:2]] if fresh else [0, 0, 0, 0]
        self._bucket_s = now_s
