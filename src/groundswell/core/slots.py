"""Which slots are ours: every attempt that may hold one, and the engines that may take more.

Theory of operation. A slot counts as ours from the offer until the node says that the attempt is over, or
stops reporting it. So an attempt that was withdrawn keeps its slot until then, and in flight is never above
slots. ``Engine.held`` has the same attempts by engine; both change only here. Whatever may let an engine
take more leaves it in ``freed``, for the dispatcher to fill at the end of its step.
"""

from __future__ import annotations

from groundswell.core.membership import AttemptKey, Engine
from groundswell.core.routing import Router
from groundswell.core.timers import NEVER


class Slots:
    """The slots of all engines that this gateway's attempts may hold."""

    __slots__ = ("_engines", "_router", "freed")

    def __init__(self, router: Router) -> None:
        self._router = router
        self._engines: dict[AttemptKey, Engine] = {}
        self.freed: dict[Engine, None] = {}

    def engine(self, key: AttemptKey) -> Engine | None:
        """Where this attempt may hold a slot."""
        return self._engines.get(key)

    def take(self, key: AttemptKey, engine: Engine) -> None:
        """An offer is on its way. On an engine that is on probation it is the probe."""
        engine.held[key] = NEVER
        self._engines[key] = engine
        if engine.breaker.half_open:
            engine.breaker.probe = key
        self._router.refresh(engine)

    def withdraw(self, now_s: float, key: AttemptKey, engine: Engine) -> bool:
        """The attempt counts no longer. Whether the node may still run it, and must be told."""
        if engine.breaker.probe == key:
            engine.breaker.probe = None
            self.touch(engine)
        if key not in engine.held:
            return False
        engine.held[key] = now_s
        return True

    def release(self, key: AttemptKey) -> None:
        """The node holds this attempt no longer."""
        engine = self._engines.pop(key, None)
        if engine is not None:
            del engine.held[key]
            self.touch(engine)

    def lose(self, engine: Engine) -> list[AttemptKey]:
        """The engine is gone, and with it all that it held."""
        lost = list(engine.held)
        for key in lost:
            del self._engines[key]
        engine.held.clear()
        return lost

    def touch(self, engine: Engine | None) -> None:
        """The free slots or the standing of an engine changed, if there is one."""
        if engine is not None:
            self._router.refresh(engine)
            self.freed[engine] = None
