"""Which nodes there are, which of them are well, and what each of their engines can take.

Theory of operation. A node is what its last report says, as long as reports come: after three missed
heartbeats it is *suspect* and gets nothing new, after 10 s of silence it is *dead* and what ran there is
lost. A link that knows better (a goodbye, a broken connection) says so at once. Two numbers keep ghosts
out. The generation rises with each start of a node: a report of an older one is ignored, of a newer one
ends the older. The sequence rises with each report: what arrives late or twice is ignored, also after the
node was declared dead, so that only a node that speaks *again* comes back. Engines have a generation of
their own, since they are restarted under a node that lives on.

An ``Engine`` also carries what this gateway itself has running on it, since a decision must count the one
before it at once; reports only add what other gateways have there.

Everything here is bookkeeping: a change is handed back as a value, and the dispatcher does what follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from groundswell.core.chance import name_hash
from groundswell.core.health import Breaker
from groundswell.core.timers import Alarm, Timers
from groundswell.model.node import Capability, EngineReport, NodeReport

SUSPECT_S: Final = 6.0  # Three heartbeats of 2 s.
DEAD_S: Final = 10.0
DOUBT_S: Final = 10.0  # A node finds a stopped engine within 4 s; one still well after this had a bad moment.
NODES_MAX: Final = 16_384  # Nodes remembered; the longest dead are forgotten first, with their generation.
CAPABILITIES_MAX: Final = 4_096  # Different ones kept to be shared; beyond it they are gathered anew.

AttemptKey = tuple[str, int]
Identity = tuple[str, int, str, int]


class Standing(StrEnum):
    """How a node stands."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


class Seat:
    """One model on one engine: what routing chooses between."""

    __slots__ = ("capability", "engine", "key", "salt")

    def __init__(self, engine: Engine, capability: Capability) -> None:
        self.engine = engine
        self.capability = capability
        self.key = "\n".join((engine.node.node_id, engine.engine_id, capability.model))
        self.salt = name_hash(self.key)


class Engine:
    """One engine of one node, as this gateway sees it.

    ``held`` are our attempts that may occupy a slot there, with the time at which they were withdrawn: never
    for those that run; the others stay until the node confirms. ``others`` is how many slots other gateways
    had at the last report. ``doubted_s`` is when a work last failed here, until one goes well, the engine is
    restarted, or its node has called it healthy for long enough since.
    ``backlog`` is our token-work (or pixels) that is still to be done, ``prefill_tokens`` the prompts of ours
    that have no first token yet.
    """

    __slots__ = (
        "backlog", "breaker", "doubted_s", "engine_id", "generation", "healthy", "held", "node", "others",
        "prefill_tokens", "seats", "slots",
    )  # fmt: skip

    def __init__(self, node: Node, engine_id: str, breaker: Breaker) -> None:
        self.node = node
        self.engine_id = engine_id
        self.generation = 0
        self.slots = 0
        self.others = 0
        self.healthy = False
        self.seats: dict[str, Seat] = {}
        self.held: dict[AttemptKey, float] = {}
        self.backlog = 0
        self.prefill_tokens = 0
        self.doubted_s: float | None = None
        self.breaker = breaker

    @property
    def identity(self) -> Identity:
        """This very process: (node, its generation, engine, its generation)."""
        return (self.node.node_id, self.node.generation, self.engine_id, self.generation)

    @property
    def well(self) -> bool:
        """It would take work, for all that its node says."""
        node = self.node
        return node.standing is Standing.ALIVE and not node.draining and self.healthy

    @property
    def available(self) -> bool:
        """It would take work if it had a free slot."""
        return self.well and not self.breaker.open

    @property
    def free(self) -> int:
        """Slots that we may fill now. Asked often, so ``available`` and the rarer question come last."""
        free = self.slots - self.others - len(self.held)
        if free <= 0 or not self.available:
            return 0
        if self.breaker.half_open:
            return int(self.breaker.probe is None)
        return free


class Node(Alarm):
    """One node. Its alarm is the next moment at which silence would change its standing."""

    __slots__ = (
        "breakers", "draining", "engines", "generation", "node_id", "region", "seen_s", "sequence",
        "standing", "trust",
    )  # fmt: skip

    def __init__(self, node_id: str) -> None:
        super().__init__()
        self.node_id = node_id
        self.generation = -1
        self.sequence = -1
        self.seen_s = 0.0
        self.standing = Standing.DEAD
        self.draining = False
        self.region = ""
        self.trust = 0
        self.engines: dict[str, Engine] = {}
        self.breakers: dict[str, Breaker] = {}


