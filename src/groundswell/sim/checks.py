"""What must be true: *always*, at every event, and *within* a bound, looked at once a second.

Both kinds are needed. A dispatcher that ignores a lost node breaks no *always* check: the stall limit or
the deadline repairs the damage later, and every work still ends exactly once. Only a bound on *when* a lost
work moves on tells the two apart.

The checks see what crosses the seam (events in, effects out) and the truth of the made-up world (what really
runs where). Of the brain's own view they ask one thing, whether a work waits, and only to excuse it; so a
bug cannot hide from them by being consistent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from groundswell.core.contract import Finish
from groundswell.model.messages import Ended, Fault, FromNode, Offer, Refused, Withdraw
from groundswell.model.node import NodeReport
from groundswell.model.work import WorkState
from groundswell.sim.engine import Frame
from groundswell.sim.scenario import TEXT, Scenario, WorkPlan
from groundswell.sim.text import text_of
from groundswell.sim.watch import Place, Violation, Watched

# Bounds. Where the brain has a limit of its own, the bound is that limit plus what a wake-up, a link's delay
# and the second between two looks may add.
CANCEL_FREES_S = 2.0
ORPHAN_S = 7.0  # Three heartbeats and a link's delay: what one side forgot is found by the other.
SILENCE_S = 6.0  # The stall limit is at most 4 s.
SILENCE_FIRST_S = 13.0
UNHEARD_S = 10.2  # A node is dead after 10 s without a heartbeat.
IDLE_S = 3.5
DEADLINE_S = 0.2
POISON_NODES = 2
POISONED_S = 5.0  # An engine that was killed is in trouble until it has been started again.

Stray = tuple[str, str, int]  # node id, work id, attempt
Streams = Mapping[str, list[tuple[str, str, int]]]


class Checks:
    """Judges one run; every method raises ``Violation`` when something is not as it must be."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self.now_s = 0.0
        self.works: dict[str, Watched] = {}
        self.places = {plan.node_id: Place(plan) for plan in scenario.nodes}
        self._begun: set[tuple[str, int, str, int]] = set()
        self._strays: dict[Stray, float] = {}
        self._calm = not scenario.troubles and not scenario.odd

    # --- what happened in the world ---

    def excuse(self, node_id: str, until_s: float) -> None:
        """The machine has trouble, whose consequences last until then."""
        place = self.places[node_id]
        place.troubled = True
        place.excused_s = max(place.excused_s, until_s)

    def lied(self, node_id: str) -> None:
        """From now on, what this machine says about usage proves nothing."""
        self.places[node_id].lied = True

    def called_back(self, message: Withdraw, node_id: str, generation: int) -> None:
        """A withdrawal has reached the machine; from now on the attempt must not begin there."""
        self._begun.add((message.work_id, message.attempt, node_id, generation))

    def began(self, offer: Offer, node_id: str, generation: int, running: int, slots: int) -> None:
        """An attempt is put on its engine, which now runs this many."""
        if running > slots:
            raise Violation("slots", f"{node_id}/{offer.engine_id} runs {running} of {slots}")
        key = (offer.work_id, offer.attempt, node_id, generation)
        if key in self._begun:
            raise Violation(
                "begins once", f"{offer.work_id} attempt {offer.attempt} began again on {node_id}"
            )
        self._begun.add(key)
        work = self.works[offer.work_id]
        self._serves(work, node_id, offer)

    def struck(self, offer: Offer, node_id: str) -> None:
        """A poison work has killed its engine. What was called back too late cannot be helped, and a death
        behind a cut link is one that nobody could hear of."""
        work = self.works[offer.work_id]
        told = self.places[node_id].excused_s < self.now_s
        self.excuse(node_id, self.now_s + POISONED_S)
        current = work.finish is None and work.offer is not None and work.offer.attempt == offer.attempt
        if told and current:
            work.struck.add(node_id)
        if len(work.struck) > POISON_NODES:
            raise Violation("poison", f"{offer.work_id} has struck {sorted(work.struck)}")

    # --- what the gateway hears ---

    def arrived(self, plan: WorkPlan) -> None:
        """A work is handed to the dispatcher."""
        self.works[plan.work.id] = Watched(plan, self.now_s)

    def queue_holds(self) -> None:
        """After each arrival: what waits and was never offered is within the bound that was set."""
        waiting = sum(1 for work in self.works.values() if work.finish is None and work.offer is None)
        if waiting > self._scenario.queue_works_max:
            raise Violation("queue bound", f"{waiting} works wait, {self._scenario.queue_works_max} may")

    def cancelled(self, work_id: str) -> None:
        """The client goes away."""
        work = self.works[work_id]
        if work.finish is None:
            work.cancelled_s = self.now_s

    def flows(self, work_id: str, paused: bool) -> None:
        """The client stops reading, or reads on."""
        work = self.works[work_id]
        work.paused, work.heard_s = paused, self.now_s

    def reported(self, report: NodeReport) -> None:
        """A heartbeat arrives."""
        place = self.places[report.node_id]
        if (report.generation, report.sequence) > place.known:
            if report.generation > place.known[0]:
                self._noticed(report.node_id)
            place.known = (report.generation, report.sequence)
            place.heard_s, place.left, place.draining = self.now_s, False, report.draining

    def left(self, node_id: str, generation: int) -> None:
        """The link says that a node is gone."""
        place = self.places[node_id]
        if generation != place.known[0] or place.left:
            return
        place.left = True
        self._noticed(node_id)

    def _noticed(self, node_id: str) -> None:
        for work in self.works.values():
            if work.offer is not None and work.offer.node_id == node_id and not work.let_go:
                work.noticed_s = self.now_s

    def heard(self, message: FromNode) -> None:
        """A message of an attempt arrives."""
        work = self.works[message.work_id]
        if work.offer is None or work.offer.attempt != message.attempt:
            return
        work.heard_s = self.now_s
        work.ended = work.ended or isinstance(message, Ended)
        if isinstance(message, Refused) or (isinstance(message, Ended) and message.fault is not None):
            work.release(self.now_s)
        if isinstance(message, Ended) and message.fault in (Fault.BROKEN, Fault.LOST):
            self.places[work.offer.node_id].troubled = True

    # --- what the dispatcher decides ---

    def offered(self, node_id: str, offer: Offer) -> None:
        """An attempt is sent to a node."""
        work, place, now_s = self.works[offer.work_id], self.places[node_id], self.now_s
        self._open(work, "an offer")
        if work.offer is not None and offer.attempt <= work.offer.attempt:
            raise Violation("attempts rise", f"{offer.work_id}: {work.offer.attempt}, then {offer.attempt}")
        if work.cancelled_s is not None:
            raise Violation("cancel", f"{offer.work_id} is offered after its cancellation")
        if now_s - place.heard_s > UNHEARD_S:
            raise Violation(
                "dead node", f"{offer.work_id} goes to {node_id}, silent for {now_s - place.heard_s:.1f} s"
            )
        if place.left or place.draining:
            raise Violation("gone node", f"{offer.work_id} goes to {node_id}, which has left or drains")
        if work.offer is None and now_s > work.plan.work.deadline_s + DEADLINE_S:
            raise Violation(
                "deadline", f"{offer.work_id} starts {now_s - work.plan.work.deadline_s:.2f} s late"
            )
        self._needed(work)
        self._serves(work, node_id, offer)
        self._resumes(work, offer)
        work.offer, work.offered_s, work.heard_s = offer, now_s, now_s
        work.index, work.let_go, work.noticed_s, work.ended = 0, False, None, False

    def withdrew(self, message: Withdraw) -> None:
        """An attempt is called back."""
        work = self.works.get(message.work_id)
        if work is None or work.offer is None or work.offer.attempt != message.attempt or work.let_go:
            return
        if work.finish is None and work.cancelled_s is None:
            self._needed(work)
        work.release(self.now_s)

    def delivered(self, work_id: str, attempt: int, index: int, frame: Frame | None) -> None:
        """A frame goes to the client."""
        work = self.works[work_id]
        self._open(work, "a frame")
        if work.offer is None or attempt != work.offer.attempt:
            raise Violation("fence", f"{work_id} is sent a frame of attempt {attempt}, which is dead")
        if index != work.index or frame is None:
            raise Violation("frames in order", f"{work_id} is sent frame {index} and not {work.index}")
        work.index += 1
        if not work.fingerprint:
            work.fingerprint = frame.fingerprint
            work.reference = text_of(work.plan.prompt, frame.fingerprint, work.plan.length)
        start = len(work.text)
        if tuple(work.reference[start : start + len(frame.tokens)]) != frame.tokens:
            raise Violation("text", f"{work_id} is sent something else after token {start}")
        work.text += frame.tokens

    def finished(self, finish: Finish) -> None:
        """A work ends."""
        work = self.works.get(finish.work_id)
        if work is None:
            raise Violation("ends once", f"{finish.work_id} ends and never arrived")
        self._open(work, "an end")
        work.finish = finish
        if finish.state is WorkState.DONE and len(work.text) != work.plan.length:
            raise Violation("whole", f"{finish.work_id} is done after {len(work.text)} of {work.plan.length}")
        if finish.state is WorkState.CANCELLED and work.cancelled_s is None:
            raise Violation("cancel", f"{finish.work_id} was never cancelled")
        if finish.state is WorkState.REFUSED and work.offer is not None and work.streamed:
            raise Violation("refusal", f"{finish.work_id} is refused in mid-stream")
        if finish.state is WorkState.FAILED and self._calm:
            raise Violation("calm", f"{finish.work_id} fails with {finish.reason}, and nothing was wrong")
        self._settled(work, finish)

    # --- looked at once a second ---

    def look(self, streams: Streams, waits: Callable[[str], bool]) -> None:
        """``streams`` lists what really runs on each node, as (engine id, work id, attempt). ``waits`` is the
        one thing that the brain is asked: whether a work is in its queue."""
        for work_id, work in self.works.items():
            if not work.let_go and work.finish is None and waits(work_id):
                work.release(self.now_s)
        busy = {(node_id, engine_id) for node_id, ran in streams.items() for engine_id, _, _ in ran}
        for work in self.works.values():
            if work.finish is None and not work.let_go and work.offer is not None:
                busy.add((work.offer.node_id, work.offer.engine_id))
        for place in self.places.values():
            for engine_id in place.idle_since_s:
                if place.troubled or not place.known[0] or (place.plan.node_id, engine_id) in busy:
                    place.idle_since_s[engine_id] = self.now_s
        for work in self.works.values():
            if work.finish is None:
                self._look_open(work)
        self._look_strays(streams)

    def over(self) -> bool:
        """Whether every work of the scenario has arrived and ended."""
        return len(self.works) == len(self._scenario.works) and all(
            work.finish is not None for work in self.works.values()
        )

    def at_end(self, streams: Streams) -> None:
        """The liveness phase is over: nothing waits, nothing runs."""
        left = [work_id for work_id, work in self.works.items() if work.finish is None]
        if left:
            raise Violation("everything ends", f"{', '.join(left)} have not ended")
        running = [entry for ran in streams.values() for entry in ran]
        if running:
            raise Violation("everything stops", f"{running} still hold slots")

    def _look_open(self, work: Watched) -> None:
        plan, now_s, work_id = work.plan, self.now_s, work.plan.work.id
        if work.cancelled_s is not None:
            raise Violation("cancel", f"{work_id} was cancelled and has not ended")
        if work.offer is None and now_s > plan.work.deadline_s + DEADLINE_S:
            raise Violation("deadline", f"{work_id} waits beyond its deadline")
        if not work.let_go:
            self._look_running(work, work_id)
        elif not work.plan.poison and not work.plan.fault and now_s - work.free_since_s > IDLE_S:
            idle = self._idle(work, now_s - IDLE_S)
            if idle:
                raise Violation("idle capacity", f"{work_id} waits while {idle} has nothing to do")

    def _look_running(self, work: Watched, work_id: str) -> None:
        silent_s = self.now_s - work.heard_s
        bound_s = SILENCE_S if work.text else SILENCE_FIRST_S
        if work.plan.work.streaming and not work.paused and silent_s > bound_s:
            raise Violation("silence", f"{work_id} has heard nothing for {silent_s:.1f} s and stays")
        # An end that overtook its last frames waits for them a little, wherever its node has gone.
        if work.noticed_s is not None and work.noticed_s < self.now_s and not work.ended:
            raise Violation("lost work moves", f"{work_id} stays on a node that is known to be gone")

    def _idle(self, work: Watched, since_s: float) -> str:
        """An engine that never had trouble, fits, and has had nothing to do since then and for some time."""
        for place in self.places.values():
            for engine_id, idle_s in place.idle_since_s.items():
                if idle_s > since_s or self.now_s - idle_s < IDLE_S:
                    continue
                if place.fitting(work, engine_id, work.streamed) is not None:
                    return f"{place.plan.node_id}/{engine_id}"
        return ""

    def _look_strays(self, streams: Streams) -> None:
        """Nothing runs for long that the gateway does not count as running."""
        strays: dict[Stray, float] = {}
        for node_id, ran in streams.items():
            place = self.places[node_id]
            for _, work_id, attempt in ran:
                work = self.works[work_id]
                offer = work.offer
                if not work.let_go and work.finish is None and offer is not None and offer.attempt == attempt:
                    continue
                key = (node_id, work_id, attempt)
                strays[key] = since_s = max(self._strays.get(key, self.now_s), place.excused_s)
                bound_s = ORPHAN_S
                if work.cancelled_s is not None and offer is not None and offer.attempt == attempt:
                    bound_s, since_s = CANCEL_FREES_S, max(work.cancelled_s, place.excused_s)
                if self.now_s - since_s > bound_s:
                    raise Violation("strays stop", f"{work_id} attempt {attempt} still runs on {node_id}")
        self._strays = strays

    # --- rules that several events share ---

    @staticmethod
    def _open(work: Watched, what: str) -> None:
        if work.finish is not None:
            raise Violation("ends once", f"{work.plan.work.id} has ended, and then comes {what}")

    def _needed(self, work: Watched) -> None:
        """An attempt is given up only for a reason: it failed, or its machine was in trouble."""
        if work.let_go or work.offer is None:
            return
        if self.places[work.offer.node_id].excused_s < work.offered_s:
            raise Violation(
                "moves for a reason", f"{work.plan.work.id} leaves {work.offer.node_id}, which is well"
            )

    def _serves(self, work: Watched, node_id: str, offer: Offer) -> None:
        asked = work.plan.work
        fit = self.places[node_id].fitting(work, offer.engine_id, offer.emitted_tokens > 0)
        if fit is None or (offer.kind, offer.model) != (asked.kind, asked.model):
            raise Violation("capability", f"{asked.id} must not run on {node_id}/{offer.engine_id}")

    @staticmethod
    def _resumes(work: Watched, offer: Offer) -> None:
        """A stream goes on exactly where it was; what was not sent may begin again."""
        if work.streamed and offer.emitted_tokens != len(work.text):
            raise Violation(
                "resumes in place",
                f"{offer.work_id} goes on at {offer.emitted_tokens}, was sent {len(work.text)}",
            )
        if not work.streamed and not offer.emitted_tokens:
            work.text, work.fingerprint = [], ""

    def _settled(self, work: Watched, finish: Finish) -> None:
        """Nobody pays for more than was delivered, and a whole text is paid for as a whole. Only a lie about
        usage can raise that, and never above what the client allowed."""
        asked = work.plan.work
        delivered = len(work.text) if asked.kind in TEXT else 0
        if finish.state is not WorkState.DONE and not asked.streaming:
            delivered = 0
        charged = finish.usage.output_tokens
        liar = work.offer is not None and self.places[work.offer.node_id].lied
        most = asked.output_tokens_max if liar and finish.state is WorkState.DONE else delivered
        if charged > most or (finish.state is WorkState.DONE and charged < delivered):
            raise Violation("settled", f"{finish.work_id} is charged {charged} tokens for {delivered}")
