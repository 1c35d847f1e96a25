"""One whole run in a made-up world: live brains, made-up machines, links and clients, a made-up clock.

Theory of operation. The world is a heap of calls ordered by (time, sequence). There is one gateway, which is
the live ``core.dispatch.Dispatcher`` with the least around it: the frames that arrived, and for each work
the text that its client was sent. There are machines (``machine``), each living one life after another
(``life``: the live ``core.agent.Agent`` with made-up engines), joined to the gateway by links (``links``) in
bad weather. Nothing in here decides what a brain should decide.

A seed draws the whole scenario beforehand (``scenario``, ``faults``) and then the chance of the run: delays,
losses, the dispatcher's draws. No clock, no other chance and no order of a set enters, so one seed is one
run, and its digest, a hash over every event and effect at the gateway, is equal each time in each process.

A run has two phases. In the *safety* phase works arrive and things go wrong. Then everything is healed, and
in the *liveness* phase, of 30 s, everything that is still open has to end. ``checks`` judge both.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from random import Random

from groundswell.core import contract
from groundswell.core.dispatch import Dispatcher
from groundswell.model.messages import FromNode, Offer, Output, Withdraw
from groundswell.model.node import NodeReport
from groundswell.model.work import WorkState
from groundswell.sim.checks import Checks, Streams
from groundswell.sim.clock import Clock
from groundswell.sim.describe import describe
from groundswell.sim.engine import Frame, Task
from groundswell.sim.life import Setting
from groundswell.sim.machine import Machine
from groundswell.sim.scenario import Scenario, WorkPlan, draw_scenario
from groundswell.sim.watch import Violation

LOOK_EVERY_S = 1.0
SEED_MASK = (1 << 64) - 1
SETTLE_S = 8.0  # After the last end, for strays: a little more than they are allowed.
STEPS_MAX = 200_000  # A run takes about a thousand; a world that spins is a failure, not a wait.


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run. ``violation`` is None when every check held."""

    scenario: Scenario
    digest: str
    events: int
    violation: Violation | None
    log: tuple[str, ...]


def run_seed(seed: int, *, log: bool = False) -> Outcome:
    """Run one seed from beginning to end."""
    return World(draw_scenario(seed), log=log).run()


