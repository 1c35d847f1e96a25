"""When a broken stream may go on, and what the second attempt is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet import MODEL
from hypothesis import given
from hypothesis import strategies as st

from groundswell.core.continuation import (
    NoResume,
    Obstacle,
    Progress,
    Request,
    Resume,
    can_continue,
    combined_usage,
    may_span,
    needs_exact,
    obstacle,
    plan,
    same_fingerprint,
    stop_across_seam,
)
from groundswell.model.money import Usage
from groundswell.model.node import Continuation
from groundswell.model.work import Kind

CHAT = Request(Kind.CHAT, max_tokens=100)


def test_plain_text_goes_on_with_what_is_left_of_its_budgets() -> None:
    """The client's limits hold over all attempts together."""
    request = replace(CHAT, min_tokens=50)
    assert plan(request, Progress(30), "f", MODEL) == Resume(max_tokens=70, min_tokens=20, exact=False)
    assert plan(request, Progress(60), "f", MODEL) == Resume(max_tokens=40, min_tokens=0, exact=False)


def test_no_limit_stays_no_limit() -> None:
    """Zero means none, and must not become a budget of minus thirty."""
    assert plan(replace(CHAT, max_tokens=0), Progress(30), "f", MODEL) == Resume(0, 0, False)


@pytest.mark.parametrize(
    ("request_", "progress", "why"),
    [
        (Request(Kind.EMBEDDING), Progress(1), Obstacle.KIND),
        (replace(CHAT, choices=2), Progress(1), Obstacle.CHOICES),
        (CHAT, Progress(1, tool_call=True), Obstacle.TOOLS),
        (replace(CHAT, structured=True), Progress(1), Obstacle.STRUCTURED),
        (CHAT, Progress(1, reasoning=True), Obstacle.REASONING),
        (replace(CHAT, logprobs=True), Progress(1), Obstacle.LOGPROBS),
        (replace(CHAT, penalised=True), Progress(1), Obstacle.STATE),
        (replace(CHAT, seeded=True), Progress(1), Obstacle.STATE),
        (CHAT, Progress(100), Obstacle.COMPLETE),
    ],
)
def test_state_that_the_text_does_not_carry_forbids_it(
    request_: Request, progress: Progress, why: Obstacle
) -> None:
    """Each obstacle has its own words, since the client is told the reason."""
    assert plan(request_, progress, "f", MODEL) == NoResume(why)
    assert why.value


def test_an_exact_engine_goes_on_with_seeds_and_penalties() -> None:
    """It treats the given prefix as generated."""
    exact = replace(MODEL, continuation=Continuation.EXACT)
    request = replace(CHAT, seeded=True, penalised=True)
    assert plan(request, Progress(1), "f", exact) == Resume(99, 0, True)


def test_another_model_or_an_engine_that_cannot_is_refused() -> None:
    """Within one fingerprint only, and only if the engine says that it is able to."""
    assert plan(CHAT, Progress(1), "g", MODEL) == NoResume(Obstacle.FINGERPRINT)
    unable = replace(MODEL, continuation=Continuation.NONE)
    assert plan(CHAT, Progress(1), "f", unable) == NoResume(Obstacle.ENGINE)


def test_what_would_forbid_it_is_known_before_it_starts() -> None:
    """The gateway marks a work as resumable from the request alone."""
    assert obstacle(CHAT) is None
    assert obstacle(replace(CHAT, structured=True)) is Obstacle.STRUCTURED


def test_a_seed_matters_only_when_something_is_drawn() -> None:
    """Greedy decoding draws nothing; a penalty changes it all the same."""
    assert needs_exact(replace(CHAT, seeded=True))
    assert not needs_exact(replace(CHAT, seeded=True, greedy=True))
    assert needs_exact(replace(CHAT, penalised=True, greedy=True))


def test_an_unknown_fingerprint_is_like_no_other() -> None:
    """Two engines that do not say what they run may run anything."""
    assert same_fingerprint("f", "f")
    assert not same_fingerprint("f", "g")
    assert not same_fingerprint("", "")


@pytest.mark.parametrize(
    ("mode", "exact", "able"),
    [
        (Continuation.NONE, False, False),
        (Continuation.TEXT, False, True),
        (Continuation.TEXT, True, False),
        (Continuation.EXACT, True, True),
        (Continuation.EXACT, False, True),
    ],
)
def test_an_engine_continues_what_its_mode_allows(mode: Continuation, exact: bool, able: bool) -> None:
    """Routing asks this of each candidate."""
    assert can_continue(replace(MODEL, continuation=mode), "f", exact) is able
    assert not can_continue(replace(MODEL, continuation=mode), "g", exact)


@pytest.mark.parametrize(
    ("tail", "text", "stops", "found"),
    [
        ("and then EN", "D of it", ["END"], "END"),
        ("and then E", "ND of it", ["END"], "END"),
        ("and then EN", "T of it", ["END"], None),
        ("and then END", " of it", ["END"], None),
        ("", "END", ["END"], None),
        ("ab", "cd", ["abcd", "bc"], "bc"),
        ("ab", "cd", ["bc", "abcd"], "bc"),
        ("aXa", "b", ["aXab", "ab"], "aXab"),
        ("x", "y", [], None),
    ],
)
def test_a_stop_string_across_the_seam_is_found(
    tail: str, text: str, stops: list[str], found: str | None
) -> None:
    """The second engine takes the tail for prompt and does not look there."""
    assert stop_across_seam(tail, text, stops) == found


@given(st.text("ab", max_size=8), st.text("ab", max_size=8), st.text("ab", min_size=1, max_size=5))
def test_the_seam_finds_what_a_search_of_the_whole_text_finds(tail: str, text: str, stop: str) -> None:
    """Against the plain definition: a match that begins before the seam and ends after it."""
    whole = tail + text
    spans = any(whole.startswith(stop, at) and at < len(tail) < at + len(stop) for at in range(len(whole)))
    assert (stop_across_seam(tail, text, [stop]) is not None) == spans


def test_text_is_held_back_while_a_stop_string_may_still_complete() -> None:
    """What was sent cannot be taken back."""
    assert may_span("and E", "", ["END"])
    assert may_span("and E", "N", ["END"])
    assert may_span("and EN", "", ["END"])
    assert not may_span("and E", "ND", ["END"]), "complete: no longer a maybe"
    assert not may_span("and E", "x", ["END"])
    assert not may_span("and", "", ["END"])


def test_usage_is_what_one_undisturbed_attempt_would_have_had() -> None:
    """The client pays neither for the replayed prefix nor for a second reading of the prompt."""
    assert combined_usage(0, 7, Usage(50, 7), 40) == Usage(50, 7)
    assert combined_usage(30, 7, Usage(80, 7), 40) == Usage(50, 37)


def test_an_engine_that_reports_nothing_is_counted_by_what_was_delivered() -> None:
    """The gateway's own estimate of the prompt is all there is."""
    assert combined_usage(30, 7, Usage(), 40) == Usage(40, 37)
    assert combined_usage(30, 7, Usage(20, 0), 40) == Usage(0, 37)
    assert combined_usage(0, 0, Usage(pixels=9, media_ms=4), 0) == Usage(0, 0, 9, 4)
