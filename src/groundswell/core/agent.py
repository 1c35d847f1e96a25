"""The agent: a node's own brain. It gives out slots, keeps its engines alive and says what it has.

Theory of operation. The gateway decides what runs where; the agent only keeps the promises of its machine:
never more attempts on an engine than it has slots, one answer for each offer, and the truth in each report.

An attempt is known by (work id, attempt number) and is in one of three places: unknown, running on an engine,
or *over*. What is over stays remembered for a while together with the answer that was given, because links
repeat and reorder: a second copy of an offer gets the first answer again instead of a second run, and a
withdrawal that overtakes its offer wins, since it makes the attempt over before it began. The memory is
bounded in time and number, so that it follows the load and not the age of the node; an offer that comes after
its attempt was forgotten is the gateway's to withdraw when a report shows it.

An engine is down, starting or up. Going down ends its attempts as lost and raises its generation, which tells
gateways that what ran before is gone even when the messages about it were not heard. It is launched again at
once the first time, then after 0.5 s doubling to 30 s, so that one crash costs little and a crash loop
costs nothing; a minute up forgets the past. Engines given by URL take the same events; launching them is
nothing more than probing them again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, assert_never

from groundswell.model.messages import Accepted, Ended, Fault, Offer, Refusal, Refused, Withdraw
from groundswell.model.node import Capability, EngineReport, NodeReport
from groundswell.model.value import value

REPORT_EVERY_S: Final = 2.0  # The heartbeat; gateways suspect a node after three missed ones.
BACKOFF_FIRST_S: Final = 0.5  # The second launch in a row waits this long, then doubling.
BACKOFF_MAX_S: Final = 30.0
STABLE_S: Final = 60.0  # An engine that was up this long starts over with a launch at once.
OVER_MAX: Final = 4096  # Attempts that are over and still remembered with their answer.
OVER_S: Final = 60.0  # For so long: an offer is given up after 2 s, and no link holds a copy much longer.

# --- events: besides these, Offer and Withdraw from a gateway and Ended from an engine (an adapter) ---


@value
class EngineUp:
    """A probe of the engine succeeded: it is ready and can do this."""

    engine_id: str
    slots: int
    capabilities: tuple[Capability, ...]


@value
class EngineDown:
    """The engine's process ended, or its health probes failed. ``hung``: it must be killed first."""

    engine_id: str
    hung: bool = False


@value
class Drain:
    """Take nothing new; say when empty."""


@value
class Tick:
    """Nothing happened but time."""


Event = Offer | Withdraw | Ended | EngineUp | EngineDown | Drain | Tick

# --- effects: what to do ---


@value
class Reply:
    """Tell the gateway."""

    message: Accepted | Refused | Ended


@value
class Begin:
    """Start this attempt on its engine."""

    offer: Offer


@value
class Stop:
    """Stop an attempt that runs; no frame of it may be sent after this."""

    work_id: str
    attempt: int


@value
class Launch:
    """Start the engine's process (again). ``kill``: end what is left of the old one first."""

    engine_id: str
    generation: int
    kill: bool = False


@value
class Report:
    """Send this heartbeat."""

    report: NodeReport


@value
class Drained:
    """Draining, and the last attempt has ended."""


Effect = Reply | Begin | Stop | Launch | Report | Drained


# --- the machine ---


class _Engine:
    """One engine as the agent keeps it. ``launch_s`` is set while it is down and waits to be launched."""

    __slots__ = (
        "attempts", "capabilities", "engine_id", "generation", "kill", "launch_s", "launches", "slots",
        "slots_max", "up", "up_since_s",
    )  # fmt: skip

    def __init__(self, engine_id: str, slots_max: int) -> None:
        self.engine_id = engine_id
        self.slots_max = slots_max
        self.slots = 0
        self.capabilities: tuple[Capability, ...] = ()
        self.generation = 1
        self.up = False
        self.up_since_s = 0.0
        self.launches = 0
        self.launch_s: float | None = 0.0
        self.kill = False
        self.attempts: dict[tuple[str, int], None] = {}

    def report(self) -> EngineReport:
        return EngineReport(
            self.engine_id, self.generation, self.slots, len(self.attempts), self.up, self.capabilities
        )

    def serves(self, offer: Offer) -> bool:
        if self.up:
            for one in self.capabilities:
                if offer.model == one.model and offer.kind in one.kinds:
                    return True
        return False


