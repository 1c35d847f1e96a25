"""The dispatcher, as transcripts: what finished work teaches about its engine, its pool and its cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fleet import MODEL, Desk, chat, finishes, stream

from groundswell.core.contract import Left
from groundswell.core.estimate import Estimator
from groundswell.core.pace import Paces
from groundswell.model.messages import Ended, Output
from groundswell.model.money import Usage
from groundswell.model.node import Capability
from groundswell.model.work import Kind

POOL = (Kind.CHAT, "m")


class Notebook(Estimator):
    """Writes down what it is taught."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[tuple[Any, ...]] = []
        self.transcodes: list[tuple[Any, ...]] = []

    def observe(self, *seen: Any) -> None:
        self.streams.append(seen)

    def observe_transcode(self, *seen: Any) -> None:
        self.transcodes.append(seen)


def school(capability: Capability = MODEL) -> tuple[Desk, Notebook]:
    """A node of four slots, one of which runs another work already."""
    notebook = Notebook()
    desk = Desk(estimator=notebook)
    desk.report("a", slots=4, capabilities=[capability])
    desk.start(chat("other", kind=min(capability.kinds), streaming=False))
    return desk.at(1.0), notebook


def test_a_finished_stream_teaches_when_its_first_token_came_and_how_the_others_followed() -> None:
    """The next decision is only as good as these: lengths, times, and how many ran beside."""
    desk, notebook = school()
    desk.start()
    desk.at(1.25).step(Output("w", 1, 0, 1))
    desk.at(1.5).step(Output("w", 1, 1, 2))
    desk.at(2.25).step(Output("w", 1, 2, 2))
    desk.at(9.0).step(Ended("w", 1, 3))
    assert notebook.streams == [("a\ne\nm", "h100-8b", 10, 5, 0.25, 0.25, 2)]
    assert notebook.transcodes == []


@pytest.mark.parametrize(("tokens", "counted"), [(0, 1), (1, 1)])
def test_an_answer_of_one_token_teaches_nothing_about_further_ones(tokens: int, counted: int) -> None:
    """There were none; and a first content that an engine does not count was a token all the same."""
    desk, notebook = school()
    desk.start()
    desk.at(1.5).step(Output("w", 1, 0, tokens, resumable=False))
    desk.at(1.75).step(Output("w", 1, 1, 0))
    desk.at(2.0).step(Ended("w", 1, 2))
    assert notebook.streams == [("a\ne\nm", "h100-8b", 10, counted, 0.5, 0.0, 2)]


def test_two_tokens_teach_the_time_between_them() -> None:
    """The shortest answer that has a pace."""
    desk, notebook = school()
    desk.start()
    stream(desk, "w", 1, count=2, every_s=0.5)
    desk.step(Ended("w", 1, 2))
    assert notebook.streams == [("a\ne\nm", "h100-8b", 10, 2, 0.5, 0.5, 2)]


def test_a_continuation_teaches_with_what_it_had_to_read_again() -> None:
    """For its engine the tokens that were sent before are part of the prompt."""
    notebook = Notebook()
    desk = Desk("a", estimator=notebook)
    desk.at(1.0).start()
    stream(desk, "w", 1, count=3)
    desk.report("b")
    assert desk.offered(desk.step(Left("a", 1))).node_id == "b"
    desk.at(2.0).step(Output("w", 2, 0, 1))
    desk.at(2.5).step(Output("w", 2, 1, 1))
    desk.step(Ended("w", 2, 2))
    ((key, _, prompt_tokens, output_tokens, _, tpot_s, sequences),) = notebook.streams
    assert (key, prompt_tokens, output_tokens, tpot_s, sequences) == ("b\ne\nm", 13, 2, 0.5, 1)


@pytest.mark.parametrize("changes", [{"streaming": False}, {}], ids=["whole", "without content"])
def test_an_answer_whose_first_token_nobody_saw_teaches_no_times(changes: dict[str, Any]) -> None:
    """When it began is not known; a guess would spoil what others taught."""
    desk, notebook = school()
    desk.start(chat(**changes))
    desk.at(2.0)
    if changes:
        desk.step(Output("w", 1, 0, 5))
    desk.step(Ended("w", 1, 1 if changes else 0))
    assert notebook.streams == []


def test_a_model_that_had_to_be_loaded_teaches_no_times() -> None:
    """Half a minute of loading says nothing about the next answer."""
    desk, notebook = school(replace(MODEL, warm=False))
    desk.start()
    stream(desk, "w", 1, count=2)
    desk.step(Ended("w", 1, 2))
    assert notebook.streams == []


def test_a_transcode_teaches_its_pixels_and_its_seconds() -> None:
    """From the offer to the end: what it waited in its engine is part of it."""
    desk, notebook = school(replace(MODEL, kinds=frozenset({Kind.TRANSCODE})))
    desk.start(chat(kind=Kind.TRANSCODE, streaming=False, pixels=10**9))
    desk.at(4.5).step(Ended("w", 1, 0))
    assert notebook.transcodes == [("a\ne\nm", 10**9, 3.5)]
    assert notebook.streams == []


@pytest.mark.parametrize(
    ("changes", "tokens", "units"),
    [
        ({}, 3, 10 + 3),
        ({"kind": Kind.TRANSCODE, "pixels": 10**9, "streaming": False}, 0, 10**9 // 20_000 + 1),
    ],
    ids=["stream", "transcode"],
)
def test_finished_work_teaches_the_pace_of_its_pool(changes: dict[str, Any], tokens: int, units: int) -> None:
    """From it a refused client is told when to come back."""
    desk = Desk(queue_works_max=1)
    desk.report("a", slots=1, capabilities=[replace(MODEL, kinds=frozenset(Kind))])
    work = chat(**changes)
    desk.at(1.0).start(work)
    desk.at(2.0)
    if tokens:
        desk.step(Output("w", 1, 0, tokens))
    desk.at(5.0).step(Ended("w", 1, 1 if tokens else 0))
    desk.start(replace(work, id="runs"))
    desk.arrive(replace(work, id="waits", prompt_tokens=500))
    waiting = desk.machine.waiting.pool_units((work.kind, "m"))
    (finish,) = finishes(desk.arrive(replace(work, id="late"), draw=3))
    twin = Paces()
    twin.meet((work.kind, "m"))
    twin.learn((work.kind, "m"), units, 4.0)
    assert finish.retry_after_s == twin.retry_after_s((work.kind, "m"), waiting, 1, 3)


# --- what is charged ---


def charged(reported: Usage, **changes: Any) -> Usage:
    """The usage of a work of 10 tokens of prompt, of which three tokens were delivered."""
    desk = Desk("a")
    desk.start(chat(**changes))
    stream(desk, "w", 1, count=3)
    (finish,) = finishes(desk.step(Ended("w", 1, 3, reported)))
    return finish.usage


def test_an_engine_is_believed_up_to_what_the_client_allowed() -> None:
    """A client never pays for more than it asked for, whatever an engine reports."""
    assert charged(Usage(12, 90)) == Usage(12, 90)
    assert charged(Usage(12, 101)) == Usage(12, 100)
    assert charged(Usage(12, 101), output_tokens_max=0) == Usage(12, 101)


def test_an_engine_that_reports_nothing_is_charged_by_what_was_delivered() -> None:
    """With the gateway's own estimate of the prompt."""
    assert charged(Usage()) == Usage(10, 3)
