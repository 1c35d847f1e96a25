"""The checks of the made-up world are themselves checked: what is broken on purpose has to be found."""

from __future__ import annotations

import pytest
from planted import BUGS, Bug

from groundswell.sim.world import run_seed

SEEDS_MAX = 500
CONTROL_SEEDS = 60


def _caught(bug: Bug, patch: pytest.MonkeyPatch) -> tuple[int, str] | None:
    bug.plant(patch)
    for seed in range(SEEDS_MAX):
        violation = run_seed(seed).violation
        if violation is not None:
            return seed, violation.check
    return None


def test_every_planted_bug_is_caught_and_the_sound_core_is_not_accused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A check that no bug can fail proves nothing; a check that a sound core fails proves less."""
    rows: list[tuple[str, str, str]] = []
    wrong: list[str] = []
    for bug in BUGS:
        with pytest.MonkeyPatch.context() as patch:
            found = _caught(bug, patch)
        seed, check = (str(found[0]), found[1]) if found else ("never", "-")
        rows.append((bug.name, seed, check))
        if check not in bug.checks:
            wrong.append(f"{bug.name}: {check} at seed {seed}, expected {sorted(bug.checks)}")
    with capsys.disabled():
        print(f"\n\n{'planted bug':<58} {'seed':>5}  caught by")
        for name, seed, check in rows:
            print(f"{name:<58} {seed:>5}  {check}")
    assert not wrong
    assert len(rows) >= 12
    control = [(seed, run_seed(seed).violation) for seed in range(CONTROL_SEEDS)]
    assert [entry for entry in control if entry[1] is not None] == []
