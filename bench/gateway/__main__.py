"""The whole programme, or parts of it; ``--quick`` is what one uses while changing the relay."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.gateway import measures, report
from bench.gateway.measures import OPEN_RATE, QUICK, Found, Lengths, Wrong
from bench.gateway.peers import ENVIRONMENTS, install
from bench.gateway.systems import OURS, Running, System, running
from bench.gateway.tools import Cores, Rig, Unfit, build, rig

PEERS = "nginx,smg,sglang-router,vllm-router,litellm"
QUICK_PEERS = "nginx,vllm-router"
MEASURES = "start,requests,latency,streams,many"
QUICK_MEASURES = "requests,rate"
QUICK_RATE = 10_000.0
SLOW_RATE = 20  # For who does not reach the common rate.


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. The exit status says whether all that came back was right."""
    options = _options(argv)
    tools = ENVIRONMENTS / "tools"
    try:
        cores = Cores.of_this_machine()
        build(tools)
    except Unfit as unfit:
        print(f"bench: {unfit}", file=sys.stderr)
        return 2
    systems = [OURS, *install(options.peers)]
    report.heading(systems, cores, options)
    rounds: list[dict[str, Found]] = []
    for number in range(options.rounds):
        rounds.append({})
        # Another one begins in each round, so that nobody always has the same neighbour in time.
        for system in [*systems[number % len(systems) :], *systems[: number % len(systems)]]:
            with tempfile.TemporaryDirectory(prefix="groundswell-bench-") as folder, rig(tools, cores) as one:
                found = _measure(system, one, Path(folder), options)
            report.line(number, system.name, found)
            rounds[-1][system.name] = found
    summary = report.medians(rounds, systems)
    report.table(summary)
    if options.json:
        options.json.write_text(json.dumps({"medians": summary, "rounds": rounds}, indent=1))
    return 1 if any("wrong" in found[OURS.name] for found in rounds) else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: requests/s and one rate of tokens")
    parser.add_argument("--rounds", type=int, default=0, help="how often each system is measured")
    parser.add_argument("--peers", help="names, separated by commas; empty: only ours")
    parser.add_argument("--measures", help=f"some of {MEASURES},rate")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(argv)
    quick = options.quick
    options.rounds = options.rounds or (1 if quick else 3)
    options.peers = _names(options.peers, QUICK_PEERS if quick else PEERS)
    options.measures = _names(options.measures, QUICK_MEASURES if quick else MEASURES)
    options.lengths = QUICK if quick else Lengths()
    return options


def _names(given: str | None, default: str) -> list[str]:
    return [name for name in (default if given is None else given).split(",") if name]


@dataclass(frozen=True, slots=True)
class Pair:
    """A system and the bare backend, on one rig."""

    rig: Rig
    system: Running
    bare: Running
    lengths: Lengths


def _measure(system: System, rig: Rig, folder: Path, options: argparse.Namespace) -> Found:
    """Everything that is asked for, on one start of one system."""
    bare = Running("bare", rig.ports[0], "none", None, folder)
    found: Found = {}
    with ExitStack() as stack:
        try:
            one = stack.enter_context(running(system, rig.ports, folder, rig.cores))
            for name in options.measures:
                found[name] = PARTS[name](Pair(rig, one, bare, options.lengths))
            found["settled"] = measures.check_settled(one)
        except (Wrong, RuntimeError) as wrong:
            found["wrong"] = str(wrong)
        found["backend"] = rig.stats()
    return found


def _start(pair: Pair) -> Found:
    return {"value": pair.system.started_s, "rss_mb": pair.system.rss_idle_mb}


def _requests(pair: Pair) -> Found:
    found = measures.requests_per_s(pair.rig, pair.system, pair.lengths)
    short = Lengths(closed_s=1.5, warmup_s=0.3)
    return {**found, "bare": measures.requests_per_s(pair.rig, pair.bare, short)["value"]}


def _latency(pair: Pair) -> Found:
    rate = SLOW_RATE if pair.system.name == "litellm" else OPEN_RATE
    both = (measures.latency(pair.rig, one, pair.lengths, rate) for one in (pair.system, pair.bare))
    return {"rate": rate, **_added(*both)}


def _streams(pair: Pair) -> Found:
    found = measures.highest_rate(pair.rig, pair.system, pair.lengths)
    found["bare"] = measures.paced(pair.rig, pair.bare, max(found["value"], 100), pair.lengths.step_s)
    both = (measures.easy_streams(pair.rig, one, pair.lengths) for one in (pair.system, pair.bare))
    return {**found, **_added(*both)}


def _rate(pair: Pair) -> Found:
    return measures.paced(pair.rig, pair.system, QUICK_RATE, pair.lengths.step_s)


def _many(pair: Pair) -> Found:
    return measures.many_streams(pair.rig, pair.system, pair.lengths)


def _added(found: Found, bare: Found) -> Found:
    """Latencies beyond the bare backend's in the same minute."""
    return {
        f"added_{name}": found[name] - bare[name]
        for name in ("p50_ms", "p99_ms", "ttft_ms")
        if found.get(name) is not None and bare.get(name) is not None
    }


PARTS: dict[str, Callable[[Pair], Found]] = {
    "start": _start,
    "requests": _requests,
    "latency": _latency,
    "streams": _streams,
    "rate": _rate,
    "many": _many,
}


if __name__ == "__main__":
    raise SystemExit(main())
