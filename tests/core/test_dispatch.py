"""The dispatcher, as transcripts: what happens, and exactly what follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fleet import MODEL, Desk, chat, deliveries, finishes, offers, play, report, withdrawals

from groundswell.core.dispatch import (
    Arrived,
    Cancelled,
    Deliver,
    Dispatcher,
    Finish,
    Left,
    Paused,
    Reason,
    Reported,
    Send,
    Tick,
)
from groundswell.core.verdict import ATTEMPTS_MAX, CONTINUED_MAX, FAILURES_MAX, UNANSWERED_MAX
from groundswell.model.messages import Accepted, Ended, Fault, Offer, Output, Refusal, Refused, Withdraw
from groundswell.model.money import Price, Usage
from groundswell.model.node import Capability, Continuation
from groundswell.model.work import Kind, Work, WorkClass, WorkState

NONE = replace(MODEL, continuation=Continuation.NONE)


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


# --- the plain life of a work ---


def test_a_stream_goes_to_a_node_flows_and_is_done() -> None:
    """The whole plain life of a request, effect by effect."""
    play(
        Dispatcher(),
        (0.0, Reported(report("a")), []),
        (1.0, Arrived(chat(), 7), [Send("a", Offer("w", 1, "a", "e", Kind.CHAT, "m"))]),
        (1.1, Accepted("w", 1), []),
        (1.5, Output("w", 1, 0), [Deliver("w", 1, 0)]),
        (1.6, Output("w", 1, 1, tokens=1), [Deliver("w", 1, 1)]),
        (1.7, Output("w", 1, 2, tokens=2), [Deliver("w", 1, 2)]),
        (
            1.8,
            Ended("w", 1, frames=3, usage=Usage(12, 3)),
            [
                Finish(
                    "w", WorkState.DONE, node_id="a", engine_id="e", usage=Usage(12, 3), attempts=1,
                    queue_wait_s=0.0, ttft_s=pytest.approx(0.6), duration_s=pytest.approx(0.8),
                )
            ],
        ),
        (1.9, Ended("w", 1, frames=3), []),
    )  # fmt: skip


def test_the_offer_carries_the_price_and_the_end_repeats_it() -> None:
    """A node is paid what it asked when it was chosen, even if it asks for more later."""
    desk = Desk()
    desk.report("a", capabilities=[replace(MODEL, price=Price(1, 2))])
    offer = desk.start()
    assert offer.price == Price(1, 2)
    desk.report("a", capabilities=[replace(MODEL, price=Price(100, 200))], attempts=[("w", 1)])
    (finish,) = finishes(desk.step(Ended("w", 1, frames=0)))
    assert finish.price == Price(1, 2)


def test_a_model_that_nobody_has_is_refused_at_once() -> None:
    """A typing error in the model's name must not wait for its deadline; and retrying does not help."""
    (finish,) = finishes(Desk("a").arrive(chat(model="nonsense")))
    assert (finish.state, finish.reason) == (WorkState.REFUSED, Reason.UNKNOWN_MODEL)
    assert finish.retry_after_s is None


def test_a_known_model_without_a_healthy_node_waits_until_the_deadline() -> None:
    """A node that restarts is back in seconds: the work waits, and is refused if it does not come."""
    desk = Desk()
    desk.report("a", healthy=False)
    assert desk.arrive(chat(deadline_s=5.0)) == []
    assert desk.machine.state("w") is WorkState.QUEUED
    (finish,) = finishes(tick_until(desk, 5.0))
    assert (finish.state, finish.reason) == (WorkState.REFUSED, Reason.NO_NODE)
    assert 1.0 <= (finish.retry_after_s or 0) <= 120.0
    assert desk.machine.state("w") is None


def test_a_work_whose_deadline_has_passed_is_refused_when_it_cannot_start() -> None:
    """Nobody waits for an answer that comes too late."""
    desk = Desk()
    desk.report("a", slots=0)
    assert end_of(desk.arrive(chat(deadline_s=0.0))) == (WorkState.REFUSED, Reason.DEADLINE)


