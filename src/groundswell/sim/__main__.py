"""``python -m groundswell.sim``: run seeds, say which fail, and how to run one again with its log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from multiprocessing import get_context

from groundswell.sim.world import run_seed

PROGRESS_EVERY = 500
FAILURES_MAX = 20
CHUNK = 50


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when every check held in every run, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m groundswell.sim", description=__doc__)
    parser.add_argument("--seeds", default="0..200", help="from..to, the end not included (default 0..200)")
    parser.add_argument("--seed", type=int, help="one seed only")
    parser.add_argument("--log", action="store_true", help="print everything that happens (with --seed)")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed, options.log)
    first, _, end = options.seeds.partition("..")
    if not (first.isdecimal() and end.isdecimal()):
        parser.error("--seeds wants two numbers, as in 0..2000")
    return sweep(range(int(first), int(end)), max(1, options.jobs))


def replay(seed: int, log: bool) -> int:
    """Run one seed, with its log if asked for."""
    outcome = run_seed(seed, log=log)
    print(outcome.scenario.summary())
    for line in outcome.log:
        print(line)
    print(f"digest {outcome.digest}, {outcome.events} events")
    if outcome.violation is None:
        print("every check held")
        return 0
    print(f"FAILED {outcome.violation}")
    return 1


def sweep(seeds: range, jobs: int) -> int:
    """Run many seeds; stops early after twenty failures, which say enough."""
    failures = 0
    for done, (summary, violation) in enumerate(_outcomes(seeds, jobs), start=1):
        if violation:
            failures += 1
            seed = seeds[done - 1]
            print(f"FAILED {summary}\n  {violation}\n  make sim seed={seed}", flush=True)
        if done % PROGRESS_EVERY == 0 or done == len(seeds):
            print(f"{done} of {len(seeds)} seeds, {failures} failed", flush=True)
        if failures >= FAILURES_MAX:
            print("giving up after so many failures")
            break
    return 1 if failures else 0


def _outcomes(seeds: Iterable[int], jobs: int) -> Iterator[tuple[str, str]]:
    if jobs == 1:
        yield from map(_judge, seeds)
        return
    with get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_judge, seeds, CHUNK)


def _judge(seed: int) -> tuple[str, str]:
    outcome = run_seed(seed)
    return outcome.scenario.summary(), str(outcome.violation or "")


if __name__ == "__main__":
    sys.exit(main())
