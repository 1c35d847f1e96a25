"""Whether a work whose attempt is over gets another one, and why not.

Theory of operation. Trying again is bounded in every case. Before any content went out it is free, and what
counts is the fault: the second death is poison, a fourth failure is enough, and an
offer that nobody answers may go around a little longer. After content went out the only way on is a
continuation, which needs an engine that is able to, and has a bound of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from groundswell.core.contract import Reason
from groundswell.core.lease import Entry, Lease

DEATHS_MAX: Final = 2  # Without output the second death ends a work: it may be what kills.
FAILURES_MAX: Final = 3  # Broken or stalled attempts that are tried again.
UNANSWERED_MAX: Final = 5  # Offers that were lost on the way.
CONTINUED_MAX: Final = 8  # Continuations of one stream.
ATTEMPTS_MAX: Final = 64  # Of any sort, refused offers included.


class Verdict(Enum):
    """How a work without an attempt goes on; the value of a failure is the reason that the client is told."""

    AGAIN = "again"
    COMPLETE = "complete"
    EXHAUSTED = Reason.EXHAUSTED
    POISON = Reason.POISON
    NOT_RESUMABLE = Reason.NOT_RESUMABLE


def judge(entry: Entry, lease: Lease, resumable: Callable[[Entry, Lease], bool]) -> Verdict:
    """What becomes of the work after its last lease; ``resumable`` tells whether a seat could continue it."""
    if entry.attempts >= ATTEMPTS_MAX:
        return Verdict.EXHAUSTED
    if entry.sent:
        return _judge_sent(entry, lease, resumable)
    if entry.deaths >= DEATHS_MAX:
        return Verdict.POISON
    tried = entry.failures > FAILURES_MAX or entry.unanswered > UNANSWERED_MAX
    return Verdict.EXHAUSTED if tried else Verdict.AGAIN


def _judge_sent(entry: Entry, lease: Lease, resumable: Callable[[Entry, Lease], bool]) -> Verdict:
    budget = entry.work.output_tokens_max
    if budget and entry.emitted + lease.tokens >= budget:
        return Verdict.COMPLETE
    if not entry.resumable or not resumable(entry, lease):
        return Verdict.NOT_RESUMABLE
    return Verdict.EXHAUSTED if entry.continued >= CONTINUED_MAX else Verdict.AGAIN
