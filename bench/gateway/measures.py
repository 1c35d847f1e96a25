"""The measures, each on one running system. What comes back wrong is never a figure: it ends the run.

A run of the load generator says how many requests it sent; for ours, as many usage rows must be on the disk
afterwards. ``busy`` is the share of its core that the system used, and ``load_busy`` the share of theirs that
backend and load used, so that it shows what the limit was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.gateway.systems import Running
from bench.gateway.tools import Rig

CLOSED_CONNECTIONS = 64
OPEN_RATE = 200
STREAMS = 500
TOKENS = 256  # Of each stream: a usual answer. The next stream begins when one is complete.
STREAMS_WARMUP_S = 2.0
LATE_MS = 10.0  # Token p99 that counts as kept up.
DELIVERED_MIN = 0.97  # Of the tokens that were due.
RATE_FIRST = 4_000.0
RATE_LAST = 100_000.0
RATE_LEAST = 20.0
RATE_STEP = 1.5
RATE_FINE = 1.08
EASY_STREAMS = 100
EASY_RATE = 2_000.0
MANY_STREAMS = 5_000
MANY_WARMUP_S = 8.0

Found = dict[str, Any]


class Wrong(Exception):
    """What came back was not what was sent, or was not accounted for."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the parts take."""

    closed_s: float = 5.0
    open_s: float = 10.0
    step_s: float = 4.0
    warmup_s: float = 1.5
    many_s: float = 12.0


QUICK = Lengths(closed_s=3.0, open_s=4.0, step_s=3.0, warmup_s=1.0, many_s=6.0)


def ask(rig: Rig, system: Running, mode: str, seconds: float, warmup: float, *more: float) -> Found:
    """One run of the load generator, with what it cost. Raises ``Wrong`` for an answer that is not right."""
    began_s, cpu_s, backend_s = time.monotonic(), system.cpu_s(), rig.backend_cpu_s()
    found = rig.load(mode, system.port, system.key, seconds, warmup, *more).result()
    wall_s = time.monotonic() - began_s
    found["busy"] = (system.cpu_s() - cpu_s) / wall_s
    found["load_busy"] = (found["cpu_s"] + rig.backend_cpu_s() - backend_s) / wall_s
    found["rss_mb"] = system.rss_mb()
    system.asked += found["sent"]
    if found["wrong"]:
        raise Wrong(f"{found['wrong']} wrong answers; {found['complaint']}")
    return found


def requests_per_s(rig: Rig, system: Running, lengths: Lengths) -> Found:
    """Answers that are not streamed, as fast as it can."""
    found = ask(rig, system, "closed", lengths.closed_s, lengths.warmup_s, CLOSED_CONNECTIONS)
    _no_errors(found)
    return {
        "value": found["requests_per_s"],
        **{name: found[name] for name in ("busy", "load_busy", "rss_mb")},
    }


def latency(rig: Rig, system: Running, lengths: Lengths, rate: int) -> Found:
    """Time from due to answered at a rate that is no burden."""
    found = ask(rig, system, "open", lengths.open_s, lengths.warmup_s, rate)
    _no_errors(found)
    return {f"{name}_ms": found["latency_us"][name] / 1e3 for name in ("p50", "p99")}


def paced(rig: Rig, system: Running, rate: float, seconds: float, streams: int = STREAMS) -> Found:
    """Streams at a token rate in all; latencies of tokens, and of first tokens beyond their pace."""
    pace_us = round(streams * 1e6 / rate)
    found = ask(rig, system, "streams", seconds, STREAMS_WARMUP_S, streams, pace_us, TOKENS)
    tokens, firsts = found["latency_us"], found["first_token_us"]
    step = {name: found[name] for name in ("errors", "complaint", "busy", "load_busy", "rss_mb")}
    step |= {"rate": rate, "delivered": found["tokens_per_s"]}
    step |= {f"{name}_ms": tokens.get(name, 1e9) / 1e3 for name in ("p50", "p99")}
    step["ttft_ms"] = (firsts["p50"] - pace_us) / 1e3 if firsts["count"] else None
    in_time = step["p99_ms"] <= LATE_MS and step["delivered"] >= rate * DELIVERED_MIN
    return {**step, "kept": in_time and not step["errors"]}


def highest_rate(rig: Rig, system: Running, lengths: Lengths) -> Found:
    """The highest rate that it kept up with, and the steps on the way there."""
    steps = list(_rising(rig, system, lengths))
    kept = [step for step in steps if step["kept"]]
    best = max(kept, key=lambda step: step["rate"]) if kept else {"busy": 0.0, "rss_mb": 0.0, "rate": 0.0}
    return {"value": best["rate"], "busy": best["busy"], "rss_mb": best["rss_mb"], "steps": steps}


def _rising(rig: Rig, system: Running, lengths: Lengths) -> Iterator[Found]:
    """Rising rates until one is not kept up with (or falling ones until one is), then finer ones between."""
    rate, low, high = RATE_FIRST, 0.0, 0.0
    while RATE_LEAST <= rate <= RATE_LAST and not (low and high):
        step = paced(rig, system, rate, lengths.step_s)
        yield step
        if step["kept"]:
            low, rate = rate, rate * RATE_STEP
        else:
            high, rate = rate, rate / 2
    while low and high > low * RATE_FINE:
        step = paced(rig, system, (low * high) ** 0.5, lengths.step_s)
        yield step
        if step["kept"]:
            low = step["rate"]
        else:
            high = step["rate"]


def easy_streams(rig: Rig, system: Running, lengths: Lengths) -> Found:
    """Streams at a rate that is no burden, for the time to the first token."""
    return paced(rig, system, EASY_RATE, lengths.step_s, EASY_STREAMS)


def many_streams(rig: Rig, system: Running, lengths: Lengths, streams: int = MANY_STREAMS) -> Found:
    """Memory with many streams open at once, a token a second each."""
    more = (streams, 1_000_000, TOKENS)
    run = rig.load("streams", system.port, system.key, lengths.many_s, MANY_WARMUP_S, *more)
    time.sleep(MANY_WARMUP_S + lengths.many_s * 0.9)
    rss_mb = system.rss_mb()
    found = run.result()
    system.asked += found["sent"]
    _no_errors(found)
    return {"rss_mb": rss_mb, "open": found["hung_up"], "p99_ms": found["latency_us"]["p99"] / 1e3}


def check_settled(system: Running) -> Found | None:
    """Requests and the rows they left, where there is a ledger. Raises ``Wrong`` if they differ."""
    rows = system.settled()
    if rows is None:
        return None
    if rows != system.asked:
        raise Wrong(f"{system.asked} requests, {rows} usage rows")
    return {"requests": system.asked, "rows": rows}


def _no_errors(found: Found) -> None:
    if found["errors"] or found["wrong"]:
        raise Wrong(f"{found['errors']} errors, {found['wrong']} wrong answers; {found['complaint']}")
