"""The driver around a machine whose every answer the test writes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import uvloop

from groundswell.driver import PORTION_BYTES, Chance, Driver


@dataclass
class Machine:
    """Answers each event as told and notes when it was asked."""

    wake_s: float | None = None
    seen: list[str] = field(default_factory=list)

    def step(self, now_s: float, event: str) -> list[str]:
        self.seen.append(event)
        if event == "tick":
            self.wake_s = None
        if event == "fail":
            raise RuntimeError("planted")
        return [f"{event} first", f"{event} second"]


async def test_events_raised_by_effects_wait_for_their_turn() -> None:
    """A machine that saw itself half-way would decide on a state that does not exist."""
    done: list[str] = []

    def perform(effect: str) -> None:
        done.append(effect)
        if effect == "a first":
            driver.feed("b")
            assert driver.stepping

    driver = Driver(Machine(), perform, "tick")
    driver.feed("a")
    assert done == ["a first", "a second", "b first", "b second"]
    assert not driver.stepping


async def test_it_wakes_when_it_asked_and_only_the_earliest_time_counts() -> None:
    """One timer: later wishes do not move it, earlier ones do."""
    loop = asyncio.get_running_loop()
    machine = Machine()
    woken = asyncio.Event()
    driver = Driver(machine, lambda effect: woken.set() if effect == "tick first" else None, "tick")
    for delay_s in (30.0, 0.02, 60.0):
        machine.wake_s = loop.time() + delay_s
        driver.feed("x")
    await asyncio.wait_for(woken.wait(), 5)
    assert machine.seen == ["x", "x", "x", "tick"]
    driver.close()


async def test_after_a_standstill_it_hears_others_before_it_judges_them() -> None:
    """A process that was stopped for a while must not take its own silence for that of all others."""
    machine = Machine(wake_s=asyncio.get_running_loop().time() + 0.01)
    driver = Driver(machine, lambda effect: None, "tick", hear_first_s=0.05)
    driver.feed("a")
    time.sleep(1.1)  # As SIGSTOP: the loop stands still.
    await asyncio.sleep(0.01)
    driver.feed("what was sent meanwhile")
    await asyncio.sleep(0.1)
    assert machine.seen == ["a", "what was sent meanwhile", "tick"]
    driver.close()


def test_a_time_that_has_come_already_is_waited_for_on_uvloop() -> None:
    """uvloop gives no timer for it, only a handle: one that is asked when it fires failed whoever fed it."""

    async def feeds() -> list[str]:
        machine = Machine(wake_s=0.0)
        driver = Driver(machine, lambda effect: None, "tick")
        driver.feed("a")
        driver.feed("b")
        await asyncio.sleep(0.01)
        return machine.seen

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(feeds()) == ["a", "b", "tick"]


async def test_a_defect_in_one_step_or_effect_does_not_stop_the_others() -> None:
    """One bad work must not take every other with it."""
    done: list[str] = []

    def perform(effect: str) -> None:
        if effect == "a first":
            raise RuntimeError("planted")
        done.append(effect)

    driver = Driver(Machine(), perform, "tick")
    for event in ("fail", "a", "b"):
        driver.feed(event)
    assert done == ["a second", "b first", "b second"]


async def test_a_closed_driver_is_silent() -> None:
    """After the end nothing may be sent any more."""
    machine = Machine(wake_s=asyncio.get_running_loop().time() + 0.01)
    driver = Driver(machine, lambda effect: None, "tick")
    driver.feed("a")
    driver.close()
    driver.feed("b")
    await asyncio.sleep(0.03)
    assert machine.seen == ["a"]


def test_no_byte_of_chance_is_given_out_twice() -> None:
    """Two requests with one id would share a ledger row."""
    chance = Chance()
    ids = {chance.take(12) for _ in range(PORTION_BYTES)}
    assert len(ids) == PORTION_BYTES
    assert {len(one) for one in ids} == {12}
    assert len({chance.draw() for _ in range(PORTION_BYTES)}) == PORTION_BYTES