def test_the_same_work_arriving_twice_is_one_work() -> None:
    """A repeated event must not open a second life of the same id."""
    desk = Desk("a")
    desk.start()
    assert desk.arrive() == []
    assert len(desk.machine) == 1


def test_embeddings_and_transcodes_take_the_same_path() -> None:
    """One scheduler for all kinds; what the engine produced is the usage."""
    both = replace(MODEL, kinds=frozenset({Kind.EMBEDDING, Kind.TRANSCODE}))
    desk = Desk()
    desk.report("a", capabilities=[both])
    desk.start(chat("e1", kind=Kind.EMBEDDING, streaming=False, resumable=False))
    desk.start(chat("t1", kind=Kind.TRANSCODE, streaming=False, resumable=False, pixels=10**9))
    desk.at(1.0)
    (first,) = finishes(desk.step(Ended("e1", 1, 0, Usage(9, 0))))
    (second,) = finishes(desk.step(Ended("t1", 1, 0, Usage(pixels=10**9, media_ms=4000))))
    assert first.usage == Usage(9, 0)
    assert (second.usage.pixels, second.usage.media_ms) == (10**9, 4000)
    assert desk.machine.waiting.works == 0


# --- the queue ---


def test_works_wait_for_a_slot_and_get_it_in_order() -> None:
    """In flight is never above slots, and first come is first served."""
    desk = Desk()
    desk.report("a", slots=1)
    desk.start(chat("w1"))
    assert desk.arrive(chat("w2")) == desk.arrive(chat("w3")) == []
    assert [one.work_id for one in offers(desk.step(Ended("w1", 1, 0)))] == ["w2"]
    assert [one.work_id for one in offers(desk.step(Ended("w2", 1, 0)))] == ["w3"]


def test_more_urgent_classes_go_first() -> None:
    """A live segment must not wait behind a batch."""
    desk = Desk()
    desk.report("a", slots=1)
    desk.start(chat("w0"))
    for work_class in reversed(WorkClass):
        desk.arrive(chat(work_class.value, work_class=work_class))
    order, running = [], "w0"
    for _ in WorkClass:
        running = desk.offered(desk.step(Ended(running, 1, 0))).work_id
        order.append(running)
    assert order == ["live", "interactive", "standard", "batch"]


def test_urgency_counts_across_lanes() -> None:
    """Works with other needs wait in other lanes; the slot still goes to the most urgent of all."""
    desk = Desk()
    desk.report("a", slots=1)
    desk.start(chat("w0"))
    desk.arrive(chat("cheap", price_max=5))
    desk.arrive(chat("urgent", work_class=WorkClass.LIVE))
    assert desk.offered(desk.step(Ended("w0", 1, 0))).work_id == "urgent"


def test_a_full_queue_refuses_with_the_time_to_drain() -> None:
    """Beyond the bound the honest answer is no, and when to come back."""
    desk = Desk(queue_works_max=2)
    desk.report("a", slots=1)
    desk.start(chat("w0"))
    desk.arrive(chat("w1"))
    desk.arrive(chat("w2"))
    waits = []
    for number in range(3, 40):
        (finish,) = finishes(desk.arrive(chat(f"w{number}"), draw=number))
        assert (finish.state, finish.reason) == (WorkState.REFUSED, Reason.QUEUE_FULL)
        waits.append(finish.retry_after_s)
    assert all(1.0 <= one <= 120.0 for one in waits)
    assert len(set(waits)) > 30, "clients must not all come back at the same moment"


def test_the_queue_is_bounded_in_tokens_as_well() -> None:
    """A few enormous prompts fill a queue as well as many small ones; an empty one takes any size."""
    desk = Desk(queue_units_max=1000)
    desk.report("a", slots=1)
    desk.start(chat("w0"))
    assert desk.arrive(chat("big", prompt_tokens=5000)) == []
    assert end_of(desk.arrive(chat("small"))) == (WorkState.REFUSED, Reason.QUEUE_FULL)


