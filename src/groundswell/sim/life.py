"""One life of a machine: the live ``core.agent.Agent`` of one generation, its engines and its connection.

This is the made-up counterpart of the node's runtime: it starts and stops engines as the agent says, numbers
the frames of each attempt, and sends what the agent replies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from groundswell.core import agent as brain
from groundswell.core.contract import Left
from groundswell.model.messages import Accepted, Ended, Fault, Offer, Output, Refused, ToNode, Withdraw
from groundswell.model.money import Usage
from groundswell.model.node import NodeReport
from groundswell.sim.checks import Checks
from groundswell.sim.clock import Clock
from groundswell.sim.engine import Engine, Frame, Task
from groundswell.sim.faults import Lie
from groundswell.sim.links import Link
from groundswell.sim.scenario import TEXT, EnginePlan, NodePlan

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Setting:
    """What everything in one run shares. ``left`` tells the gateway that a connection broke."""

    clock: Clock
    chance: Random
    checks: Checks
    log: Callable[[str, str], None]
    left: Callable[[str, int], None]


class Life:
    """What one start of a machine's agent process does until it ends."""

    def __init__(self, setting: Setting, plan: NodePlan, generation: int, up: Link) -> None:
        self._setting, self._plan, self._up = setting, plan, up
        self.generation = generation
        self.dead = False
        self.frozen = False
        self.lie: Lie | None = None
        self.engines: dict[str, Engine] = {}
        self._plans = {engine.engine_id: engine for engine in plan.engines}
        self._launched: dict[str, int] = {}
        self._tasks: dict[Key, Task] = {}
        self._frames: dict[Key, int] = {}
        self._backlog: list[tuple[ToNode, Task | None]] = []
        self._wake_s: float | None = None
        self.agent = brain.Agent(
            plan.node_id,
            generation,
            {engine.engine_id: engine.slots for engine in plan.engines},
            region=plan.region,
            trust=plan.trust,
        )
        self.step(brain.Tick())

    def hear(self, message: ToNode, task: Task | None) -> None:
        """A message of the gateway arrives."""
        if self.dead:
            return
        if self.frozen:
            self._backlog.append((message, task))
            return
        if isinstance(message, Withdraw):
            self._setting.checks.called_back(message, self._plan.node_id, self.generation)
        if task is not None:
            self._tasks.setdefault((message.work_id, message.attempt), task)
        self.step(message)

    def flow(self, work_id: str, attempt: int, paused: bool) -> None:
        """The gateway asks to hold an attempt's output back, or to go on. A frozen life does not listen."""
        if not self.dead and not self.frozen:
            for engine in self.engines.values():
                engine.flow((work_id, attempt), paused)

    def step(self, event: brain.Event) -> None:
        """Let the agent take one event, and do what it says."""
        clock = self._setting.clock
        for effect in self.agent.step(clock.now_s, event):
            self._do(effect)
        if self.dead:
            return
        wake_s = self.agent.wake_s
        if wake_s is not None and wake_s != self._wake_s:
            self._wake_s = wake_s
            clock.at(wake_s, self._wake, wake_s)

    def die(self) -> None:
        """The machine's power is gone."""
        self.dead = True
        for engine in self.engines.values():
            engine.die()

    def freeze(self) -> None:
        """Everything of this life stops where it is."""
        if self.frozen:
            return
        self.frozen = True
        for engine in self.engines.values():
            engine.hang()

    def thaw(self) -> None:
        """Everything goes on; what arrived in the meantime is read now."""
        if not self.frozen:
            return
        self.frozen = False
        for engine in self.engines.values():
            engine.release()
        backlog, self._backlog = self._backlog, []
        for message, task in backlog:
            self.hear(message, task)
        if not self.dead:
            self.step(brain.Tick())

    def crash_engine(self, engine_id: str) -> None:
        """The engine's process ends. Broken connections and the exit may be seen in either order."""
        engine = self.engines.pop(engine_id, None)
        if engine is None or self.dead:
            return
        ends = [
            Ended(
                offer.work_id,
                offer.attempt,
                self._frames.get((offer.work_id, offer.attempt), 0),
                fault=Fault.LOST,
            )
            for offer in engine.die()
        ]
        events: list[brain.Event] = [*ends, brain.EngineDown(engine_id)]
        if self._setting.chance.random() < 0.5:
            events.reverse()
        for event in events:
            self._setting.clock.at(self._setting.clock.now_s, self._local, event)

    def find_hung(self, engine_id: str, engine: Engine) -> None:
        """A probe of this life finds that the engine hangs, unless it has come out of it."""
        if self.engines.get(engine_id) is engine and engine.hung and not self.dead and not self.frozen:
            self.step(brain.EngineDown(engine_id, hung=True))

    def _local(self, event: brain.Event) -> None:
        if not self.dead:
            self.step(event)

    def _wake(self, wake_s: float) -> None:
        if self._wake_s == wake_s and not self.dead and not self.frozen:
            self._wake_s = None
            self.step(brain.Tick())

    def _do(self, effect: brain.Effect) -> None:
        match effect:
            case brain.Reply(message):
                self._send(message)
            case brain.Begin(offer):
                self._begin(offer)
            case brain.Stop(work_id, attempt):
                for engine in self.engines.values():
                    engine.stop((work_id, attempt))
            case brain.Launch(engine_id, generation, kill):
                self._launch(engine_id, generation, kill)
            case brain.Report(report):
                self._up.send(self._told(report), None)
            case brain.Drained():
                self._up.send(Left(self._plan.node_id, self.generation), None)
                self.die()

    def _send(self, message: Accepted | Refused | Ended) -> None:
        if isinstance(message, Refused | Ended):
            key = (message.work_id, message.attempt)
            self._tasks.pop(key, None)
            self._frames.pop(key, None)
        self._up.send(message, None)

    def _begin(self, offer: Offer) -> None:
        key = (offer.work_id, offer.attempt)
        engine = self.engines.get(offer.engine_id)
        running = len(engine.streams) + 1 if engine is not None else 0
        plan = self._plans[offer.engine_id]
        self._setting.checks.began(offer, self._plan.node_id, self.generation, running, plan.slots)
        if engine is None:
            # The process is gone and the agent is about to hear of it; the adapter finds nobody there.
            ended = Ended(*key, frames=0, fault=Fault.LOST)
            self._setting.clock.at(self._setting.clock.now_s, self._local, ended)
            return
        fingerprint = next(c.fingerprint for c in plan.capabilities if c.model == offer.model)
        self._frames[key] = 0
        engine.start(offer, self._tasks.pop(key), fingerprint)

    def _launch(self, engine_id: str, generation: int, kill: bool) -> None:
        if kill and (engine := self.engines.pop(engine_id, None)) is not None:
            engine.die()
        self._launched[engine_id] = generation
        self._setting.clock.after(
            self._plans[engine_id].boot_s, self._booted, self._plans[engine_id], generation
        )

    def _booted(self, plan: EnginePlan, generation: int) -> None:
        if self.dead or self._launched[plan.engine_id] != generation:
            return
        if self.frozen:
            self._setting.clock.after(0.1, self._booted, plan, generation)
            return
        engine = Engine(self._setting.clock, plan.gap_s, plan.prefill_s, self._frame, self._end)
        engine.on_poison = self._poisoned
        self.engines[plan.engine_id] = engine
        self.step(brain.EngineUp(plan.engine_id, plan.slots, plan.capabilities))

    def _poisoned(self, offer: Offer) -> None:
        """A work that no engine survives has been run."""
        checks = self._setting.checks
        checks.now_s = self._setting.clock.now_s
        checks.struck(offer, self._plan.node_id)
        self.crash_engine(offer.engine_id)

    def _frame(self, offer: Offer, frame: Frame) -> None:
        key = (offer.work_id, offer.attempt)
        index = self._frames.get(key)
        if index is None:
            return  # Its end was said; what an engine still emits goes nowhere.
        self._frames[key] = index + 1
        self._up.send(Output(*key, index, frame.counted, frame.resumable), frame)

    def _end(self, offer: Offer, produced: int, fault: Fault | None) -> None:
        key = (offer.work_id, offer.attempt)
        times = self.lie.usage_times if self.lie is not None else 1
        usage = Usage(output_tokens=produced * times if offer.kind in TEXT else 0)
        self.step(Ended(*key, frames=self._frames.get(key, 0), usage=usage, fault=fault))

    def _told(self, report: NodeReport) -> NodeReport:
        """The report as this machine tells it, which is not always what its agent said."""
        if self.lie is None:
            return report
        return self.lie.told(report)
