"""Planted bugs: each breaks the live core in one place, for as long as a test holds it broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from groundswell.core import dispatch, routing, verdict
from groundswell.core.agent import Agent
from groundswell.core.contract import Cancelled, Deliver
from groundswell.core.dispatch import Dispatcher
from groundswell.core.lease import Lease
from groundswell.core.membership import Change, Members
from groundswell.core.slots import Slots
from groundswell.core.waiting import WaitingRoom

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """``checks`` are those that may find it; another one finding it first would be worth a look."""

    name: str
    plant: Plant
    checks: frozenset[str]


def _bug(name: str, *checks: str) -> Callable[[Plant], Bug]:
    return lambda plant: Bug(name, plant, frozenset(checks))


def _wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a live function by ``around(original, *arguments)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *arguments, **named: around(original, *arguments, **named))


@_bug("lost work is not queued again", "everything ends", "idle capacity")
def lost_requeue(patch: pytest.MonkeyPatch) -> None:
    def wait(original: Any, self: Dispatcher, entry: Any, until_s: float) -> None:
        if not entry.attempts:
            original(self, entry, until_s)

    _wrap(patch, Dispatcher, "_wait", wait)


@_bug("the end of a dead attempt counts", "moves for a reason", "whole", "ends once", "settled")
def fence_off(patch: pytest.MonkeyPatch) -> None:
    def lease(original: Any, self: Dispatcher, work_id: str, attempt: int) -> Any:
        entry = self._open.get(work_id)
        return entry.lease if entry else None

    _wrap(patch, Dispatcher, "_lease", lease)


@_bug("a late frame of a dead attempt is delivered", "fence")
def late_frame(patch: pytest.MonkeyPatch) -> None:
    def output(original: Any, self: Dispatcher, now_s: float, event: Any) -> Any:
        entry = self._open.get(event.work_id)
        if entry is not None and event.attempt < entry.attempts:
            return [Deliver(event.work_id, event.attempt, event.index)]
        return original(self, now_s, event)

    _wrap(patch, Dispatcher, "_output", output)


@_bug("a frame that came twice is delivered twice", "frames in order")
def duplicate_frame(patch: pytest.MonkeyPatch) -> None:
    def admit(original: Any, self: Lease, output: Any) -> Any:
        return [output] if output.index < self.next_index else original(self, output)

    _wrap(patch, Lease, "admit", admit)


@_bug("frames are delivered as they come, whatever their order", "frames in order")
def frame_order(patch: pytest.MonkeyPatch) -> None:
    def admit(original: Any, self: Lease, output: Any) -> Any:
        if output.index < self.next_index:
            return []
        self.next_index = output.index + 1
        return [output]

    _wrap(patch, Lease, "admit", admit)


@_bug("a ghost's report counts", "gone node", "moves for a reason", "dead node", "strays stop")
def ghost_accepted(patch: pytest.MonkeyPatch) -> None:
    def report(original: Any, self: Members, now_s: float, said: Any) -> Any:
        node = self.nodes.get(said.node_id)
        if node is not None and said.generation < node.generation:
            said = replace(said, generation=node.generation, sequence=node.sequence + 1)
        return original(self, now_s, said)

    _wrap(patch, Members, "report", report)


@_bug("a goodbye for an old generation counts", "moves for a reason")
def stale_goodbye(patch: pytest.MonkeyPatch) -> None:
    def left(original: Any, self: Members, node_id: str, generation: int) -> Any:
        node = self.nodes.get(node_id)
        return original(self, node_id, node.generation if node else generation)

    _wrap(patch, Members, "left", left)


@_bug("a lost node is not noticed", "lost work moves", "gone node")
def lost_node(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, Members, "left", lambda original, self, node_id, generation: None)


@_bug("a lost node gets nothing new, but what it had is not moved", "lost work moves")
def lost_work_stays(patch: pytest.MonkeyPatch) -> None:
    def left(original: Any, self: Members, node_id: str, generation: int) -> Any:
        node = self.nodes.get(node_id)
        if node is None or node.generation != generation:
            return None
        node.draining = True
        return Change(touched=list(node.engines.values()))

    _wrap(patch, Members, "left", left)


@_bug("a silent node never dies", "dead node")
def silent_node(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, Members, "silent", lambda original, self, now_s, node: Change())


@_bug("a draining node is given work", "gone node")
def drain_ignored(patch: pytest.MonkeyPatch) -> None:
    def report(original: Any, self: Members, now_s: float, said: Any) -> Any:
        return original(self, now_s, replace(said, draining=False))

    _wrap(patch, Members, "report", report)


@_bug("a cancellation is ignored", "cancel")
def cancel_ignored(patch: pytest.MonkeyPatch) -> None:
    def take(original: Any, self: Dispatcher, now_s: float, event: Any, effects: Any) -> None:
        if not isinstance(event, Cancelled):
            original(self, now_s, event, effects)

    _wrap(patch, Dispatcher, "_take", take)


@_bug("a work is settled twice", "ends once")
def double_settle(patch: pytest.MonkeyPatch) -> None:
    def finish(original: Any, self: Dispatcher, now_s: float, entry: Any, *rest: Any, **named: Any) -> None:
        original(self, now_s, entry, *rest, **named)
        rest[2].append(rest[2][-1])

    _wrap(patch, Dispatcher, "_finish", finish)


@_bug("a continued text is charged twice", "settled")
def double_charge(patch: pytest.MonkeyPatch) -> None:
    def usage(original: Any, emitted: int, delivered: int, *rest: Any) -> Any:
        whole = original(emitted, delivered, *rest)
        return replace(whole, output_tokens=whole.output_tokens + emitted)

    _wrap(patch, dispatch, "combined_usage", usage)


@_bug("whatever usage a node reports is charged", "settled")
def usage_believed(patch: pytest.MonkeyPatch) -> None:
    def usage(
        original: Any, emitted: int, delivered: int, reported: Any, prompt_tokens: int, allowed: int
    ) -> Any:
        return original(emitted, delivered, reported, prompt_tokens)

    _wrap(patch, dispatch, "combined_usage", usage)


@_bug("a stream resumes one token too early", "resumes in place", "text")
def wrong_offset(patch: pytest.MonkeyPatch) -> None:
    def wait(original: Any, self: Dispatcher, entry: Any, until_s: float) -> None:
        entry.emitted = max(0, entry.emitted - 1)
        original(self, entry, until_s)

    _wrap(patch, Dispatcher, "_wait", wait)


@_bug("a stream goes on with another model", "capability", "text")
def other_fingerprint(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, dispatch, "need_of", lambda original, work, fingerprint="": original(work))


@_bug("work goes where it must not", "capability")
def incapable(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, routing, "fits", lambda original, seat, need: True)


@_bug("the queue has no bound", "queue bound")
def queue_unbounded(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, WaitingRoom, "admits", lambda original, self, units: True)


@_bug("slots leak", "moves for a reason", "idle capacity", "deadline")
def slot_leak(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, Slots, "release", lambda original, self, key: None)


@_bug("a deadline is ignored", "deadline")
def deadline_ignored(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, Dispatcher, "_waited", lambda original, self, now_s, entry, effects: None)


@_bug("a stalled stream is not noticed", "silence")
def stall_off(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, Dispatcher, "_stalled", lambda original, self, now_s, lease, effects: None)


@_bug("a poison work goes on and on", "poison")
def poison_unbounded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verdict, "DEATHS_MAX", 99)


@_bug("an agent gives out one slot too many", "slots")
def slot_overcommit(patch: pytest.MonkeyPatch) -> None:
    def offered(original: Any, self: Agent, *rest: Any) -> None:
        for engine in self._engines.values():
            engine.slots += 1
        original(self, *rest)
        for engine in self._engines.values():
            engine.slots -= 1

    _wrap(patch, Agent, "_offered", offered)


@_bug("an agent forgets a withdrawal that overtook its offer", "begins once")
def overtaken_withdrawal(patch: pytest.MonkeyPatch) -> None:
    def withdrawn(original: Any, self: Agent, now_s: float, message: Any, effects: Any) -> None:
        known = (message.work_id, message.attempt) in self._where
        original(self, now_s, message, effects)
        if not known:
            self._over.pop((message.work_id, message.attempt), None)

    _wrap(patch, Agent, "_withdrawn", withdrawn)


@_bug("an agent runs a copy of an offer again", "begins once")
def offer_twice(patch: pytest.MonkeyPatch) -> None:
    def finish(original: Any, self: Agent, *rest: Any) -> None:
        original(self, *rest)
        self._over.clear()

    _wrap(patch, Agent, "_finish", finish)


@_bug("an agent frees the slot and lets the engine run on", "slots", "strays stop")
def never_stopped(patch: pytest.MonkeyPatch) -> None:
    def withdrawn(original: Any, self: Agent, now_s: float, message: Any, effects: Any) -> None:
        original(self, now_s, message, effects)
        effects[:] = [one for one in effects if type(one).__name__ != "Stop"]

    _wrap(patch, Agent, "_withdrawn", withdrawn)


BUGS = tuple(thing for thing in list(globals().values()) if isinstance(thing, Bug))
