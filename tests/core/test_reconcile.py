"""What a report proves about an attempt, and what it does not."""

from __future__ import annotations

import pytest
from fleet import chat, report

from groundswell.core.lease import Entry, Lease
from groundswell.core.membership import Members
from groundswell.core.reconcile import Findings, reconcile
from groundswell.core.routing import need_of
from groundswell.core.timers import NEVER, Timers

KEY = ("w", 1)


def held(*, accepted: bool, missing: int = 0) -> Lease:
    """A lease that was offered at 0 s."""
    change = Members(Timers()).report(0.0, report("a"))
    assert change is not None
    work = chat()
    lease = Lease(Entry(work, 1, 0.0, need_of(work), 3, 10), 1, change.added[0], 0.0)
    lease.accepted, lease.missing = accepted, missing
    lease.engine.held[KEY] = NEVER
    return lease


def find(lease: Lease, now_s: float, listed: bool, restarted: bool) -> Findings:
    rows = {KEY} if listed else set()
    return reconcile(now_s, lease.engine, rows, lambda work_id, attempt: lease, restarted=restarted)


@pytest.mark.parametrize(
    ("accepted", "missing", "now_s", "restarted", "lost"),
    [
        (True, 0, 0.5, False, False),
        (True, 0, 2.0, False, False),
        (True, 1, 2.0, False, True),
        (True, 1, 0.5, False, False),
        (False, 1, 2.0, False, False),
        (True, 0, 0.5, True, True),
        (False, 0, 0.5, True, False),
        (False, 0, 2.0, True, True),
    ],
)
def test_an_attempt_that_is_not_listed(
    accepted: bool, missing: int, now_s: float, restarted: bool, lost: bool
) -> None:
    """Lost only when the report can know, and twice; after a restart at once."""
    lease = held(accepted=accepted, missing=missing)
    found = find(lease, now_s, False, restarted)
    assert (found.lost, found.freed) == (([lease], [KEY]) if lost else ([], []))


@pytest.mark.parametrize("accepted", [True, False])
def test_an_attempt_that_is_listed_runs(accepted: bool) -> None:
    """Whatever was heard of it."""
    lease = held(accepted=accepted, missing=1)
    lease.engine.generation += 1
    found = find(lease, 2.0, True, False)
    assert lease.identity == lease.engine.identity, "the process that runs it is the one that said so"
    assert found.running == ([] if accepted else [lease])
    assert lease.missing == 0


@pytest.mark.parametrize(
    ("now_s", "listed", "restarted", "freed", "repeat"),
    [
        (0.5, False, False, [], []),
        (0.5, True, False, [], []),
        (0.5, False, True, [KEY], []),
        (2.0, False, False, [KEY], []),
        (2.0, True, False, [], [KEY]),
    ],
)
def test_a_withdrawn_attempt_keeps_its_slot_until_it_is_gone(
    now_s: float, listed: bool, restarted: bool, freed: list[object], repeat: list[object]
) -> None:
    """Gone is what is not listed; what is listed still is told again."""
    engine = held(accepted=True).engine
    engine.held[KEY] = 100.0
    rows = {KEY} if listed else set()
    found = reconcile(100.0 + now_s, engine, rows, lambda work_id, attempt: None, restarted=restarted)
    assert (found.freed, found.repeat) == (freed, repeat)
