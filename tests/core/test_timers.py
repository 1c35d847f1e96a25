"""Alarms ring when they are due, however often they were put off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundswell.core.timers import NEVER, SLACK, Alarm, Timers


def test_an_alarm_rings_once_when_it_is_due() -> None:
    """And is off until it is set again."""
    timers, alarm = Timers(), Alarm()
    timers.set(alarm, 5.0)
    assert timers.wake_s == 5.0
    assert timers.due(4.9) == []
    assert timers.due(5.0) == [alarm]
    assert timers.wake_s is None
    assert timers.due(9.0) == []


def test_putting_off_is_an_assignment() -> None:
    """The hot path pays nothing; the heap looks again at the old time."""
    timers, alarm = Timers(), Alarm()
    timers.set(alarm, 1.0)
    alarm.due_s = 3.0
    assert timers.wake_s == 1.0
    assert timers.due(1.0) == []
    assert timers.wake_s == 3.0
    assert timers.due(3.0) == [alarm]


def test_setting_earlier_rings_earlier_and_once() -> None:
    """The later entry is stale."""
    timers, alarm = Timers(), Alarm()
    timers.set(alarm, 5.0)
    timers.set(alarm, 2.0)
    assert timers.due(2.0) == [alarm]
    assert timers.due(9.0) == []


def test_alarms_ring_in_order_of_time_then_of_setting() -> None:
    """One total order, so that a run can be replayed."""
    timers, alarms = Timers(), [Alarm() for _ in range(3)]
    for alarm, due_s in zip(alarms, (2.0, 1.0, 1.0), strict=True):
        timers.set(alarm, due_s)
    assert timers.due(2.0) == [alarms[1], alarms[2], alarms[0]]


def test_alarms_that_were_switched_off_do_not_pile_up() -> None:
    """A short work leaves an entry behind; a thousand of them are swept."""
    timers, kept = Timers(), Alarm()
    timers.set(kept, 50.0)
    timers.off(Alarm())
    for number in range(1000):
        alarm = Alarm()
        timers.set(alarm, 60.0 + number)
        if number % 10 == 0:
            timers.set(alarm, 55.0)
        timers.off(alarm)
    assert len(timers._heap) < 300
    assert timers.wake_s == 50.0
    assert timers.due(2000.0) == [kept]


def test_an_alarm_is_off_before_it_is_set_and_after_it_rang() -> None:
    """Its holder reads ``due_s``, so there must always be a time."""
    timers, alarm = Timers(), Alarm()
    assert alarm.due_s == NEVER
    timers.set(alarm, 1.0)
    timers.due(1.0)
    assert alarm.due_s == NEVER


def test_one_that_was_put_off_does_not_hold_up_the_next() -> None:
    """Both come up at the same moment; one goes back, the other rings."""
    timers, later, now = Timers(), Alarm(), Alarm()
    timers.set(later, 1.0)
    timers.set(now, 1.0)
    later.due_s = 5.0
    assert timers.due(1.0) == [now]


def test_setting_an_alarm_to_the_time_it_has_costs_nothing() -> None:
    """A limit that is set again with every report must not fill the heap."""
    timers, alarm = Timers(), Alarm()
    for _ in range(10):
        timers.set(alarm, 5.0)
    assert len(timers._heap) == 1


def dead(timers: Timers, count: int) -> None:
    for number in range(count):
        alarm = Alarm()
        timers.set(alarm, 60.0 + number)
        timers.off(alarm)


@pytest.mark.parametrize(("living", "bearable"), [(10, SLACK), (100, 100)])
def test_a_sweep_waits_until_the_dead_are_many_and_outnumber_the_living(living: int, bearable: int) -> None:
    """A sweep looks at every entry; rarer than that it costs each work next to nothing."""
    timers, alarms = Timers(), [Alarm() for _ in range(living)]
    for number, alarm in enumerate(alarms):
        timers.set(alarm, 1000.0 + number)
    for _ in range(2):
        dead(timers, bearable)
        assert len(timers._heap) == living + bearable
        dead(timers, 1)
        assert len(timers._heap) == living
    assert timers.due(2000.0) == alarms


def test_a_sweep_keeps_what_stands_behind_a_stale_entry() -> None:
    """An alarm that was set earlier leaves its later entry in the middle of the heap."""
    timers, hasty, patient = Timers(), Alarm(), Alarm()
    timers.set(hasty, 60.0)
    timers.set(hasty, 1.0)
    timers.set(patient, 1000.0)
    dead(timers, SLACK + 10)
    assert timers.due(2000.0) == [hasty, patient]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("sopt"), st.integers(0, 20))))
def test_against_the_plain_definition(script: list[tuple[int, str, int]]) -> None:
    """Set, off, put off and time in any order: it rings exactly when a table of times says so."""
    timers, alarms = Timers(), [Alarm() for _ in range(5)]
    table = dict.fromkeys(range(5), NEVER)
    now_s = 0.0
    for which, what, number in script:
        match what:
            case "s":
                table[which] = now_s + number
                timers.set(alarms[which], now_s + number)
            case "o":
                table[which] = NEVER
                timers.off(alarms[which])
            case "p" if table[which] != NEVER:
                table[which] += number
                alarms[which].due_s += number
            case "t":
                now_s += number
                expected = {one for one, due_s in table.items() if due_s <= now_s}
                assert {alarms.index(one) for one in timers.due(now_s)} == expected
                table.update(dict.fromkeys(expected, NEVER))
        next_s = min(table.values())
        assert (timers.wake_s or 0.0) <= next_s
        assert next_s == NEVER or timers.wake_s is not None
