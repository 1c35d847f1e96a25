"""What the figures mean: one definition each, used by metrics, benches and tests alike.

Theory of operation. A figure that two places compute in two ways starts an argument instead of ending one.
All times are seconds on one clock, the gateway's, from the moment a request was accepted. What a client
waited for is measured at the gateway, where headers and bytes are written, and not in an engine.
"""

from __future__ import annotations

from collections.abc import Sequence


def tpot_s(first_s: float, last_s: float, output_tokens: int) -> float | None:
    """Mean time per output token after the first: (last - first) / (tokens - 1), stalls included. None with
    fewer than two tokens, which have no gap to measure."""
    return (last_s - first_s) / (output_tokens - 1) if output_tokens > 1 else None


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
