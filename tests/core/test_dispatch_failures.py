"""The dispatcher, as transcripts: nodes die, refuse and forget, attempts fail, messages get lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fleet import (
    Desk,
    chat,
    deliveries,
    end_of,
    finishes,
    offers,
    report,
    stream,
    tick_until,
    withdrawals,
)

from groundswell.core.contract import (
    Cancelled,
    Left,
    Paused,
    Reason,
    Reported,
    Send,
    Tick,
)
from groundswell.core.verdict import ATTEMPTS_MAX, FAILURES_MAX, UNANSWERED_MAX
from groundswell.model.messages import Accepted, Ended, Fault, Output, Refusal, Refused, Withdraw
from groundswell.model.money import Usage
from groundswell.model.work import Kind, WorkClass, WorkState


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
    (finish,) = finishes(desk.step(Ended("w", 1, 0, fault=Fault.REJECTED)))
    assert (finish.state, finish.reason, finish.fault) == (WorkState.FAILED, Reason.REJECTED, Fault.REJECTED)


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
    (finish,) = finishes(effects)
    assert (finish.state, finish.reason) == (WorkState.FAILED, Reason.EXHAUSTED)
    assert finish.attempts == UNANSWERED_MAX + 1


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


def test_a_slot_that_a_full_engine_frees_is_filled() -> None:
    """It has others' work on it, and ours: when ours ends there is room, whatever the refusal said before."""
    desk = Desk("a")
    desk.start(chat("w1"))
    desk.arrive(chat("w2"))
    assert offers(desk.step(Refused("w2", 1, Refusal.FULL))) == []
    assert desk.offered(desk.step(Ended("w1", 1, 0))).work_id == "w2"


def test_a_refusal_is_no_loss_and_moves_no_deadline() -> None:
    """Nothing has begun; the client is told when it was promised to be told."""
    desk = Desk("a")
    desk.at(1.0).arrive(chat(deadline_s=3.0))
    desk.step(Refused("w", 1, Refusal.FULL))
    assert end_of(tick_until(desk, 3.0)) == (WorkState.FAILED, Reason.DEADLINE)


def test_a_work_whose_attempts_all_stall_ends_with_that_fault() -> None:
    """The client is told that engines were silent, not that they broke."""
    desk = Desk("a")
    offer = desk.start(chat(deadline_s=500.0))
    effects = []
    for second in range(1, 60):
        desk.report("a", attempts=[("w", offer.attempt)])
        seen = tick_until(desk, float(second))
        for offer in offers(seen):
            desk.step(Accepted("w", offer.attempt))
        effects += seen
    (finish,) = finishes(effects)
    assert (finish.reason, finish.fault) == (Reason.EXHAUSTED, Fault.STALLED)


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


def test_every_attempt_that_we_do_not_know_is_withdrawn_beside_those_that_we_do() -> None:
    """One that is ours does not hide the ghosts behind it."""
    desk = Desk("a")
    desk.start()
    listed = [("w", 1), ("ghost", 3), ("other", 1)]
    assert withdrawals(desk.report("a", attempts=listed)) == [Withdraw("ghost", 3), Withdraw("other", 1)]


def test_slots_that_others_hold_are_those_that_are_not_ours() -> None:
    """Two of four are another gateway's, one is ours: there is room for one more."""
    desk = Desk()
    desk.report("a", slots=4)
    desk.start()
    desk.report("a", slots=4, running=3, attempts=[("w", 1)])
    desk.start(chat("last"))
    assert desk.arrive(chat("waits")) == []


def two_engines(sequence: int, **changes: Any) -> Reported:
    """A node with two equal engines of one slot each."""
    one = report("a", sequence, slots=1, **changes)
    return Reported(replace(one, engines=(one.engines[0], replace(one.engines[0], engine_id="f"))))


def test_all_that_ran_on_any_engine_of_a_node_moves_when_it_leaves() -> None:
    """A machine may have several engines, and what is lost on one does not hide what is lost on another."""
    desk = Desk()
    desk.step(two_engines(1))
    for work_id in ("w1", "w2"):
        desk.start(chat(work_id))
    desk.report("b")
    moved = offers(desk.step(Left("a", 1)))
    assert sorted((one.work_id, one.node_id) for one in moved) == [("w1", "b"), ("w2", "b")]


def test_all_that_a_report_shows_to_be_lost_moves_from_every_engine() -> None:
    """Both engines were restarted between two reports."""
    desk = Desk()
    desk.step(two_engines(1))
    for work_id in ("w1", "w2"):
        desk.start(chat(work_id))
    desk.report("b")
    effects = desk.step(two_engines(9, engine_generation=2))
    assert sorted(one.work_id for one in offers(effects)) == ["w1", "w2"]


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


def test_a_stream_that_cannot_move_ends_with_its_silent_node() -> None:
    """Its client is told at once, also when it had paused and heard nothing for a while."""
    desk = Desk("a")
    desk.start(chat(resumable=False))
    stream(desk, "w", 1, count=1)
    desk.step(Paused("w", True))
    assert finishes(tick_until(desk, 9.9)) == []
    assert end_of(tick_until(desk, 10.0)) == (WorkState.FAILED, Reason.NOT_RESUMABLE)


def test_a_frame_says_that_the_offer_was_accepted() -> None:
    """The answer to it may be lost or overtaken; the work runs all the same."""
    desk = Desk("a")
    desk.arrive()
    assert deliveries(desk.step(Output("w", 1, 0))) == [0]
    assert withdrawals(tick_until(desk, 3.9)) == []


def test_an_answer_that_was_not_streamed_is_not_charged_when_it_is_cancelled() -> None:
    """Nothing of it reached the client, whatever the engine has made."""
    desk = Desk("a")
    desk.start(chat(streaming=False))
    desk.step(Output("w", 1, 0, 5))
    (finish,) = finishes(desk.step(Cancelled("w")))
    assert finish.usage == Usage()


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
