"""A work: one thing a client asked for, in the few numbers that deciding needs. Its bytes stay outside."""

from __future__ import annotations

from enum import StrEnum

from groundswell.model.value import value


class Kind(StrEnum):
    """What sort of work it is; an engine says which kinds it does."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    TRANSCODE = "transcode"

    __hash__ = str.__hash__  # An enum's own is a Python function, and every decision looks kinds up.


class WorkClass(StrEnum):
    """How urgent it is, most urgent first."""

    LIVE = "live"
    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class WorkState(StrEnum):
    """Where a work is. The last four are ends; a work reaches exactly one of them, once."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"


ENDED = frozenset({WorkState.DONE, WorkState.FAILED, WorkState.CANCELLED, WorkState.REFUSED})


@value
class Work:
    """One accepted request, as the brain sees it.

    ``deadline_s`` is on the dispatcher's clock: the latest moment at which the work may still be *waiting*;
    once it runs, only stalls and cancellation end it. ``prefix`` holds hashes of the prompt's leading blocks,
    longest-lived first, for cache affinity. ``resumable`` says that the gateway is able to splice a second
    attempt onto what was already sent; whether an engine is able to continue is the capability's word.
    """

    id: str
    kind: Kind
    model: str
    tenant: str
    deadline_s: float
    work_class: WorkClass = WorkClass.STANDARD
    prompt_tokens: int = 0
    output_tokens_max: int = 0
    pixels: int = 0
    prefix: tuple[int, ...] = ()
    streaming: bool = False
    resumable: bool = False
    needs_exact_resume: bool = False
    price_max: int | None = None
    trust_min: int = 0
    region: str | None = None
    features: frozenset[str] = frozenset()
