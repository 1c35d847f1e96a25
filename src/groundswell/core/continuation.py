"""Whether a stream that broke can go on elsewhere, and what the second attempt must be told.

Theory of operation. Exact continuation means that nothing that was sent is retracted, repeated or skipped,
and that the rest is what the same model would go on with. An engine goes on with a text that it is given as
the beginning of its own answer. That is the same model only within one fingerprint (weights, quantisation,
tokenizer, chat template); an unknown fingerprint is equal to none. And it is the same *state* only if no
state but the text matters. A grammar, a tool call under way, a hidden chain of thought, several choices at
once, or log-probabilities that were promised are state that the text does not carry: such work restarts
before its first content or ends with an error that says so. Seeds and penalties depend on what was
generated, so they need an engine that treats the given prefix as generated (``Continuation.EXACT``).

No bytes and no JSON in here: facts in, values out. The gateway, which holds the text, calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from groundswell.model.money import Usage
from groundswell.model.node import Capability, Continuation
from groundswell.model.value import value
from groundswell.model.work import Kind


class Obstacle(StrEnum):
    """Why a stream cannot be continued; the words go into the error's message."""

    KIND = "this kind of work has no text to continue"
    CHOICES = "it has several choices"
    TOOLS = "a tool call had begun"
    STRUCTURED = "its output is bound to a format"
    REASONING = "the model was reasoning"
    LOGPROBS = "log-probabilities were asked for"
    FINGERPRINT = "no node serves exactly the same model"
    ENGINE = "the engine cannot continue a text"
    STATE = "its seed or penalties need an engine that keeps their state"
    COMPLETE = "its token budget is used up"


@value
class Request:
    """The facts of a request that decide whether its output can be continued.

    ``structured``: a response format, a grammar or a forced tool choice is set. ``greedy``: temperature is 0.
    ``seeded``, ``penalised``: a seed, or a penalty other than none, is set. ``max_tokens`` 0: no limit.
    """

    kind: Kind
    choices: int = 1
    structured: bool = False
    logprobs: bool = False
    greedy: bool = False
    seeded: bool = False
    penalised: bool = False
    max_tokens: int = 0
    min_tokens: int = 0


@value
class Progress:
    """What the client was sent: tokens, and whether a tool call or reasoning was among it."""

    tokens: int = 0
    tool_call: bool = False
    reasoning: bool = False


@value
class Resume:
    """Go on, with these budgets (``max_tokens`` 0: no limit)."""

    max_tokens: int
    min_tokens: int
    exact: bool


@value
class NoResume:
    """Do not go on, because."""

    reason: Obstacle


NOTHING_SENT: Final = Progress()


def obstacle(request: Request, progress: Progress = NOTHING_SENT) -> Obstacle | None:
    """What forbids a continuation on any engine, None for nothing. With no progress: what would forbid it.

    Tools that are offered but not yet called are no obstacle: a text answer may go on as text.
    """
    if request.kind not in (Kind.CHAT, Kind.COMPLETION):
        return Obstacle.KIND
    checks = (
        (request.choices != 1, Obstacle.CHOICES),
        (progress.tool_call, Obstacle.TOOLS),
        (request.structured, Obstacle.STRUCTURED),
        (progress.reasoning, Obstacle.REASONING),
        (request.logprobs, Obstacle.LOGPROBS),
    )
    return next((why for forbids, why in checks if forbids), None)


def needs_exact(request: Request) -> bool:
    """Whether the text alone does not fix how the same engine would go on: penalties always, a seed unless
    greedy (a seed does nothing then)."""
    return request.penalised or (request.seeded and not request.greedy)


def same_fingerprint(one: str, other: str) -> bool:
    """Equal and known. An engine that does not say what it runs is like no other."""
    return bool(one) and one == other


def can_continue(capability: Capability, fingerprint: str, exact: bool) -> bool:
    """Whether this seat may go on with what a model of this fingerprint began."""
    if not same_fingerprint(capability.fingerprint, fingerprint):
        return False
    if exact:
        return capability.continuation is Continuation.EXACT
    return capability.continuation is not Continuation.NONE


def plan(request: Request, progress: Progress, fingerprint: str, capability: Capability) -> Resume | NoResume:
    """How to go on with this stream, begun by a model of this fingerprint, on this seat."""
    why = obstacle(request, progress)
    exact = needs_exact(request)
    if why is None:
        why = _engine_obstacle(capability, fingerprint, exact)
    if why is None and request.max_tokens and progress.tokens >= request.max_tokens:
        why = Obstacle.COMPLETE
    if why is not None:
        return NoResume(why)
    budget = request.max_tokens - progress.tokens if request.max_tokens else 0
    return Resume(budget, max(0, request.min_tokens - progress.tokens), exact)


def _engine_obstacle(capability: Capability, fingerprint: str, exact: bool) -> Obstacle | None:
    if not same_fingerprint(capability.fingerprint, fingerprint):
        return Obstacle.FINGERPRINT
    if capability.continuation is Continuation.NONE:
        return Obstacle.ENGINE
    if exact and capability.continuation is not Continuation.EXACT:
        return Obstacle.STATE
    return None


def stop_across_seam(tail: str, text: str, stops: Sequence[str]) -> str | None:
    """The stop string that begins in the emitted ``tail`` and ends first in the new ``text``, None for none.

    The engine of the second attempt sees the tail as prompt, so it looks for stop strings only in its own
    output. What was sent stays sent, and a stop string across the seam begins before the new text, so nothing
    of that is sent any more. Give it all new text until that is as long as the longest stop string.
    """
    best: tuple[int, str] | None = None
    for stop in stops:
        for sent in range(min(len(stop) - 1, len(tail)), 0, -1):
            end = len(stop) - sent
            if (
                tail.endswith(stop[:sent])
                and text.startswith(stop[sent:])
                and (best is None or end < best[0])
            ):
                best = (end, stop)
    return best[1] if best else None


def may_span(tail: str, text: str, stops: Sequence[str]) -> bool:
    """Whether more text could still complete a stop string that began in the tail: hold ``text`` back."""
    return any(
        tail.endswith(stop[:sent]) and stop[sent:].startswith(text) and len(text) < len(stop) - sent
        for stop in stops
        for sent in range(1, min(len(stop) - 1, len(tail)) + 1)
    )


def combined_usage(
    emitted: int, delivered: int, reported: Usage, prompt_tokens: int, allowed: int = 0
) -> Usage:
    """The usage of a work over all its attempts, as if there had been one.

    ``emitted`` tokens were sent by earlier attempts, ``delivered`` by the last one, whose engine ``reported``
    this. The engine counted the emitted prefix as input, so it is taken off there; an engine that
    reports nothing is charged by what was delivered, and the gateway's estimate of the prompt. No report
    is believed beyond the output that the client ``allowed`` (0: no limit) or that was really delivered.
    """
    inputs = max(0, reported.input_tokens - emitted) if reported.input_tokens else prompt_tokens
    outputs = emitted + (reported.output_tokens or delivered)
    if allowed:
        outputs = min(outputs, max(allowed, emitted + delivered))
    return Usage(inputs, outputs, reported.pixels, reported.media_ms)
