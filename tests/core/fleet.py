"""A little fleet for the tests of the core: works, reports, and transcripts of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundswell.core.contract import Arrived, Deliver, Finish, Reported, Send, Tick
from groundswell.core.dispatch import Dispatcher
from groundswell.model.messages import Accepted, Offer, Output, Withdraw
from groundswell.model.node import Capability, Continuation, EngineReport, NodeReport
from groundswell.model.work import Kind, Work, WorkState

MODEL = Capability(
    "m",
    "m-engine",
    frozenset({Kind.CHAT}),
    fingerprint="f",
    continuation=Continuation.TEXT,
    profile="h100-8b",
)


def chat(work_id: str = "w", **changes: Any) -> Work:
    """A streamed chat that can be continued, with a minute to wait."""
    plain = Work(
        work_id, Kind.CHAT, "m", "tenant", 60.0, prompt_tokens=10, output_tokens_max=100, streaming=True,
        resumable=True,
    )  # fmt: skip
    return replace(plain, **changes)


def report(
    node_id: str = "a",
    sequence: int = 1,
    *,
    generation: int = 1,
    slots: int = 2,
    running: int | None = None,
    healthy: bool = True,
    engine_generation: int = 1,
    capabilities: Sequence[Capability] = (MODEL,),
    attempts: Sequence[tuple[str, int]] = (),
    **changes: Any,
) -> NodeReport:
    """A node with one engine."""
    busy = len(attempts) if running is None else running
    engine = EngineReport("e", engine_generation, slots, busy, healthy, tuple(capabilities))
    return NodeReport(node_id, generation, sequence, (engine,), tuple(attempts), **changes)


def play(machine: Any, *steps: tuple[float, Any, list[Any]]) -> None:
    """Feed a machine its events; each must have exactly these effects."""
    for now_s, event, effects in steps:
        seen = machine.step(now_s, event)
        assert seen == effects, f"at {now_s} s, {event}"


class Desk:
    """A dispatcher and short words for what happens around it. ``now_s`` only goes forward."""

    def __init__(self, *node_ids: str, **settings: Any) -> None:
        self.now_s = 0.0
        self.machine = Dispatcher(**settings)
        self.sequence = 0
        self.node_report: dict[str, dict[str, Any]] = {}
        for node_id in node_ids:
            self.report(node_id)

    def at(self, now_s: float) -> Desk:
        assert now_s >= self.now_s
        self.now_s = now_s
        return self

    def step(self, event: Any) -> list[Any]:
        return self.machine.step(self.now_s, event)

    def report(self, node_id: str, **changes: Any) -> list[Any]:
        self.sequence += 1
        return self.step(Reported(report(node_id, self.sequence, **changes)))

    def arrive(self, work: Work | None = None, draw: int = 1) -> list[Any]:
        return self.step(Arrived(work or chat(), draw))

    def offered(self, effects: list[Any]) -> Offer:
        """The one offer among the effects."""
        (offer,) = offers(effects)
        return offer

    def start(self, work: Work | None = None, draw: int = 1) -> Offer:
        """A work arrives, is offered and accepted."""
        offer = self.offered(self.arrive(work, draw))
        assert self.step(Accepted(offer.work_id, offer.attempt)) == []
        return offer


def offers(effects: list[Any]) -> list[Offer]:
    return [one.message for one in effects if isinstance(one, Send) and isinstance(one.message, Offer)]


def withdrawals(effects: list[Any]) -> list[Withdraw]:
    return [one.message for one in effects if isinstance(one, Send) and isinstance(one.message, Withdraw)]


def finishes(effects: list[Any]) -> list[Finish]:
    return [one for one in effects if isinstance(one, Finish)]


def deliveries(effects: list[Any]) -> list[int]:
    return [one.index for one in effects if isinstance(one, Deliver)]


def end_of(effects: list[Any]) -> tuple[WorkState, str]:
    """State and reason of the one finish among the effects."""
    (finish,) = finishes(effects)
    return finish.state, finish.reason


def stream(
    desk: Desk, work_id: str, attempt: int, *, count: int, first: int = 0, every_s: float = 0.1
) -> None:
    """So many frames of one token each, in order."""
    for index in range(first, first + count):
        desk.at(desk.now_s + every_s)
        assert deliveries(desk.step(Output(work_id, attempt, index, 1))) == [index]


def tick_until(desk: Desk, until_s: float) -> list[Any]:
    """Ring every alarm up to then; all effects."""
    effects = []
    while (wake_s := desk.machine.wake_s) is not None and wake_s <= until_s:
        desk.at(max(desk.now_s, wake_s))
        effects += desk.step(Tick())
    desk.at(until_s)
    return effects
