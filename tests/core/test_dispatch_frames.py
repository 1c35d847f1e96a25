"""The dispatcher, as transcripts: frames in order, streams that stall, and going on after what was sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fleet import (
    MODEL,
    Desk,
    chat,
    deliveries,
    end_of,
    finishes,
    offers,
    stream,
    tick_until,
    withdrawals,
)

from groundswell.core.contract import (
    Cancelled,
    Left,
    Paused,
    Reason,
    Tick,
)
from groundswell.core.verdict import CONTINUED_MAX
from groundswell.model.messages import Accepted, Ended, Fault, Output, Refusal, Refused, Withdraw
from groundswell.model.money import Usage
from groundswell.model.node import Capability, Continuation
from groundswell.model.work import Work, WorkState

NONE = replace(MODEL, continuation=Continuation.NONE)


# --- frames and fences ---


def test_frames_are_delivered_in_order_and_once() -> None:
    """Links reorder and repeat; the client must see neither."""
    desk = Desk("a")
    desk.start()
    assert desk.step(Output("w", 1, 1, 1)) == []
    assert desk.machine.keeps(Output("w", 1, 1, 1))
    assert desk.step(Output("w", 1, 1, 1)) == []
    assert deliveries(desk.step(Output("w", 1, 0, 1))) == [0, 1]
    assert not desk.machine.keeps(Output("w", 1, 1, 1))
    assert desk.step(Output("w", 1, 0, 1)) == []
    assert desk.step(Output("w", 1, 2 + 300, 1)) == [], "beyond the window"
    assert not desk.machine.keeps(Output("w", 1, 302, 1))
    assert deliveries(desk.step(Output("w", 1, 2, 1))) == [2]
    assert not desk.machine.keeps(Output("nobody", 1, 0))


def test_an_end_that_overtakes_frames_waits_for_them() -> None:
    """Otherwise the tail of an answer would be lost whenever a link reorders."""
    desk = Desk("a")
    desk.start()
    stream(desk, "w", 1, count=1)
    assert desk.step(Ended("w", 1, frames=3)) == []
    assert desk.step(Ended("w", 1, frames=3)) == []
    assert deliveries(desk.step(Output("w", 1, 1, 1))) == [1]
    effects = desk.step(Output("w", 1, 2, 1))
    assert deliveries(effects) == [2]
    assert end_of(effects) == (WorkState.DONE, "")


def test_an_attempt_whose_last_frames_are_under_way_is_not_withdrawn() -> None:
    """A report from before the end may still list it; told to drop it, the node could not send them again."""
    desk = Desk("a")
    desk.start()
    stream(desk, "w", 1, count=1)
    desk.step(Ended("w", 1, frames=2))
    assert withdrawals(desk.report("a", attempts=[("w", 1)])) == []
    effects = desk.step(Output("w", 1, 1, 1))
    assert end_of(effects) == (WorkState.DONE, "")
    assert withdrawals(desk.report("a", attempts=[("w", 1)])) == [Withdraw("w", 1)]


def test_a_gap_that_does_not_close_ends_the_attempt() -> None:
    """A lost frame must cost seconds, not the answer: another node goes on after the last frame in order."""
    desk = Desk("a", "b")
    first = desk.start()
    stream(desk, "w", 1, count=2)
    desk.step(Output("w", 1, 3, 1))
    desk.report("a", attempts=[("w", 1)] if first.node_id == "a" else [])
    desk.report("b", attempts=[("w", 1)] if first.node_id == "b" else [])
    effects = tick_until(desk, desk.now_s + 4.1)
    assert withdrawals(effects) == [Withdraw("w", 1)]
    again = desk.offered(effects)
    assert (again.attempt, again.emitted_tokens) == (2, 2)
    assert again.node_id != first.node_id


def test_frames_of_a_dead_attempt_are_fenced_off() -> None:
    """A node that was given up may still talk; only the holder counts."""
    desk = Desk("a", "b")
    first = desk.start()
    stream(desk, "w", 1, count=2)
    again = desk.offered(desk.step(Left(first.node_id, 1)))
    assert again.emitted_tokens == 2
    assert desk.step(Output("w", 1, 2, 1)) == []
    assert desk.step(Ended("w", 1, frames=3)) == []
    assert deliveries(desk.step(Output("w", 2, 0, 1))) == [0]
    (finish,) = finishes(desk.step(Ended("w", 2, 1, Usage(12, 1))))
    assert (finish.usage, finish.emitted_tokens, finish.continued, finish.attempts) == (Usage(10, 3), 2, 1, 2)


# --- stalls ---


def test_a_stream_that_stops_is_moved_within_four_seconds() -> None:
    """Heartbeats go on while an engine hangs; the stream's own pace tells first."""
    desk = Desk("a", "b")
    first = desk.start()
    stream(desk, "w", 1, count=20, every_s=0.05)
    last_s = desk.now_s
    desk.report("a", attempts=[("w", 1)] if first.node_id == "a" else [])
    desk.report("b", attempts=[("w", 1)] if first.node_id == "b" else [])
    assert tick_until(desk, last_s + 1.9) == []
    effects = tick_until(desk, last_s + 2.1)
    assert desk.offered(effects).emitted_tokens == 20
    engine = desk.machine.members.nodes[first.node_id].engines["e"]
    assert not engine.breaker.open, "one stream alone is no proof against its engine"


