"""Which slots are ours, and which engines may take more."""

from __future__ import annotations

from fleet import report

from groundswell.core.membership import Engine, Members
from groundswell.core.routing import Pool, Router
from groundswell.core.slots import Slots
from groundswell.core.timers import NEVER, Timers
from groundswell.model.work import Kind

KEY = ("w", 1)


def town() -> tuple[Slots, Engine, Pool]:
    """One engine of two slots."""
    change = Members(Timers()).report(0.0, report("a"))
    assert change is not None
    router = Router()
    router.add(change.added[0])
    return Slots(router), change.added[0].engine, router.pools[(Kind.CHAT, "m")]


def test_a_slot_is_taken_with_the_offer_and_free_when_the_node_says_so() -> None:
    """In between it counts, also after the attempt was withdrawn: the node may still run it."""
    slots, engine, pool = town()
    slots.take(KEY, engine)
    assert slots.engine(KEY) is engine
    assert (engine.held, pool.free) == ({KEY: NEVER}, 1)
    assert slots.withdraw(5.0, KEY, engine), "the node must be told"
    assert (engine.held, pool.free, slots.freed) == ({KEY: 5.0}, 1, {})
    slots.release(KEY)
    assert (engine.held, pool.free, slots.freed) == ({}, 2, {engine: None})
    assert slots.engine(KEY) is None


def test_what_holds_no_slot_needs_no_word() -> None:
    """The node has said that it is over; copies of that change nothing."""
    slots, engine, _ = town()
    slots.release(KEY)
    assert slots.freed == {}
    assert not slots.withdraw(5.0, KEY, engine)
    assert engine.held == {}


def test_on_probation_the_offer_is_the_probe_and_its_withdrawal_makes_room_for_another() -> None:
    """A probe that proves nothing must not leave the engine out for ever."""
    slots, engine, pool = town()
    engine.breaker.relent()
    slots.take(KEY, engine)
    assert (engine.breaker.probe, pool.free) == (KEY, 0)
    slots.withdraw(5.0, ("other", 1), engine)
    assert engine.breaker.probe == KEY
    slots.withdraw(5.0, KEY, engine)
    assert (engine.breaker.probe, pool.free, slots.freed) == (None, 1, {engine: None})


def test_an_engine_that_is_gone_takes_all_it_held_with_it() -> None:
    """And says what that was, since it has to move."""
    slots, engine, _ = town()
    slots.take(KEY, engine)
    slots.take(("v", 3), engine)
    assert slots.lose(engine) == [KEY, ("v", 3)]
    assert slots.lose(engine) == []
    assert slots.engine(KEY) is None
    assert engine.held == {}


def test_nothing_is_touched_where_no_engine_is() -> None:
    """Callers hand on what they were told changed, which may be nothing."""
    slots, _, _ = town()
    slots.touch(None)
    assert slots.freed == {}