def test_a_longer_queue_means_a_longer_retry_after() -> None:
    """Retry-After is a prediction, not a constant."""
    waits = []
    for waiting in (10, 400):
        desk = Desk(queue_works_max=waiting)
        desk.report("a", slots=1)
        desk.start(chat("w"))
        for number in range(waiting):
            desk.arrive(chat(f"w{number}"))
        (finish,) = finishes(desk.arrive(chat("last")))
        waits.append(finish.retry_after_s or 0)
    assert waits[0] < waits[1]


def test_a_waiting_work_is_cancelled_without_a_trace() -> None:
    """A client that goes away frees its place in the queue."""
    desk = Desk()
    desk.report("a", slots=1)
    desk.start(chat("w0"))
    desk.arrive(chat("w1"))
    assert end_of(desk.step(Cancelled("w1"))) == (WorkState.CANCELLED, Reason.CANCELLED)
    assert desk.machine.waiting.works == 0
    assert offers(desk.step(Ended("w0", 1, 0))) == []
    assert desk.step(Cancelled("w1")) == []


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


# --- nodes die, stall, refuse, forget ---


def test_a_work_outlives_the_node_it_was_first_given_to() -> None:
    """Before content went out, moving is free and nobody notices."""
    desk = Desk("a", "b")
    first = desk.start(chat(streaming=False, resumable=False))
    again = desk.offered(desk.step(Left(first.node_id, 1)))
    assert again.node_id != first.node_id
    assert again.emitted_tokens == 0
    assert end_of(desk.step(Ended("w", 2, 0))) == (WorkState.DONE, "")


def test_lost_work_goes_to_the_front_of_the_queue() -> None:
    """Who was being served is served on before anybody new, whatever the class."""
    desk = Desk()
    desk.report("a", slots=1)
    desk.report("b", slots=1)
    first, second = desk.start(chat("w1")), desk.start(chat("w2"))
    desk.arrive(chat("w3", work_class=WorkClass.LIVE))
    assert offers(desk.step(Left(first.node_id, 1))) == []
    assert [one.work_id for one in offers(desk.step(Ended(second.work_id, 1, 0)))] == ["w1"]


def test_a_poison_work_touches_two_nodes_and_no_third() -> None:
    """What kills two engines before it has said a word would kill the whole fleet."""
    desk = Desk("a", "b", "c")
    first = desk.start()
    second = desk.offered(desk.step(Left(first.node_id, 1)))
    assert second.node_id != first.node_id
    assert end_of(desk.step(Left(second.node_id, 1))) == (WorkState.FAILED, Reason.POISON)


@pytest.mark.parametrize("fault", [Fault.BROKEN, Fault.STALLED, Fault.CANCELLED])
def test_broken_attempts_are_tried_again_a_few_times(fault: Fault) -> None:
    """An engine's error is worth another engine, but not for ever."""
    desk = Desk(*"abcdef")
    desk.start()
    for attempt in range(1, FAILURES_MAX + 1):
        again = desk.offered(desk.step(Ended("w", attempt, 0, fault=fault)))
        desk.step(Accepted("w", again.attempt))
    (finish,) = finishes(desk.step(Ended("w", FAILURES_MAX + 1, 0, fault=fault)))
    assert (finish.state, finish.reason, finish.fault) == (WorkState.FAILED, Reason.EXHAUSTED, fault)
    assert finish.usage == Usage()


def test_a_rejected_work_fails_at_once() -> None:
    """A wrong request is wrong on every node; trying it elsewhere only costs."""
    desk = Desk("a", "b")
    desk.start()
    effects = desk.step(Ended("w", 1, 0, fault=Fault.REJECTED))
    assert end_of(effects) == (WorkState.FAILED, Reason.REJECTED)