def test_a_slow_stream_has_a_longer_limit() -> None:
    """Ten times its own median gap, at most 4 s: a slow engine is not a hung one."""
    desk = Desk("a")
    desk.start()
    stream(desk, "w", 1, count=20, every_s=0.4)
    last_s = desk.now_s
    desk.report("a", attempts=[("w", 1)])
    assert withdrawals(tick_until(desk, last_s + 3.5)) == []
    assert withdrawals(tick_until(desk, last_s + 4.1)) == [Withdraw("w", 1)]


def test_a_stream_that_speeds_up_and_slows_down_keeps_a_fitting_limit() -> None:
    """The median follows the stream in both directions."""
    desk = Desk("a")
    desk.start()
    stream(desk, "w", 1, count=30, every_s=0.01)
    stream(desk, "w", 1, first=30, count=30, every_s=0.35)
    last_s = desk.now_s
    desk.report("a", attempts=[("w", 1)])
    assert withdrawals(tick_until(desk, last_s + 3.0)) == []


def test_a_paused_stream_does_not_stall() -> None:
    """A slow client is not a hung engine."""
    desk = Desk("a")
    desk.start()
    stream(desk, "w", 1, count=2)
    assert desk.step(Paused("w", True)) == desk.step(Paused("w", True)) == desk.step(Paused("x", True)) == []
    for second in (2, 4, 6, 8):
        assert withdrawals(tick_until(desk, float(second))) == []
        desk.report("a", attempts=[("w", 1)])
    assert desk.step(Paused("w", False)) == []
    assert withdrawals(tick_until(desk, 8.5)) == []
    stream(desk, "w", 1, first=2, count=1)
    assert withdrawals(tick_until(desk, 9.0)) == []
    assert withdrawals(tick_until(desk, 12.7)) == [Withdraw("w", 1)]


def test_the_first_token_has_the_limit_of_its_prediction() -> None:
    """Before the first content nothing is known but the prediction: at least 4 s."""
    desk = Desk("a", "b")
    first = desk.start()
    desk.step(Output("w", 1, 0))
    for node_id in "ab":
        desk.report(node_id, attempts=[("w", 1)] if node_id == first.node_id else [])
    assert tick_until(desk, 3.9) == []
    assert desk.offered(tick_until(desk, 5.0)).emitted_tokens == 0


