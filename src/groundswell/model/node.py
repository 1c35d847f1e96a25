"""A node, its engines, and what each engine can do."""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum

from groundswell.model.money import Price
from groundswell.model.value import value
from groundswell.model.work import Kind

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"  # What a node or an engine may be called: the whole text matches.


class Continuation(StrEnum):
    """How an engine can go on with a text that another attempt began.

    ``NONE``: it cannot. ``TEXT``: it continues an assistant prefix or a prompt (vLLM's and SGLang's
    ``continue_final_message``, llama.cpp's assistant prefill); sampling state is not carried over.
    ``EXACT``: as TEXT, and seeds and penalties go on as if nothing had happened (our own engines).
    """

    NONE = "none"
    TEXT = "text"
    EXACT = "exact"


@value
class Capability:
    """One model on one engine.

    ``model`` is the public name that clients ask for, ``engine_model`` the name the engine knows.
    A stream continues only between capabilities of equal ``fingerprint`` (weights, quantisation, tokenizer,
    chat template). ``profile`` names the shipped prior of ``core.batching`` to start predictions from.
    """

    model: str
    engine_model: str
    kinds: frozenset[Kind]
    fingerprint: str = ""
    continuation: Continuation = Continuation.NONE
    context_tokens: int = 4096
    price: Price = Price()
    warm: bool = True
    profile: str = ""
    features: frozenset[str] = frozenset()


@value
class EngineReport:
    """One engine on a node, as the node sees it now. ``generation`` rises each time its process restarts."""

    engine_id: str
    generation: int
    slots: int
    running: int
    healthy: bool
    capabilities: tuple[Capability, ...] = ()


@value
class NodeReport:
    """The heartbeat of a node, and its hello.

    ``generation`` rises each time the node starts, so that a restarted node is not taken for its ghost.
    ``attempts`` are the attempts that it holds, as (work id, attempt number), so that what one side forgot
    is found by the other.
    """

    node_id: str
    generation: int
    sequence: int
    engines: tuple[EngineReport, ...] = ()
    attempts: tuple[tuple[str, int], ...] = ()
    draining: bool = False
    region: str = ""
    trust: int = 1
    labels: tuple[tuple[str, str], ...] = field(default=())
