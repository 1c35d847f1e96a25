"""Who gets another attempt. Each bound by itself; together they are shown in the dispatcher's transcripts."""

from __future__ import annotations

from typing import Any

import pytest
from fleet import chat, report

from groundswell.core.lease import Entry, Lease
from groundswell.core.membership import Members
from groundswell.core.routing import need_of
from groundswell.core.timers import Timers
from groundswell.core.verdict import Verdict, judge


@pytest.mark.parametrize(
    ("facts", "resumable", "verdict"),
    [
        ({}, False, Verdict.AGAIN),
        ({"attempts": 64}, True, Verdict.EXHAUSTED),
        ({"deaths": 1, "failures": 3, "unanswered": 5}, False, Verdict.AGAIN),
        ({"deaths": 2}, True, Verdict.POISON),
        ({"failures": 4}, True, Verdict.EXHAUSTED),
        ({"unanswered": 6}, True, Verdict.EXHAUSTED),
        ({"sent": True, "deaths": 5, "failures": 9, "continued": 7}, True, Verdict.AGAIN),
        ({"sent": True, "continued": 8}, True, Verdict.EXHAUSTED),
        ({"sent": True}, False, Verdict.NOT_RESUMABLE),
        ({"sent": True, "resumable": False}, True, Verdict.NOT_RESUMABLE),
        ({"sent": True, "emitted": 100}, False, Verdict.COMPLETE),
    ],
)
def test_every_bound_has_its_verdict(facts: dict[str, Any], resumable: bool, verdict: Verdict) -> None:
    """Before content, faults count; after it, only whether the stream can go on, and how often it did."""
    change = Members(Timers()).report(0.0, report("a"))
    assert change is not None
    work = chat()
    entry = Entry(work, 1, 0.0, need_of(work), 3, 10)
    for name, value in facts.items():
        setattr(entry, name, value)
    lease = Lease(entry, 1, change.added[0], 0.0)
    assert judge(entry, lease, lambda entry, lease: resumable) is verdict
