"""Taking engines that misbehave out of rotation, and letting them back.

Theory of operation. Each outcome goes to the breaker of its engine (``core.health``). When a breaker wants to
open, the other seats of the engine's models are looked at first: never are more than half of a model's seats
out by ejection, for when everything fails the fault is hardly the engines'. A dead node is not ejected but
dead, and does not count. When the others die later, lost work may try the ejected ones at once. Both are
rare, so looking at every seat of a model then is cheap enough.
"""

from __future__ import annotations

from groundswell.core.health import OPEN_FIRST_S, Breaker
from groundswell.core.membership import Engine, Members, Standing
from groundswell.core.routing import Ask, Pool, Router, fits
from groundswell.core.timers import Timers


class Outliers:
    """Decides ejections. The engine whose standing changed is handed back, to be looked at again."""

    def __init__(self, members: Members, router: Router, timers: Timers) -> None:
        self._members = members
        self._router = router
        self._timers = timers

    def good(self, now_s: float, engine: Engine) -> Engine | None:
        """A work went well on this engine; a half-open one is closed by it."""
        was_half_open = engine.breaker.half_open
        engine.doubted_s = None
        engine.breaker.good(now_s)
        return engine if was_half_open else None

    def bad(self, now_s: float, engine: Engine) -> Engine | None:
        """A work failed by this engine's fault."""
        engine.doubted_s = now_s
        return self.eject(now_s, engine) if engine.breaker.bad(now_s) else None

    def eject(self, now_s: float, engine: Engine) -> Engine | None:
        """Out of rotation for a while, unless it is gone, out already, or too many others are."""
        engine.doubted_s = now_s
        current = engine.node.engines.get(engine.engine_id) is engine
        if engine.breaker.open or not current or any(map(_half_out, self._router.pools_of(engine))):
            return None
        self._timers.set(engine.breaker, now_s + engine.breaker.trip(now_s))
        return engine

    def relent(self, breaker: Breaker) -> Engine | None:
        """The time is over: one work may try the engine, if it still exists."""
        breaker.relent()
        node_id, engine_id = breaker.owner
        node = self._members.nodes.get(node_id)
        engine = node.engines.get(engine_id) if node else None
        if engine is not None:
            engine.doubted_s = None  # Its turn to be tried has come.
        return engine

    def last_resort(self, now_s: float, pool: Pool, ask: Ask) -> list[Engine]:
        """Let ejected engines be tried at once when nothing else, however busy, could take a lost work.

        An ejection is a guess about the next work; a stream that waits in mid-sentence is certain. One that
        has failed this very work is not tried at once; but if there is no other, it stays out no longer than
        the first time."""
        ejected, failed = [], []
        for seat in pool:
            engine = seat.engine
            if not engine.well or not fits(seat, ask.need):
                continue
            if engine.identity in ask.avoid:
                if engine.breaker.open:
                    failed.append(engine)
            elif engine.breaker.open:
                ejected.append(engine)
            else:
                return []
        if not ejected:
            for engine in failed:
                self._timers.set(engine.breaker, min(engine.breaker.due_s, now_s + OPEN_FIRST_S))
        for engine in ejected:
            self._timers.off(engine.breaker)
            engine.breaker.relent()
        return ejected


def _alive(pool: Pool) -> list[Engine]:
    engines = [seat.engine for seat in pool]
    return [one for one in engines if one.healthy and one.node.standing is Standing.ALIVE]


def _half_out(pool: Pool) -> bool:
    """Whether one more ejection would take more than half of the living seats out."""
    alive = _alive(pool)
    return 2 * (1 + sum(one.breaker.open for one in alive)) > len(alive)