def test_streams_that_stall_together_are_one_event() -> None:
    """One hung engine is one decision: all its streams move at once, and it gets nothing for a while."""
    desk = Desk()
    for node_id in "abc":
        desk.report(node_id, slots=8)
    works = [desk.start(chat(f"w{number}"), draw=number) for number in range(9)]
    hung = works[0].node_id
    there = [one.work_id for one in works if one.node_id == hung]
    assert len(there) > 1
    for index in range(30):
        desk.at(desk.now_s + 0.05)
        for one in works:
            desk.step(Output(one.work_id, 1, index, 1))
    effects: list[Any] = []
    moved_s = 0.0
    index = 30
    while desk.now_s < 5.0:
        desk.at(desk.now_s + 0.05)
        for one in works:
            if one.node_id != hung:
                desk.step(Output(one.work_id, 1, index, 1))
        index += 1
        seen = desk.step(Tick())
        moved_s = moved_s or (desk.now_s if seen else 0.0)
        if seen:
            effects.append(seen)
    assert len(effects) == 1, "all at once"
    assert sorted(one.work_id for one in offers(effects[0])) == sorted(there)
    assert all(one.node_id != hung for one in offers(effects[0]))
    assert offers(desk.arrive(chat("new")))[0].node_id != hung
    assert moved_s < 4.0


def test_a_hung_engine_loses_all_its_streams_with_the_first_and_nothing_else() -> None:
    """A slow stream need not wait for its own limit; who is paused, not streamed or just begun is no sign."""
    desk = Desk()
    desk.report("a", slots=8)
    for work_id in ("fast", "slow", "paused"):
        desk.start(chat(work_id))
    desk.start(chat("whole", streaming=False))
    stream(desk, "paused", 1, count=1)
    desk.step(Paused("paused", True))
    for index in range(12):
        stream(desk, "fast", 1, first=7 * index, count=7, every_s=0.05)
        assert deliveries(desk.step(Output("slow", 1, index, 1))) == [index]
    attempts = [(work_id, 1) for work_id in ("fast", "slow", "paused", "whole")]
    desk.report("a", slots=8, attempts=attempts)
    assert offers(tick_until(desk, desk.now_s + 1.5)) == []
    desk.start(chat("young"))
    desk.report("b", slots=8)
    effects = tick_until(desk, desk.now_s + 0.9)
    assert sorted(one.work_id for one in withdrawals(effects)) == ["fast", "slow"]
    assert sorted((one.work_id, one.node_id) for one in offers(effects)) == [("fast", "b"), ("slow", "b")]
    assert desk.machine.members.nodes["a"].engines["e"].breaker.open


def test_the_streams_of_a_hung_engine_wait_for_another_and_not_for_it() -> None:
    """Its ejection ends after five seconds; who hung there does not go back while somebody else may do it."""
    desk = Desk()
    desk.report("b", slots=1)
    desk.start(chat("busy", streaming=False))
    desk.report("a", slots=8)
    for work_id in ("one", "two"):
        desk.start(chat(work_id))
    for index in range(30):
        stream(desk, "one", 1, first=index, count=1)
        desk.step(Output("two", 1, index, 1))
    desk.report("a", slots=8, attempts=[("one", 1), ("two", 1)])
    desk.report("b", slots=1, attempts=[("busy", 1)])
    assert withdrawals(tick_until(desk, 5.5)) == [Withdraw("one", 1), Withdraw("two", 1)]
    for second in range(6, 26):
        effects = desk.report("a", slots=8) + desk.report("b", slots=1, attempts=[("busy", 1)])
        assert effects + tick_until(desk, float(second)) == []
    again = desk.offered(desk.step(Ended("busy", 1, 0)))
    assert (again.work_id, again.node_id, again.emitted_tokens) == ("one", "b", 30)


