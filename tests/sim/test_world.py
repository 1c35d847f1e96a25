"""The made-up world itself: one seed is one run, and its parts do what they are for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from groundswell.sim.__main__ import main
from groundswell.sim.faults import Crash, EngineHang, Storm
from groundswell.sim.scenario import draw_scenario
from groundswell.sim.text import state_after, text_of, token_of
from groundswell.sim.world import World, run_seed


def test_the_same_seed_has_the_same_digest() -> None:
    """A failure that cannot be run again cannot be understood."""
    digests = [run_seed(seed).digest for seed in range(20)]
    assert [run_seed(seed).digest for seed in range(20)] == digests
    assert len(set(digests)) == 20


def test_the_digest_does_not_depend_on_the_process() -> None:
    """String hashes are salted for each process; an order of a set that leaked in would show here."""
    script = "from groundswell.sim.world import run_seed; print(*(run_seed(s).digest for s in range(10)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().split() == [run_seed(seed).digest for seed in range(10)]


def test_keeping_a_log_changes_nothing() -> None:
    """The run that is read is the run that failed."""
    read = run_seed(5, log=True)
    assert read.digest == run_seed(5).digest
    assert any("-> finish" in line for line in read.log)


def test_a_wrong_resume_writes_another_text() -> None:
    """The text is its own witness: who skips, repeats or changes a token, or the model, goes on otherwise."""
    text = text_of(7, "owl-q4", 12)
    right = token_of(state_after(7, "owl-q4", text[:6]))
    assert right == text[6]
    wrongs = (text[:5], [*text[:6], text[5]], [*text[:5], 1])
    assert all(token_of(state_after(7, "owl-q4", wrong)) != right for wrong in wrongs)
    assert token_of(state_after(7, "owl-q8", text[:6])) != right


def test_the_seeds_reach_what_they_are_meant_to_reach() -> None:
    """A simulation in which nothing happens passes every check: continuations, losses and refusals occur."""
    seen: set[str] = set()
    for seed in range(120):
        scenario = draw_scenario(seed)
        seen.update(type(trouble).__name__ for trouble in scenario.troubles)
        world = World(scenario)
        assert world.run().violation is None
        for work in world.checks.works.values():
            finish = work.finish
            assert finish is not None
            seen.update((f"{finish.state}", finish.reason, "continued" if finish.continued else ""))
    assert {Crash.__name__, EngineHang.__name__, Storm.__name__, "Lie", "Drain", "Freeze"} <= seen
    assert {"done", "cancelled", "refused", "failed", "continued"} <= seen
    assert {"deadline_exceeded", "stream_interrupted", "server_is_overloaded", "model_not_found"} <= seen


def test_one_seed_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    """``make sim seed=3`` prints what happened and ends with the verdict."""
    assert main(["--seed", "3", "--log"]) == 0
    printed = capsys.readouterr().out
    assert "-> offer" in printed
    assert printed.endswith("every check held\n")