def test_never_back_to_the_process_that_failed_it_while_there_is_another() -> None:
    """The other one may be busy: waiting for it beats failing in the same place again."""
    desk = Desk()
    desk.report("a", slots=1)
    desk.report("b", slots=1)
    first, second = desk.start(chat("w1")), desk.start(chat("w2"))
    desk.arrive(chat("w3"))
    effects = desk.step(Ended("w1", 1, 0, fault=Fault.BROKEN))
    assert [(one.work_id, one.node_id) for one in offers(effects)] == [("w3", first.node_id)]
    (again,) = offers(desk.step(Ended("w2", 1, 0)))
    assert (again.work_id, again.node_id) == ("w1", second.node_id)


def test_a_single_node_gets_its_work_again() -> None:
    """With one node, trying again there is all there is."""
    desk = Desk("a")
    desk.start()
    assert desk.offered(desk.step(Ended("w", 1, 0, fault=Fault.BROKEN))).node_id == "a"


def test_an_offer_that_is_not_answered_is_withdrawn_and_goes_elsewhere() -> None:
    """Messages get lost; its slot stays taken until the node says or shows that it does not run there."""
    desk = Desk()
    desk.report("a", slots=1)
    desk.report("b", slots=1)
    first = desk.offered(desk.arrive())
    effects = tick_until(desk, 2.0)
    assert effects[0] == Send(first.node_id, Withdraw("w", 1))
    assert desk.offered(effects).node_id != first.node_id
    assert desk.arrive(chat("w2")) == [], "no slot is free on either"
    assert desk.offered(desk.step(Ended("w", 1, 0, fault=Fault.CANCELLED))).work_id == "w2"


def test_unanswered_offers_are_bounded() -> None:
    """A link that swallows everything must not keep a work busy for ever."""
    desk = Desk(*"abcdefgh")
    desk.arrive()
    effects = []
    for second in range(2, 2 * UNANSWERED_MAX + 4, 2):
        for node_id in "abcdefgh":
            desk.report(node_id)
        effects += tick_until(desk, float(second))
    assert end_of(effects) == (WorkState.FAILED, Reason.EXHAUSTED)


@pytest.mark.parametrize("reason", list(Refusal))
def test_a_refused_offer_moves_on_and_the_refuser_is_believed(reason: Refusal) -> None:
    """Our view was old; the node's answer is newer, until its next report."""
    desk = Desk("a", "b")
    first = desk.offered(desk.arrive())
    again = desk.offered(desk.step(Refused("w", 1, reason)))
    assert again.node_id != first.node_id
    for number in range(3):
        assert all(one.node_id != first.node_id for one in offers(desk.arrive(chat(f"x{number}"))))
    freed = desk.report(first.node_id)
    assert [one.node_id for one in offers(freed)] == [first.node_id] * 2


def test_refusals_are_bounded_too() -> None:
    """A node that says it has room and refuses each offer must not spin the brain."""
    desk = Desk("a")
    effects = desk.arrive()
    for _ in range(ATTEMPTS_MAX):
        (offer,) = offers(effects)
        effects = desk.step(Refused("w", offer.attempt, Refusal.FULL)) + desk.report("a")
    assert end_of(effects) == (WorkState.FAILED, Reason.EXHAUSTED)


def test_a_late_refusal_or_acceptance_of_a_dead_attempt_changes_nothing_but_the_slot() -> None:
    """A node that accepts what was withdrawn is told once more."""
    desk = Desk("a")
    desk.arrive()
    desk.step(Cancelled("w"))
    assert desk.step(Accepted("w", 1)) == [Send("a", Withdraw("w", 1))]
    assert desk.step(Refused("w", 1, Refusal.FULL)) == []
    assert desk.step(Accepted("w", 1)) == []
    assert desk.machine.router.pools[(Kind.CHAT, "m")].free == 2


