"""What the checks know: of each work, of each machine, and how a finding is raised."""

from __future__ import annotations

from groundswell.core.contract import Finish
from groundswell.model.messages import Offer
from groundswell.model.node import Capability, Continuation
from groundswell.model.work import Kind
from groundswell.sim.scenario import EnginePlan, NodePlan, WorkPlan


class Violation(AssertionError):
    """A check failed. ``check`` is its stable name."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(f"{check}: {message}")
        self.check = check


class Watched:
    """What the checks know of one work. ``let_go``: its last attempt is over, as far as was said."""

    def __init__(self, plan: WorkPlan, now_s: float) -> None:
        self.plan = plan
        self.offer: Offer | None = None
        self.offered_s = 0.0
        self.heard_s = 0.0
        self.generation = 0
        self.index = 0
        self.let_go = True
        self.paused = False
        self.free_since_s = now_s
        self.noticed_s: float | None = None
        self.cancelled_s: float | None = None
        self.text: list[int] = []
        self.fingerprint = ""
        self.reference: list[int] = []
        self.struck: set[str] = set()
        self.ended = False
        self.finish: Finish | None = None

    @property
    def streamed(self) -> bool:
        """Whether something was sent that cannot be taken back."""
        return self.plan.work.streaming and bool(self.text)

    def release(self, now_s: float) -> None:
        """Its attempt is over; it waits, unless it has finished."""
        if not self.let_go:
            self.let_go, self.free_since_s = True, now_s


class Place:
    """What the checks know of one machine, as the gateway has heard of it and as it really is."""

    def __init__(self, plan: NodePlan) -> None:
        self.plan = plan
        self.troubled = False
        self.lied = False
        self.excused_s = 0.0
        self.known = (0, 0)
        self.heard_s = 0.0
        self.left = True
        self.draining = False
        self.idle_since_s = dict.fromkeys((engine.engine_id for engine in plan.engines), 0.0)

    def engine(self, engine_id: str) -> EnginePlan:
        """The plan of one of its engines."""
        return next(engine for engine in self.plan.engines if engine.engine_id == engine_id)

    def fitting(self, work: Watched, engine_id: str, continues: bool) -> Capability | None:
        """What this engine does the work with; None when it must not. ``continues``: in mid-text.

        This is written against the meaning of the model's nouns, and not with the router's own functions,
        so that the two can disagree.
        """
        asked, plan = work.plan.work, self.plan
        if plan.trust < asked.trust_min or asked.region not in (None, plan.region):
            return None
        for one in self.engine(engine_id).capabilities:
            dear = asked.price_max is not None and asked.kind is not Kind.TRANSCODE
            if one.model != asked.model or asked.kind not in one.kinds:
                continue
            if dear and max(one.price.input_nano, one.price.output_nano) > (asked.price_max or 0):
                continue
            if continues and (one.fingerprint != work.fingerprint or one.continuation is Continuation.NONE):
                continue
            if continues and asked.needs_exact_resume and one.continuation is not Continuation.EXACT:
                continue
            return one
        return None
