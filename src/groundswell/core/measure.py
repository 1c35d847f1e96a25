"""What the figures mean: one definition each, used by metrics, the simulator, benches and reports alike.

Theory of operation. A figure that two places compute in two ways starts an argument instead of ending one.
All times are seconds on one clock, the gateway's, from the moment a request was accepted. What a client
waited for is measured at the gateway, where headers and bytes are written, and not in an engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from groundswell.model.money import Price, Usage, cost_nano
from groundswell.model.value import value
from groundswell.model.work import WorkClass, WorkState


@value
class Target:
    """What counts as good service: seconds to the first token, and to each further one on average."""

    ttft_s: float
    tpot_s: float


TARGETS: Final = {
    # 0.2 s per token is reading speed; 2 s to the first one is where people begin to doubt.
    WorkClass.LIVE: Target(1.0, 0.1),
    WorkClass.INTERACTIVE: Target(2.0, 0.2),
    WorkClass.STANDARD: Target(10.0, 0.5),
    WorkClass.BATCH: Target(float("inf"), float("inf")),
}


@value
class Served:
    """One ended work, as measured.

    ``first_s`` and ``last_s`` are when its first and last token went out, None when none did; ``started_s``
    is when it was first offered to a node, None when it never was.
    """

    arrived_s: float
    started_s: float | None
    first_s: float | None
    last_s: float | None
    output_tokens: int
    state: WorkState
    work_class: WorkClass = WorkClass.STANDARD


def queue_wait_s(arrived_s: float, started_s: float) -> float:
    """How long a work waited for a slot: from acceptance to its first offer. Later waits, after a node was
    lost, are stalls of the stream and not counted here."""
    return started_s - arrived_s


def ttft_s(arrived_s: float, first_s: float) -> float:
    """Time to first token: from acceptance to the first *content* sent to the client, queueing included. A
    role or keep-alive is no content."""
    return first_s - arrived_s


def tpot_s(first_s: float, last_s: float, output_tokens: int) -> float | None:
    """Mean time per output token after the first: (last - first) / (tokens - 1), stalls included. None with
    fewer than two tokens, which have no gap to measure."""
    return (last_s - first_s) / (output_tokens - 1) if output_tokens > 1 else None


def is_good(served: Served, target: Target | None = None) -> bool:
    """Whether a work counts for goodput: done, and within its class's target for TTFT and TPOT. Work without
    tokens (embeddings, transcodes) is good when it is done."""
    target = target or TARGETS[served.work_class]
    if served.state is not WorkState.DONE:
        return False
    if served.first_s is None or served.last_s is None:
        return True
    pace_s = tpot_s(served.first_s, served.last_s, served.output_tokens)
    in_time = ttft_s(served.arrived_s, served.first_s) <= target.ttft_s
    return in_time and (pace_s is None or pace_s <= target.tpot_s)


def goodput_per_s(works: Iterable[Served], span_s: float, target: Target | None = None) -> float:
    """Good works per second of wall time; ``span_s`` is the whole span measured, idle time included."""
    if span_s <= 0:
        raise ValueError("a span is longer than nothing")
    return sum(is_good(one, target) for one in works) / span_s


def cost_of(usage: Usage, price: Price) -> int:
    """What a work costs its client, in nano-dollars: its usage over all attempts at the price that was frozen
    in the last offer. Repeated work (a restart, a replayed prefix) is never the client's to pay."""
    return cost_nano(usage, price)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least ``percent`` % of all do not exceed.

    It is always a value that was really seen, so a p99 is somebody's wait and not a mean of two. Raises
    ``ValueError`` without values, or when ``percent`` is not in (0, 100].
    """
    if not values:
        raise ValueError("no values, no percentile")
    if not 0 < percent <= 100:
        raise ValueError("a percentile is above 0 and at most 100")
    rank = -int(-percent * len(values) // 100)
    return sorted(values)[max(rank, 1) - 1]