def test_cancelling_reaches_the_node_and_charges_what_was_sent() -> None:
    """The engine is freed at once, and a client pays for what it got."""
    desk = Desk("a")
    desk.start()
    stream(desk, "w", 1, count=3)
    effects = desk.step(Cancelled("w"))
    assert effects[0] == Send("a", Withdraw("w", 1))
    (finish,) = finishes(effects)
    assert (finish.state, finish.usage, finish.node_id) == (WorkState.CANCELLED, Usage(10, 3), "a")
    assert desk.step(Output("w", 1, 3, 1)) == []


def test_two_reports_that_lack_an_attempt_mean_that_it_is_lost() -> None:
    """A node that forgot (or never told us of the end) is found out by what it does not list."""
    desk = Desk("a", "b")
    first = desk.start()
    desk.at(0.5)
    assert desk.report(first.node_id) == [], "sent before it could know"
    desk.at(2.5)
    assert desk.report(first.node_id) == []
    desk.at(4.5)
    assert desk.offered(desk.report(first.node_id)).node_id != first.node_id


def test_a_report_that_lists_it_again_clears_the_suspicion() -> None:
    """One report may have been late; only two in a row count. A listed offer counts as accepted."""
    desk = Desk("a")
    desk.arrive()
    listed = [("w", 1)]
    for second, attempts in [(1.5, listed), (3.0, []), (5.0, listed), (7.0, []), (9.0, listed)]:
        desk.at(second)
        assert desk.report("a", attempts=attempts) == []
    assert desk.machine.state("w") is WorkState.RUNNING


def test_an_attempt_that_we_do_not_know_is_withdrawn() -> None:
    """After a lost withdrawal a node would work for nobody."""
    desk = Desk("a")
    assert desk.report("a", attempts=[("ghost", 3)]) == [Send("a", Withdraw("ghost", 3))]


def test_another_gateways_attempts_are_left_alone_and_take_their_slots() -> None:
    """Gateways share nodes; each withdraws only what it began itself."""
    desk = Desk(id_prefix="g1-")
    assert desk.report("a", attempts=[("g2-w", 1), ("g2-x", 1)]) == []
    assert desk.arrive(chat("g1-w")) == []
    assert desk.offered(desk.report("a", attempts=[("g2-w", 1)])).work_id == "g1-w"


def test_a_withdrawal_that_was_lost_is_repeated_and_a_slot_comes_back_by_report() -> None:
    """The confirmation may be lost, too; the node's list is the truth."""
    desk = Desk()
    desk.report("a", slots=1)
    desk.start()
    desk.step(Cancelled("w"))
    desk.at(0.5)
    assert desk.report("a", slots=1) == [], "too early to tell"
    assert desk.arrive(chat("w2")) == []
    desk.at(2.0)
    assert desk.report("a", slots=1, attempts=[("w", 1)]) == [Send("a", Withdraw("w", 1))]
    desk.at(4.0)
    assert desk.offered(desk.report("a", slots=1)).work_id == "w2"


def test_a_restarted_engine_has_lost_what_its_report_does_not_list() -> None:
    """The generation tells, even when the messages about the crash were lost."""
    desk = Desk("a", "b")
    first = desk.start()
    desk.at(0.2)
    again = desk.offered(desk.report(first.node_id, engine_generation=2))
    assert again.attempt == 2
    assert desk.step(Output("w", 1, 0, 1)) == []


def test_a_restart_does_not_take_what_the_new_process_runs_or_has_not_got_yet() -> None:
    """We may have offered before we heard of the restart."""
    desk = Desk()
    desk.report("a", slots=4)
    desk.start(chat("listed"))
    desk.arrive(chat("on its way"))
    desk.start(chat("gone"))
    desk.step(Cancelled("gone"))
    desk.at(0.5)
    assert desk.report("a", slots=4, engine_generation=2, attempts=[("listed", 1)]) == []
    assert desk.machine.state("listed") is desk.machine.state("on its way") is WorkState.RUNNING
    assert desk.machine.router.pools[(Kind.CHAT, "m")].free == 2