class Agent:
    """Gives out the slots of one node.

    ``engines`` maps each engine's id to the most slots the operator lends of it, 0 for as many as its probe
    finds. ``generation`` must be higher than at every earlier start of this node. The first step, whatever
    its event, launches every engine and sends the first report, so the driver begins with a ``Tick``.
    """

    def __init__(
        self,
        node_id: str,
        generation: int,
        engines: Mapping[str, int],
        *,
        region: str = "",
        trust: int = 1,
        labels: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.node_id = node_id
        self.generation = generation
        self.region = region
        self.trust = trust
        self.labels = labels
        self.draining = False
        self._engines = {engine_id: _Engine(engine_id, slots) for engine_id, slots in engines.items()}
        self._where: dict[tuple[str, int], _Engine] = {}
        self._over: OrderedDict[tuple[str, int], tuple[float, Ended | Refused]] = OrderedDict()
        self._sequence = 0
        self._report_s = 0.0
        self._report_now = True
        self._due_s = 0.0  # The next report or launch.
        self._said_drained = False

    @property
    def wake_s(self) -> float | None:
        """When the agent wants its next ``Tick``, on the clock that ``step`` is given."""
        return 0.0 if self._report_now else self._due_s

    @property
    def running(self) -> int:
        """How many attempts hold a slot now."""
        return len(self._where)

    def step(self, now_s: float, event: Event) -> list[Effect]:
        """Take one event in, hand back everything that should now be done, in order."""
        effects: list[Effect] = []
        match event:
            case Offer():
                self._offered(now_s, event, effects)
            case Withdraw():
                self._withdrawn(now_s, event, effects)
            case Ended():
                self._ended(now_s, event, effects)
            case EngineUp():
                self._up(now_s, event)
            case EngineDown():
                self._down(now_s, event, effects)
            case Drain():
                self._report_now = self._report_now or not self.draining
                self.draining = True
            case Tick():
                pass
            case _:
                assert_never(event)
        looks = self._report_now or now_s >= self._due_s
        if looks:
            self._launch_due(now_s, effects)
        if self.draining and not self._where and not self._said_drained:
            self._said_drained = True
            effects.append(Drained())
        if looks:
            if self._report_now or now_s >= self._report_s:
                effects.append(self._report(now_s))
            launches = [one.launch_s for one in self._engines.values() if one.launch_s is not None]
            self._due_s = min([self._report_s, *launches])
        return effects

    def _offered(self, now_s: float, offer: Offer, effects: list[Effect]) -> None:
        key = (offer.work_id, offer.attempt)
        over = self._over.get(key)
        if over is not None:
            effects.append(Reply(over[1]))
            return
        if key in self._where:
            effects.append(Reply(Accepted(*key)))
            return
        engine = self._engines.get(offer.engine_id)
        if self.draining:
            self._finish(now_s, key, Refused(*key, Refusal.DRAINING), effects)
        elif engine is None or not engine.serves(offer):
            self._finish(now_s, key, Refused(*key, Refusal.NO_ENGINE), effects)
        elif len(engine.attempts) >= engine.slots:
            self._finish(now_s, key, Refused(*key, Refusal.FULL), effects)
        else:
            engine.attempts[key] = None
            self._where[key] = engine
            effects += [Reply(Accepted(*key)), Begin(offer)]

    def _withdrawn(self, now_s: float, withdraw: Withdraw, effects: list[Effect]) -> None:
        """Stop it, or make sure that it never starts; either way say that it holds no slot here."""
        key = (withdraw.work_id, withdraw.attempt)
        if key in self._where:
            effects.append(Stop(*key))
        over = self._over.get(key)
        answer = over[1] if over is not None else Ended(*key, frames=0, fault=Fault.CANCELLED)
        self._finish(now_s, key, answer, effects)

    def _ended(self, now_s: float, ended: Ended, effects: list[Effect]) -> None:
        key = (ended.work_id, ended.attempt)
        engine = self._where.get(key)
        if engine is None:
            return  # It was withdrawn or lost before, and that was said.
        if ended.fault is None:
            engine.launches = 0  # What has done a work is in no crash loop: when it dies, it starts at once.
        self._finish(now_s, key, ended, effects)

    def _finish(
        self, now_s: float, key: tuple[str, int], answer: Ended | Refused, effects: list[Effect]
    ) -> None:
        """Free the slot, remember the answer, and give it."""
        engine = self._where.pop(key, None)
        if engine is not None:
            del engine.attempts[key]
        self._over.pop(key, None)  # The memory is in the order of the answers.
        self._over[key] = (now_s, answer)
        if len(self._over) > OVER_MAX:
            self._over.popitem(last=False)
        effects.append(Reply(answer))

    def _up(self, now_s: float, event: EngineUp) -> None:
        engine = self._engines.get(event.engine_id)
        if engine is None:
            return
        slots = min(event.slots, engine.slots_max) if engine.slots_max else event.slots
        if not engine.up:
            engine.up_since_s = now_s
        before = (engine.up, engine.slots, engine.capabilities)
        engine.up, engine.slots, engine.capabilities = True, slots, event.capabilities
        engine.launch_s = None
        self._due_s = now_s
        self._report_now = self._report_now or before != (True, slots, event.capabilities)

    def _down(self, now_s: float, event: EngineDown, effects: list[Effect]) -> None:
        engine = self._engines.get(event.engine_id)
        if engine is None:
            return
        engine.kill = engine.kill or event.hung
        if engine.launch_s is not None:
            return  # It is known to be down; the next launch is already set.
        # Whoever hung was given up by us, and may have been frozen by its machine: that is no death of the
        # work's making, which would make a poison of it.
        fault = Fault.STALLED if event.hung else Fault.LOST
        for key in list(engine.attempts):
            effects.append(Stop(*key))
            self._finish(
                now_s, key, Ended(*key, frames=0, fault=fault, detail="the engine went down"), effects
            )
        if engine.up and now_s - engine.up_since_s >= STABLE_S:
            engine.launches = 0
        self._report_now = self._report_now or engine.up
        engine.up = False
        engine.generation += 1
        doubled_s = BACKOFF_FIRST_S * 2.0 ** min(engine.launches - 1, 16)
        self._due_s = now_s
        engine.launch_s = now_s + (0.0 if engine.launches == 0 else min(doubled_s, BACKOFF_MAX_S))

    def _launch_due(self, now_s: float, effects: list[Effect]) -> None:
        for engine in self._engines.values():
            if engine.launch_s is not None and engine.launch_s <= now_s:
                effects.append(Launch(engine.engine_id, engine.generation, engine.kill))
                if engine.generation > 1:
                    engine.launches += 1
                engine.launch_s = None
                engine.kill = False

    def _forget(self, now_s: float) -> None:
        """Drop what has been over for long."""
        over = self._over
        while over and next(iter(over.values()))[0] < now_s - OVER_S:
            over.popitem(last=False)

    def _report(self, now_s: float) -> Report:
        self._forget(now_s)
        self._sequence += 1
        self._report_s = now_s + REPORT_EVERY_S
        self._report_now = False
        return Report(
            NodeReport(
                node_id=self.node_id,
                generation=self.generation,
                sequence=self._sequence,
                engines=tuple(one.report() for one in self._engines.values()),
                attempts=tuple(self._where),
                draining=self.draining,
                region=self.region,
                trust=self.trust,
                labels=self.labels,
            )
        )
