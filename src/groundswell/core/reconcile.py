"""What a node's report says about the attempts that we think it holds.

Theory of operation. Messages get lost, so each side repeats what it believes: we in offers and withdrawals,
the node in its list of attempts. A report can speak only about messages that were sent well before it was;
within a second of one it proves nothing. Beyond that, an attempt that is not listed twice in a row is lost
(once might be a report that crossed an acceptance), one that we withdrew and is not listed has freed its
slot, and one that is listed still is told again. A restarted engine needs no second report: what it does
not list died with its earlier process, unless the offer may still be on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from groundswell.core.lease import Lease
from groundswell.core.membership import AttemptKey, Engine

EVIDENCE_S: Final = 1.0
MISSING_MAX: Final = 2


@dataclass(slots=True)
class Findings:
    """``lost`` leases, slots that are ``freed``, withdrawals to ``repeat``, and leases that turn out to be
    ``running`` although their acceptance was not heard."""

    lost: list[Lease] = field(default_factory=list)
    freed: list[AttemptKey] = field(default_factory=list)
    repeat: list[AttemptKey] = field(default_factory=list)
    running: list[Lease] = field(default_factory=list)


def reconcile(
    now_s: float,
    engine: Engine,
    listed: set[AttemptKey],
    lease_of: Callable[[str, int], Lease | None],
    *,
    restarted: bool,
) -> Findings:
    """Compare what we hold on this engine with what the node lists. Only the leases' own notes change."""
    found = Findings()
    for key, withdrawn_s in engine.held.items():
        lease = lease_of(*key)
        if lease is None:
            old = now_s - withdrawn_s > EVIDENCE_S
            if key in listed:
                if old:
                    found.repeat.append(key)
            elif old or restarted:
                found.freed.append(key)
        elif key in listed:
            lease.missing = 0
            lease.identity = engine.identity
            if not lease.accepted:
                found.running.append(lease)
        elif _missing(now_s, lease, restarted):
            found.lost.append(lease)
            found.freed.append(key)
    return found


def _missing(now_s: float, lease: Lease, restarted: bool) -> bool:
    """Whether an attempt that is not listed is lost."""
    old = now_s - lease.offered_s > EVIDENCE_S
    if restarted:
        return lease.accepted or old
    if not lease.accepted or not old:
        return False  # Not arrived yet; the time limit for an answer looks after it.
    lease.missing += 1
    return lease.missing >= MISSING_MAX