def test_one_stream_that_stalls_alone_is_no_hung_engine() -> None:
    """The others of its engine flow: it moves, and the engine keeps its place."""
    desk = Desk()
    desk.report("a", slots=8)
    for work_id in ("still", "flows"):
        desk.start(chat(work_id))
        stream(desk, work_id, 1, count=30, every_s=0.05)
    desk.report("b", slots=8)
    index, moved = 30, []
    while not moved:
        stream(desk, "flows", 1, first=index, count=1)
        index += 1
        moved = offers(desk.step(Tick()))
    assert [(one.work_id, one.node_id) for one in moved] == [("still", "b")]
    assert not desk.machine.members.nodes["a"].engines["e"].breaker.open


# --- continuing ---


def test_a_continuation_is_as_long_as_what_it_reads_again_and_what_is_left() -> None:
    """The next decision counts both: what was sent is prompt now, and no output any more."""
    desk = Desk("a")
    desk.start()
    engine = desk.machine.members.nodes["a"].engines["e"]
    assert (engine.backlog, engine.prefill_tokens) == (110, 10)
    stream(desk, "w", 1, count=30)
    desk.report("b")
    desk.step(Left("a", 1))
    engine = desk.machine.members.nodes["b"].engines["e"]
    assert (engine.backlog, engine.prefill_tokens) == (110, 40)
    desk.step(Cancelled("w"))
    assert (engine.backlog, engine.prefill_tokens) == (0, 0)


def test_after_content_only_the_same_model_may_go_on() -> None:
    """Another quantisation would change the voice in mid-sentence."""
    desk = Desk("a")
    desk.start()
    stream(desk, "w", 1, count=1)
    desk.report("b", capabilities=[replace(MODEL, fingerprint="other")])
    assert offers(desk.step(Left("a", 1))) == []
    desk.report("c")
    assert desk.machine.state("w") is WorkState.RUNNING


@pytest.mark.parametrize(
    ("work", "capability", "resumable"),
    [
        (chat(resumable=False), MODEL, True),
        (chat(), MODEL, False),
        (chat(), NONE, True),
        (chat(needs_exact_resume=True), MODEL, True),
        (chat(), replace(MODEL, fingerprint=""), True),
    ],
)
def test_what_cannot_be_continued_ends_with_the_reason(
    work: Work, capability: Capability, resumable: bool
) -> None:
    """One clean error instead of a guess; waiting would not help."""
    desk = Desk()
    desk.report("a", capabilities=[capability])
    desk.report("b", capabilities=[capability])
    offer = desk.start(work)
    desk.step(Output("w", 1, 0, 1, resumable))
    (finish,) = finishes(desk.step(Left(offer.node_id, 1)))
    assert (finish.state, finish.reason) == (WorkState.FAILED, Reason.NOT_RESUMABLE)
    assert (finish.usage, finish.fault) == (Usage(10, 1), Fault.LOST)


def test_an_exact_continuation_needs_an_engine_that_keeps_the_state() -> None:
    """Seeds and penalties go on only where the prefix counts as generated."""
    desk = Desk()
    exact = replace(MODEL, continuation=Continuation.EXACT)
    desk.report("a", capabilities=[exact])
    desk.start(chat(needs_exact_resume=True))
    stream(desk, "w", 1, count=1)
    desk.report("b", capabilities=[MODEL])
    desk.report("c", capabilities=[exact])
    assert desk.offered(desk.step(Left("a", 1))).node_id == "c"


def test_a_stream_waits_half_a_minute_for_its_model_to_come_back() -> None:
    """An engine restarts in seconds: worth waiting for. A model that is gone is not."""
    desk = Desk("a")
    desk.start()
    stream(desk, "w", 1, count=1)
    desk.step(Left("a", 1))
    assert finishes(tick_until(desk, 29.0)) == []
    assert end_of(tick_until(desk, 31.0)) == (WorkState.FAILED, Reason.NOT_RESUMABLE)


