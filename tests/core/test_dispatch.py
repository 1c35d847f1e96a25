"""The dispatcher, as transcripts: the plain life of a work, and the queue."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet import (
    MODEL,
    Desk,
    chat,
    deliveries,
    end_of,
    finishes,
    offers,
    play,
    report,
    tick_until,
)

from groundswell.core.contract import (
    Arrived,
    Cancelled,
    Deliver,
    Finish,
    Left,
    Reason,
    Reported,
    Send,
    Tick,
)
from groundswell.core.dispatch import Dispatcher
from groundswell.model.messages import Accepted, Ended, Offer, Output
from groundswell.model.money import Price, Usage
from groundswell.model.work import Kind, WorkClass, WorkState

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
    assert (finish.node_id, finish.engine_id) == ("", ""), "it was nowhere"


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


def test_a_full_queue_turns_nobody_away_who_need_not_wait() -> None:
    """Others wait for what nobody has; a free seat is no reason to say no."""
    desk = Desk("a", queue_works_max=1)
    desk.arrive(chat("odd", region="nowhere"))
    assert desk.offered(desk.arrive(chat("plain"))).work_id == "plain"


def test_the_engine_that_has_a_free_slot_is_looked_at_in_a_fleet_of_any_size() -> None:
    """Among hundreds that do not fit, a few drawn at random would miss the one that does."""
    desk = Desk()
    desk.report("special", slots=1, region="north")
    running = desk.start(chat("first", region="north")).work_id
    for number in range(200):
        desk.report(f"n{number}")
    for draw in range(20):
        assert desk.arrive(chat(f"w{draw}", region="north"), draw=draw) == []
        running = desk.offered(desk.step(Ended(running, 1, 0))).work_id
        assert running == f"w{draw}"


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


def test_the_wait_is_half_a_minute_or_more_while_nobody_is_there() -> None:
    """Without a single slot nothing can be predicted."""
    desk = Desk("a", queue_works_max=1)
    desk.step(Left("a", 1))
    desk.arrive(chat("w1"))
    (finish,) = finishes(desk.arrive(chat("w2")))
    assert finish.reason == Reason.QUEUE_FULL
    assert 30.0 <= (finish.retry_after_s or 0) <= 45.0


def test_works_that_were_done_fast_shorten_the_wait() -> None:
    """The pace is learned for each model from what its engines did."""
    desk = Desk(queue_works_max=20)
    desk.report("a", slots=1)
    for number in range(40):
        desk.start(chat(f"d{number}"))
        desk.at(desk.now_s + 0.1).step(Ended(f"d{number}", 1, 0))
    for number in range(21):
        desk.arrive(chat(f"w{number}"))
    (finish,) = finishes(desk.arrive(chat("last")))
    assert (finish.retry_after_s or 0) <= 30.0


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


def test_a_draining_node_gets_nothing_new_and_keeps_what_it_has() -> None:
    """A planned end must not cost a single request."""
    desk = Desk("a", "b")
    first = desk.start()
    desk.report(first.node_id, draining=True, attempts=[("w", 1)])
    for number in range(2):
        assert desk.start(chat(f"x{number}")).node_id != first.node_id
    assert desk.arrive(chat("last")) == []
    assert deliveries(desk.step(Output("w", 1, 0, 1))) == [0]


# --- the machine as a whole ---


def test_the_machine_forgets_what_has_ended() -> None:
    """Nothing that grows at run time is without a bound: after a thousand works it holds none."""
    desk = Desk("a")
    for number in range(1000):
        desk.at(number * 0.01)
        offer = desk.start(chat(f"w{number}"), draw=number)
        desk.step(Output(offer.work_id, 1, 0, 1))
        desk.step(Ended(offer.work_id, 1, 1))
    machine = desk.machine
    assert len(machine) == len(machine._slots._engines) == machine.waiting.works == 0
    assert len(machine._timers._heap) < 300


def test_an_idle_dispatcher_does_not_want_to_be_woken() -> None:
    """No alarm, no tick."""
    desk = Desk()
    assert desk.machine.wake_s is None
    assert desk.step(Tick()) == []
    assert desk.step(Left("nobody", 1)) == []
