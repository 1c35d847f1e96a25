"""Many seeds one after another, or one with its log. Here and not in ``__main__``, so that the processes
that share a sweep can import it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from multiprocessing import get_context

from groundswell.sim.world import run_seed

PROGRESS_EVERY = 500
FAILURES_MAX = 20
CHUNK = 50


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
    for done, (summary, violation) in enumerate(outcomes(seeds, jobs), start=1):
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


def outcomes(seeds: Iterable[int], jobs: int) -> Iterator[tuple[str, str]]:
    """The summary of each seed's scenario, and what failed in it or nothing, in the order of the seeds."""
    if jobs == 1:
        yield from map(_judge, seeds)
        return
    with get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_judge, seeds, CHUNK)


def _judge(seed: int) -> tuple[str, str]:
    outcome = run_seed(seed)
    return outcome.scenario.summary(), str(outcome.violation or "")