class World:
    """One run. ``log`` keeps a readable line for everything that happens."""

    def __init__(self, scenario: Scenario, *, log: bool = False) -> None:
        self.scenario = scenario
        self.clock = Clock()
        self.checks = Checks(scenario)
        self._chance = Random(~scenario.seed & SEED_MASK)  # noqa: S311  Chance here has to be repeatable.
        self._hash = blake2b(digest_size=16)
        self._events = 0
        self._log: list[str] | None = [] if log else None
        self._dispatcher = Dispatcher(queue_works_max=scenario.queue_works_max)
        self._wake_s: float | None = None
        self._frames: dict[tuple[str, int, int], Frame] = {}
        setting = Setting(self.clock, self._chance, self.checks, self._say, self._left)
        self._machines = {
            plan.node_id: Machine(setting, plan, scenario.calm_s, self._hear) for plan in scenario.nodes
        }
        for trouble in scenario.troubles:
            self.clock.at(trouble.at_s, self._machines[trouble.node_id].afflict, trouble)
        for plan in scenario.works:
            self.clock.at(plan.arrives_s, self._arrive, plan)
        self.clock.at(LOOK_EVERY_S, self._look)

    def run(self) -> Outcome:
        """Let time pass until everything is over or a check fails."""
        violation = None
        try:
            self._pass_time()
        except Violation as found:
            violation = found
            self._say("VIOLATION ", str(found))
        except Exception as error:
            # A brain that raises is a finding like any other; the cause keeps its traceback.
            violation = Violation("no exception", f"{type(error).__name__}: {error}")
            violation.__cause__ = error
            self._say("VIOLATION ", str(violation))
        digest = self._hash.hexdigest()
        return Outcome(self.scenario, digest, self._events, violation, tuple(self._log or ()))

    def _pass_time(self) -> None:
        end_s = self.scenario.end_s
        over_s = end_s
        steps = 0
        while self.clock.advance(min(end_s, over_s)):
            steps += 1
            if steps > STEPS_MAX:
                raise Violation("time passes", f"{STEPS_MAX} steps and no end")
            if over_s == end_s and self.clock.now_s > self.scenario.calm_s and self.checks.over():
                over_s = self.clock.now_s + SETTLE_S
        self.checks.now_s = self.clock.now_s
        self.checks.at_end(self._streams())

    # --- what reaches the gateway ---

    def _arrive(self, plan: WorkPlan) -> None:
        self.checks.now_s = self.clock.now_s
        self.checks.arrived(plan)
        if plan.cancel_after_s is not None:
            self.clock.after(plan.cancel_after_s, self._cancel, plan.work.id)
        if plan.pause_s is not None:
            self.clock.at(plan.pause_s[0], self._flow, plan.work.id, True)
            self.clock.at(plan.pause_s[1], self._flow, plan.work.id, False)
        self._step(contract.Arrived(plan.work, self._chance.getrandbits(64)))
        self.checks.queue_holds()

    def _flow(self, work_id: str, paused: bool) -> None:
        """A client stops reading, or reads on."""
        self.checks.now_s = self.clock.now_s
        work = self.checks.works[work_id]
        if work.finish is not None:
            return
        self.checks.flows(work_id, paused)
        if work.offer is not None:
            self._machines[work.offer.node_id].flow(work_id, work.offer.attempt, paused)
        self._step(contract.Paused(work_id, paused))

    def _cancel(self, work_id: str) -> None:
        self.checks.now_s = self.clock.now_s
        self.checks.cancelled(work_id)
        self._step(contract.Cancelled(work_id))

    def _left(self, node_id: str, generation: int) -> None:
        self._hear(contract.Left(node_id, generation), None)

    def _hear(self, message: FromNode | NodeReport | contract.Left, frame: Frame | None) -> None:
        checks = self.checks
        checks.now_s = self.clock.now_s
        if isinstance(message, NodeReport):
            checks.reported(message)
            self._step(contract.Reported(message))
            return
        if isinstance(message, contract.Left):
            checks.left(message.node_id, message.generation)
        else:
            checks.heard(message)
        if isinstance(message, Output) and frame is not None:
            # As the gateway does: bytes wait for their turn only if the dispatcher says that it will come.
            key = (message.work_id, message.attempt, message.index)
            self._frames[key] = frame
            self._step(message)
            if not self._dispatcher.keeps(message):
                self._frames.pop(key, None)
            return
        self._step(message)

    def _tick(self, wake_s: float) -> None:
        if self._wake_s == wake_s:
            self._wake_s = None
            self.checks.now_s = self.clock.now_s
            self._step(contract.Tick())

    def _step(self, event: contract.Event) -> None:
        self._events += 1
        self._say("", describe(event))
        for effect in self._dispatcher.step(self.clock.now_s, event):
            self._say("", describe(effect))
            self._do(effect)
        wake_s = self._dispatcher.wake_s
        if wake_s is not None and wake_s != self._wake_s:
            self._wake_s = wake_s
            self.clock.at(wake_s, self._tick, wake_s)

    # --- what the dispatcher wants done ---

    def _do(self, effect: contract.Effect) -> None:
        match effect:
            case contract.Deliver(work_id, attempt, index):
                self.checks.delivered(work_id, attempt, index, self._frames.get((work_id, attempt, index)))
            case contract.Send(node_id, Offer() as offer):
                self.checks.offered(node_id, offer)
                self._machines[node_id].send(offer, self._task(offer))
                if self.checks.works[offer.work_id].paused:
                    self._flow(offer.work_id, True)
            case contract.Send(node_id, Withdraw() as withdraw):
                self.checks.withdrew(withdraw)
                self._machines[node_id].send(withdraw, None)
            case contract.Finish():
                self.checks.finished(effect)

    def _task(self, offer: Offer) -> Task:
        """The payload of an attempt: the text that the client was sent, as far as the offer says."""
        work = self.checks.works[offer.work_id]
        plan = work.plan
        return Task(
            prompt=plan.prompt,
            length=plan.length,
            emitted=tuple(work.text[: offer.emitted_tokens]),
            frame_tokens=plan.frame_tokens,
            unresumable_from=plan.unresumable_from,
            fault=plan.fault,
            kills=plan.poison,
        )

    # --- looking ---

    def _look(self) -> None:
        self.checks.now_s = self.clock.now_s
        self.checks.look(self._streams(), self._waits)
        self.clock.after(LOOK_EVERY_S, self._look)

    def _waits(self, work_id: str) -> bool:
        return self._dispatcher.state(work_id) is WorkState.QUEUED

    def _streams(self) -> Streams:
        return {node_id: machine.streams() for node_id, machine in self._machines.items()}

    def _say(self, what: str, thing: str) -> None:
        """Hash it, and keep it when somebody wants to read it."""
        line = f"{self.clock.now_s:10.4f} {what}{thing}"
        self._hash.update(line.encode())
        if self._log is not None:
            self._log.append(line)
