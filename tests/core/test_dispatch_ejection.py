"""The dispatcher, as transcripts: engines whose work fails are taken out, and come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fleet import MODEL, Desk, chat, offers, stream, tick_until

from groundswell.core.contract import Cancelled, Left
from groundswell.model.messages import Ended, Fault
from groundswell.model.work import Kind


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


def test_one_failure_is_doubted_until_a_work_goes_well() -> None:
    """Between the first stall and the node's own notice, new work should not walk into the same engine."""
    desk = Desk("a", "b")
    offer = desk.start(draw=1)
    desk.step(Ended(offer.work_id, 1, 0, fault=Fault.BROKEN))
    engine = desk.machine.members.nodes[offer.node_id].engines["e"]
    assert engine.doubted_s == desk.now_s
    desk.step(Cancelled(offer.work_id))
    other = desk.machine.members.nodes["b" if offer.node_id == "a" else "a"].engines["e"]
    other.backlog = 1_000_000
    well = desk.start(chat("n", streaming=False), draw=2)
    assert well.node_id == offer.node_id, "a doubt is a cost, not a ban"
    desk.step(Ended("n", 1, 0))
    assert engine.doubted_s is None


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


def waiting_for_b(then_s: float = 0.0) -> Desk:
    """``b`` is full of others' works; ``then_s`` later ``a`` is ejected, and ``c`` dies under a stream."""
    desk = Desk("b")
    desk.report("b", running=2)
    desk.at(then_s)
    for node_id in "ac":
        desk.report(node_id)
    for number in range(1, 4):
        fail(desk, "a", number)
    offer = desk.start()
    assert offer.node_id == "c"
    stream(desk, "w", 1, count=2)
    assert offers(desk.step(Left("c", 1))) == []
    return desk


@pytest.mark.parametrize(
    "goes",
    [
        lambda desk: desk.step(Left("b", 1)),
        lambda desk: desk.report("b", healthy=False),
        lambda desk: desk.report("b", draining=True),
        lambda desk: desk.report("b", capabilities=[]),
    ],
    ids=["gone", "unhealthy", "draining", "without the model"],
)
def test_a_stream_that_waits_uses_an_ejected_engine_once_the_last_other_is_down(
    goes: Callable[[Desk], list[Any]],
) -> None:
    """Nothing of ours ran there, so its end frees and loses nothing; the stream must still hear of it."""
    desk = waiting_for_b()
    again = desk.offered(goes(desk))
    assert (again.node_id, again.attempt, again.emitted_tokens) == ("a", 2, 2)


def test_a_stream_that_waits_uses_an_ejected_engine_once_the_last_other_is_silent() -> None:
    """Six seconds without a heartbeat: nothing new goes there, so it is no hope either."""
    desk = waiting_for_b(then_s=3.0)
    assert offers(tick_until(desk, 5.9)) == []
    assert desk.offered(tick_until(desk, 6.0)).node_id == "a"


def test_a_stream_that_waits_uses_an_ejected_engine_that_starts_anew() -> None:
    """Its failures count against it for up to two minutes, and nothing else can go on with the stream."""
    desk = Desk("a", "c")
    for number in range(1, 4):
        fail(desk, "a", number)
    desk.step(Left("a", 1))
    offer = desk.start()
    assert offer.node_id == "c"
    stream(desk, "w", 1, count=2)
    assert offers(desk.step(Left("c", 1))) == []
    again = desk.offered(desk.report("a", generation=2))
    assert (again.node_id, again.attempt, again.emitted_tokens) == ("a", 2, 2)


def test_an_engine_that_cannot_go_on_with_a_stream_is_no_reason_to_wait() -> None:
    """Another model's voice is not to be had at any time; the ejected engine is."""
    desk = Desk("a", "c")
    desk.report("b", capabilities=[replace(MODEL, fingerprint="other")])
    for number in range(1, 4):
        fail(desk, "a", number)
    offer = next(one for number in range(9) if (one := desk.start(chat(f"w{number}"))).node_id == "c")
    stream(desk, offer.work_id, 1, count=2)
    assert desk.offered(desk.step(Left("c", 1))).node_id == "a"


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