def test_a_newer_generation_of_a_node_ends_the_older() -> None:
    """A restarted node must not be taken for its ghost."""
    desk = Desk("a")
    desk.start()
    effects = desk.report("a", generation=2)
    assert desk.offered(effects).attempt == 2
    assert desk.step(Output("w", 1, 0, 1)) == []
    desk.sequence += 100
    assert desk.report("a", generation=1) == [], "the ghost still reports"
    assert desk.step(Left("a", 1)) == [], "and says goodbye"
    assert desk.machine.state("w") is WorkState.RUNNING


def test_silence_makes_a_node_suspect_then_dead() -> None:
    """Three missed heartbeats: nothing new. Ten seconds: what ran there moves."""
    desk = Desk("a")
    first = desk.start(chat(streaming=False))
    tick_until(desk, 6.5)
    desk.report("b")
    assert desk.start(chat("w2")).node_id == "b"
    desk.at(7.0)
    effects = tick_until(desk, 10.0)
    assert [(one.work_id, one.node_id) for one in offers(effects)] == [("w", "b")]
    assert first.node_id == "a"


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
    assert withdrawals(tick_until(desk, 9.0)) == []
    assert withdrawals(tick_until(desk, 12.1)) == [Withdraw("w", 1)]


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


# --- continuing ---


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
    desk = Desk()
    desk.report("a", slots=1)
    desk.start()
    stream(desk, "w", 1, count=1)
    desk.report("b", slots=1)
    desk.start(chat("other", streaming=False, output_tokens_max=10**6))
    desk.step(Left("a", 1))
    effects = []
    for second in range(2, 130, 2):
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
    assert (finish.state, finish.usage) == (WorkState.DONE, Usage(10, 3))


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
    assert end_of(tick_until(desk, 35.1)) == (WorkState.FAILED, Reason.NO_NODE)


# --- breakers ---


def fail(desk: Desk, node_id: str, number: int) -> None:
    """One work breaks on this node; nothing else changes."""
    offer = desk.start(chat(f"f{number}", streaming=False), draw=number)
    while offer.node_id != node_id:
        desk.step(Ended(offer.work_id, offer.attempt, 0))
        number += 1000
        offer = desk.start(chat(f"f{number}", streaming=False), draw=number)
    desk.step(Ended(offer.work_id, 1, 0, fault=Fault.BROKEN))
    desk.step(Cancelled(offer.work_id))
    for other in "abc":
        desk.step(Ended(offer.work_id, 2, 0))
        assert other


def test_an_engine_that_fails_three_times_is_out_and_returns_by_one_probe() -> None:
    """A grey engine takes no more work until a single work has shown that it is well again."""
    desk = Desk("a", "b", "c")
    for number in range(1, 4):
        fail(desk, "a", number)
    pool = desk.machine.router.pools[(Kind.CHAT, "m")]
    assert pool.available == 2
    for node_id in "abc":
        desk.report(node_id)
    tick_until(desk, 5.1)
    for node_id in "abc":
        desk.report(node_id)
    assert pool.available == 3
    started = [desk.start(chat(f"p{number}"), draw=number) for number in range(5)]
    (probe,) = [one for one in started if one.node_id == "a"]
    assert pool.free == 0, "one probe at a time"
    desk.step(Ended(probe.work_id, 1, 0))
    assert pool.free == 2