def test_a_stream_whose_model_is_only_busy_waits_longer_but_not_for_ever() -> None:
    """Somebody has the model; two minutes of silence is still more than a client takes."""
    desk = Desk().at(200.0)
    desk.report("a", slots=1)
    desk.start(chat(deadline_s=260.0))
    stream(desk, "w", 1, count=1)
    desk.report("b", slots=1)
    desk.start(chat("other", streaming=False, output_tokens_max=10**6, deadline_s=260.0))
    desk.step(Left("a", 1))
    effects: list[Any] = []
    for second in range(202, 330, 2):
        assert second > 315 or not finishes(effects)
        desk.at(max(desk.now_s, float(second)))
        effects += desk.report("b", slots=1, attempts=[("other", 1)]) + tick_until(desk, second + 1.0)
    assert end_of(effects) == (WorkState.FAILED, Reason.NO_NODE)
    assert desk.machine.state("other") is WorkState.RUNNING


def test_a_stream_that_has_said_all_it_may_is_done() -> None:
    """Only the end was lost; there is nothing left to generate."""
    desk = Desk("a", "b")
    offer = desk.start(chat(output_tokens_max=3))
    stream(desk, "w", 1, count=3)
    (finish,) = finishes(desk.step(Left(offer.node_id, 1)))
    assert (finish.state, finish.reason, finish.usage) == (WorkState.DONE, "", Usage(10, 3))
    assert finish.fault is not None, "the front door must know that the end may be missing"


def test_what_was_sent_is_charged_once_while_the_stream_waits() -> None:
    """A client that gives up then pays for what it has read."""
    desk = Desk("a")
    desk.start()
    stream(desk, "w", 1, count=3)
    desk.step(Left("a", 1))
    (finish,) = finishes(desk.step(Cancelled("w")))
    assert finish.usage == Usage(10, 3)


def test_an_offer_that_is_refused_is_no_continuation() -> None:
    """Nothing was continued by it; only those that begin count towards the bound, and in the figures."""
    desk = Desk("a", "b")
    first = desk.start()
    stream(desk, "w", 1, count=1)
    again = desk.offered(desk.step(Left(first.node_id, 1)))
    desk.step(Refused("w", again.attempt, Refusal.FULL))
    (finish,) = finishes(desk.step(Cancelled("w")))
    assert (finish.attempts, finish.continued) == (2, 0)


def test_continuations_are_bounded() -> None:
    """A stream that breaks everywhere ends some day."""
    desk = Desk("a", "b")
    offer = desk.start()
    effects: list[Any] = []
    for generation in range(1, CONTINUED_MAX + 2):
        stream(desk, "w", offer.attempt, count=1)
        effects = desk.step(Ended("w", offer.attempt, 1, fault=Fault.LOST))
        for node_id in "ab":
            effects += desk.report(node_id, engine_generation=generation + 1)
        if generation <= CONTINUED_MAX:
            offer = desk.offered(effects)
            assert offer.emitted_tokens == generation
            desk.step(Accepted("w", offer.attempt))
    assert end_of(effects) == (WorkState.FAILED, Reason.EXHAUSTED)


def test_lost_work_may_wait_again_whatever_its_deadline_was() -> None:
    """The deadline is for starting. A work that ran for ten minutes is not refused because its node died."""
    desk = Desk("a")
    desk.start(chat(streaming=False, deadline_s=1.0))
    desk.at(5.0).step(Left("a", 1))
    assert desk.machine.state("w") is WorkState.QUEUED
    assert finishes(tick_until(desk, 34.9)) == []
    assert end_of(tick_until(desk, 35.1)) == (WorkState.FAILED, Reason.NO_NODE)


def test_lost_work_keeps_a_deadline_that_is_later() -> None:
    """It was promised that time, and has sent nothing that a reader would wait behind."""
    desk = Desk("a")
    desk.start(chat(streaming=False, deadline_s=100.0))
    desk.at(5.0).step(Left("a", 1))
    assert finishes(tick_until(desk, 99.9)) == []
    assert end_of(tick_until(desk, 100.0)) == (WorkState.FAILED, Reason.NO_NODE)