@dataclass(slots=True)
class Change:
    """What a report or a silence changed. ``gone``: all that was held there is lost. ``restarted``: lost is
    what the report does not list. ``touched``: free slots or standing may differ."""

    added: list[Seat] = field(default_factory=list)
    removed: list[Seat] = field(default_factory=list)
    touched: list[Engine] = field(default_factory=list)
    restarted: list[Engine] = field(default_factory=list)
    gone: list[Engine] = field(default_factory=list)


class Members:
    """All nodes that were ever heard of, within bounds."""

    def __init__(self, timers: Timers) -> None:
        self.nodes: dict[str, Node] = {}
        self._timers = timers
        self._capabilities: dict[Capability, Capability] = {}

    def engines(self) -> Iterator[Engine]:
        """Every engine of every node that is not dead, in the order in which they were first heard of."""
        for node in self.nodes.values():
            yield from node.engines.values()

    def report(self, now_s: float, report: NodeReport) -> Change | None:
        """Take a report in. None when it is a ghost's, late or a copy."""
        node = self.nodes.get(report.node_id)
        if node is None:
            node = self.nodes[report.node_id] = Node(report.node_id)
            self._forget_one()
        if (report.generation, report.sequence) <= (node.generation, node.sequence):
            return None
        change = Change()
        if report.generation > node.generation:
            self._bury(node, change)
            node.generation = report.generation
        node.sequence, node.seen_s, node.standing = report.sequence, now_s, Standing.ALIVE
        node.draining, node.region, node.trust = report.draining, report.region, report.trust
        self._timers.set(node, now_s + SUSPECT_S)
        self._engines(now_s, node, report, change)
        return change

    def left(self, node_id: str, generation: int) -> Change | None:
        """The link says that this generation is gone. None when it was known, or is an older one."""
        node = self.nodes.get(node_id)
        if node is None or node.generation != generation or node.standing is Standing.DEAD:
            return None
        change = Change()
        self._die(node, change)
        return change

    def silent(self, now_s: float, node: Node) -> Change:
        """The node's alarm came due: it is suspect, or dead."""
        change = Change()
        if now_s >= node.seen_s + DEAD_S:
            self._die(node, change)
        else:
            node.standing = Standing.SUSPECT
            self._timers.set(node, node.seen_s + DEAD_S)
            change.touched = list(node.engines.values())
        return change

    def _die(self, node: Node, change: Change) -> None:
        node.standing = Standing.DEAD
        self._timers.off(node)
        self._bury(node, change)

    def _bury(self, node: Node, change: Change) -> None:
        """Everything that this generation of the node had is gone."""
        for engine in node.engines.values():
            self._end(engine, change)
        node.engines = {}

    def _end(self, engine: Engine, change: Change) -> None:
        engine.healthy = False
        change.gone.append(engine)
        change.removed += engine.seats.values()
        engine.seats = {}

    def _engines(self, now_s: float, node: Node, report: NodeReport, change: Change) -> None:
        seen = set()
        for said in report.engines:
            seen.add(said.engine_id)
            engine = node.engines.get(said.engine_id)
            if engine is None:
                breaker = node.breakers.setdefault(said.engine_id, Breaker((node.node_id, said.engine_id)))
                engine = node.engines[said.engine_id] = Engine(node, said.engine_id, breaker)
            elif engine.generation != said.generation:
                change.restarted.append(engine)
            self._engine(now_s, engine, said, change)
        for engine_id in [one for one in node.engines if one not in seen]:
            engine = node.engines.pop(engine_id)
            self._timers.off(node.breakers.pop(engine_id))
            self._end(engine, change)

    def _engine(self, now_s: float, engine: Engine, said: EngineReport, change: Change) -> None:
        if engine.doubted_s is not None:
            restarted = engine.generation != said.generation
            if restarted or (said.healthy and now_s - engine.doubted_s >= DOUBT_S):
                engine.doubted_s = None
        engine.generation, engine.slots, engine.healthy = said.generation, said.slots, said.healthy
        capabilities = {one.model: one for one in said.capabilities}
        for model, seat in list(engine.seats.items()):
            if capabilities.get(model) != seat.capability:
                change.removed.append(engine.seats.pop(model))
        for model, capability in capabilities.items():
            if model not in engine.seats:
                seat = engine.seats[model] = Seat(engine, self._shared(capability))
                change.added.append(seat)
        change.touched.append(engine)

    def _shared(self, capability: Capability) -> Capability:
        """The one object for all that are equal: most machines of a fleet can do the same."""
        if len(self._capabilities) >= CAPABILITIES_MAX:
            self._capabilities = {}
        return self._capabilities.setdefault(capability, capability)

    def _forget_one(self) -> None:
        if len(self.nodes) > NODES_MAX:
            known = (one for one in self.nodes.values() if one.generation >= 0)
            dead = (one for one in known if one.standing is Standing.DEAD)
            oldest = min(dead, key=lambda one: one.seen_s, default=None)
            if oldest is not None:
                del self.nodes[oldest.node_id]