def test_a_probe_that_the_client_cancels_proves_nothing() -> None:
    """The next work is the probe then; and a failed one sends the engine out again, for longer."""
    desk = Desk("a", "b", "c")
    pool = desk.machine.router.pools[(Kind.CHAT, "m")]
    for number in range(1, 4):
        fail(desk, "a", number)
    tick_until(desk, 5.1)
    for node_id in "abc":
        desk.report(node_id)
    probe = next(one for number in range(9) if (one := desk.start(chat(f"p{number}"))).node_id == "a")
    free = pool.free
    desk.step(Cancelled(probe.work_id))
    assert pool.free == free + 1
    while (again := desk.start(chat(f"q{free}"))).node_id != "a":
        free += 1
    desk.step(Ended(again.work_id, 1, 0, fault=Fault.BROKEN))
    assert pool.available == 2
    for work_id in list(desk.machine._open):
        desk.step(Cancelled(work_id))  # Streams that stall would ask for it as their last resort.
    for second in (7.0, 9.0, 11.0, 13.0):
        tick_until(desk, second)
        for node_id in "abc":
            desk.report(node_id)
        assert pool.available == 2


def test_a_stream_whose_other_engines_died_may_use_an_ejected_one_at_once() -> None:
    """A guess about the next work must not keep a reader waiting in mid-sentence for half a minute."""
    desk = Desk("a", "b")
    for number in range(1, 4):
        fail(desk, "a", number)
    pool = desk.machine.router.pools[(Kind.CHAT, "m")]
    assert pool.available == 1
    offer = desk.start()
    assert offer.node_id == "b"
    stream(desk, "w", 1, count=2)
    again = desk.offered(desk.step(Left("b", 1)))
    assert (again.node_id, again.attempt, again.emitted_tokens) == ("a", 2, 2)


def test_the_ejection_of_an_engine_that_is_gone_ends_quietly() -> None:
    """Its alarm may still ring."""
    desk = Desk("a", "b", "c")
    for number in range(1, 4):
        fail(desk, "a", number)
    desk.step(Left("a", 1))
    assert offers(tick_until(desk, 5.5)) == []


def test_never_more_than_half_of_a_models_seats_are_taken_out() -> None:
    """When everything fails, the fault is more likely the work's or ours: panic serves on."""
    desk = Desk("a", "b", "c")
    for start, node_id in ((1, "a"), (11, "b"), (21, "c")):
        for number in range(start, start + 3):
            fail(desk, node_id, number * 50)
    assert desk.machine.router.pools[(Kind.CHAT, "m")].available == 2


def test_a_draining_node_gets_nothing_new_and_keeps_what_it_has() -> None:
    """A planned end must not cost a single request."""
    desk = Desk("a", "b")
    first = desk.start()
    desk.report(first.node_id, draining=True, attempts=[("w", 1)])
    for number in range(2):
        assert desk.start(chat(f"x{number}")).node_id != first.node_id
    assert desk.arrive(chat("last")) == []
    assert deliveries(desk.step(Output("w", 1, 0, 1))) == [0]


def test_the_machine_forgets_what_has_ended() -> None:
    """Nothing that grows at run time is without a bound: after a thousand works it holds none."""
    desk = Desk("a")
    for number in range(1000):
        desk.at(number * 0.01)
        offer = desk.start(chat(f"w{number}"), draw=number)
        desk.step(Output(offer.work_id, 1, 0, 1))
        desk.step(Ended(offer.work_id, 1, 1))
    machine = desk.machine
    assert len(machine) == len(machine._slots) == machine.waiting.works == 0
    assert len(machine._timers._heap) < 300


def test_alarms_of_one_moment_that_settle_each_other_do_nothing_twice() -> None:
    """A node dies at the moment at which its stream stalls: the work moves once."""
    desk = Desk("a")
    desk.arrive(chat("w1"))
    desk.arrive(chat("w2"))
    desk.arrive(chat("late", deadline_s=10.0))
    desk.at(11.0)
    effects = desk.step(Tick())
    assert {one.work_id for one in finishes(effects)} == {"late"}
    assert len(withdrawals(effects)) == 2
    assert desk.machine.state("w1") is desk.machine.state("w2") is WorkState.QUEUED


def test_an_idle_dispatcher_does_not_want_to_be_woken() -> None:
    """No alarm, no tick."""
    desk = Desk()
    assert desk.machine.wake_s is None
    assert desk.step(Tick()) == []
    assert desk.step(Left("nobody", 1)) == []
