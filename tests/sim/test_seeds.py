"""Many runs of the made-up world. Seeds that once found something come first."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundswell.sim.sweep import outcomes
from groundswell.sim.world import run_seed

SCENARIOS = Path(__file__).parents[2] / "scenarios" / "seeds.txt"
SEEDS = 2000
PROCESSES = 2


def _regressions() -> list[tuple[int, str]]:
    lines = SCENARIOS.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#"))
    return [(int(seed), sentence) for seed, sentence in pairs]


@pytest.mark.parametrize(("seed", "sentence"), _regressions())
def test_a_seed_that_once_found_something_holds(seed: int, sentence: str) -> None:
    """What was broken once, or is known to be hard, is looked at before anything else."""
    assert run_seed(seed).violation is None, sentence


def test_two_thousand_seeds_hold() -> None:
    """Whatever fails, in whatever order, every work ends once, whole and in time."""
    failed = [
        f"{summary}: {violation} (make sim seed={seed})"
        for seed, (summary, violation) in enumerate(outcomes(range(SEEDS), PROCESSES))
        if violation
    ]
    assert failed == []
