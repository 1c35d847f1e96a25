"""What an OpenAI-compatible server is: its flavour, its models, and what each can do.

Every flavour answers ``/v1/models``; what it says there, and paths of its own, tell it apart and tell more:

    groundswell  a ``groundswell`` object in each model: fingerprint, continuation, slots, profile
    vllm         owned_by "vllm", max_model_len, root; /health
    sglang       owned_by "sglang", max_model_len; /health
    llamacpp     owned_by "llamacpp", meta (n_params, size, n_vocab, n_ctx); /props; /health
    ollama       /api/tags (digests), /api/show (context length)
    lmstudio     /api/v0/models (context length, quantisation)
    tgi          /info (model, revision, limits)

A fingerprint says that two engines would go on with each other's text. Two servers share one only when what
they tell is equal and names the weights beyond doubt: a digest, or sizes in bytes and parameters. Otherwise
the server's address is part of it, and only the operator's word (``fingerprint``) can say that two are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from groundswell.model.errors import UpstreamError
from groundswell.model.money import Price
from groundswell.model.node import Capability, Continuation
from groundswell.model.work import Kind
from groundswell.ports import EngineInfo
from groundswell.wire.http_client import HttpClient, HttpError, Origin

# Where a server does not say how many requests it serves at once. vLLM and SGLang batch hundreds unless they
# were told otherwise; of others nobody knows, and what waits here is spread better than what waits there.
SLOTS_DEFAULT: Final = 8
SLOTS_OF_FLAVOUR: Final = {"vllm": 64, "sglang": 64}
CONTEXT_DEFAULT: Final = 4096
MODELS_MAX: Final = 1000  # A hosted service may list hundreds; more is not a list of models.
ASK_TIMEOUT_S: Final = 5.0
SHOWN_MAX: Final = 32  # Ollama is asked for details of this many models; it may hold hundreds.

_TEXT: Final = frozenset({Kind.CHAT, Kind.COMPLETION})
_EMBEDS: Final = ("embed", "bge-", "e5-", "gte-", "minilm")


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What the operator says about an engine, and what is not the engine's to say.

    ``aliases`` maps public names to the engine's names; a model with an alias is offered by its aliases
    only. ``slots`` 0 and an empty ``fingerprint`` or ``profile`` mean: as the probe finds it.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)
    price: Price = Price()
    slots: int = 0
    profile: str = ""
    fingerprint: str = ""


class Server:
    """Asks one server questions. ``headers`` carry its key, if it ``has_key``."""

    def __init__(
        self,
        client: HttpClient,
        origin: Origin,
        path: str,
        headers: tuple[tuple[str, str], ...],
        has_key: bool = False,
    ) -> None:
        self.has_key = has_key
        self._client = client
        self._origin = origin
        self._path = path
        self._headers = headers
        self.address = f"{origin.authority}{path}"

    async def ask(
        self, path: str, body: dict[str, Any] | None = None, timeout_s: float = ASK_TIMEOUT_S
    ) -> tuple[int, Any]:
        """Status and decoded JSON (None when it is none). Raises ``UpstreamError`` without an answer."""
        data = None if body is None else msgspec.json.encode(body)
        headers = self._headers if body is None else (*self._headers, ("Content-Type", "application/json"))
        try:
            response = await self._client.fetch(
                self._origin, "GET" if body is None else "POST", self._path + path,
                headers=headers, body=data, timeout_s=timeout_s,
            )  # fmt: skip
        except HttpError as error:
            raise UpstreamError(
                f"No engine answers at {self.address} ({error}). Is it running, and reachable from here?"
            ) from error
        try:
            return response.status, msgspec.json.decode(response.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return response.status, None

    async def object_at(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object there; empty when there is none, for questions that only some servers know."""
        try:
            status, answer = await self.ask(path, body)
        except UpstreamError:
            return {}
        return answer if status == 200 and isinstance(answer, dict) else {}


async def models_of(server: Server) -> list[dict[str, Any]]:
    """The models that the server lists, less what changes from one answer to the next.

    Raises ``UpstreamError`` when it does not answer, does not let us in, or is no such server."""
    status, answer = await server.ask("/v1/models")
    if status in (401, 403):
        if not server.has_key:
            raise UpstreamError(f"The engine at {server.address} wants an API key: give it with --key.")
        raise UpstreamError(f"The engine at {server.address} does not accept its key.")
    if status == 503:
        raise UpstreamError(f"The engine at {server.address} is not ready yet. Try again in a moment.")
    listed = answer.get("data") if isinstance(answer, dict) else None
    if listed is None and isinstance(answer, dict) and answer.get("object") == "list":
        listed = []  # How Ollama says that it has none yet.
    if status != 200 or not isinstance(listed, list):
        raise UpstreamError(
            f"There is no OpenAI-compatible server at {server.address}: /v1/models answers {status}."
        )
    models = [one for one in listed[:MODELS_MAX] if isinstance(one, dict) and isinstance(one.get("id"), str)]
    return [
        {name: value for name, value in one.items() if name not in ("created", "permission")}
        for one in models
    ]


@dataclass(slots=True)
class _Found:
    """One model as its server describes it."""

    id: str
    identity: str = ""  # What names the weights beyond doubt, or "".
    context: int = CONTEXT_DEFAULT
    kinds: frozenset[Kind] = frozenset()
    continuation: Continuation = Continuation.NONE
    fingerprint: str = ""  # Given by the engine itself; only ours do.
    profile: str = ""
    slots: int = 0
    warm: bool = True
    also: str = ""  # Another name that its own server takes for it.


async def inspect(server: Server, models: list[dict[str, Any]], settings: ProbeSettings) -> EngineInfo:
    """Find out the rest: flavour, context, kinds, slots, continuation, fingerprints."""
    flavour, found = await _describe(server, models)
    if flavour not in ("groundswell", "vllm", "sglang", "llamacpp"):
        # Nothing documented to rely on: try it, on one model that is loaded, and believe it for all.
        trial = next((one for one in found if one.warm and Kind.CHAT in one.kinds), None)
        if trial is not None and await _continues(server, trial.id):
            for one in found:
                one.continuation = Continuation.TEXT if one.warm else one.continuation
    told = next((one.slots for one in found if one.slots), 0)
    slots = settings.slots or told or SLOTS_OF_FLAVOUR.get(flavour, SLOTS_DEFAULT)
    capabilities = [
        _capability(server, one, public, settings) for one in found for public in _public(one, settings)
    ]
    missing = set(settings.aliases.values()) - {name for one in found for name in (one.id, one.also)}
    if missing:
        raise UpstreamError(f"The engine has no model {sorted(missing)[0]!r}. It has: {_some(found)}.")
    return EngineInfo(slots, tuple(sorted(capabilities, key=lambda one: one.model)), flavour)


async def _describe(server: Server, models: list[dict[str, Any]]) -> tuple[str, list[_Found]]:
    first = models[0] if models else {}
    owner = str(first.get("owned_by", ""))
    if isinstance(first.get("groundswell"), dict):
        return "groundswell", [_ours(one) for one in models]
    if owner in ("vllm", "sglang"):
        return owner, [_vllm(one) for one in models]
    props = await server.object_at("/props")
    if owner == "llamacpp" or "default_generation_settings" in props:
        return "llamacpp", [_llamacpp(one, props) for one in models]
    if (await server.object_at("/api/version")).get("version"):
        return "ollama", await _ollama(server, models)
    studio = (await server.object_at("/api/v0/models")).get("data")
    if isinstance(studio, list):
        details = {one["id"]: one for one in studio if isinstance(one, dict) and "id" in one}
        return "lmstudio", [_lmstudio(one, details.get(one["id"], {})) for one in models]
    info = await server.object_at("/info")
    if info.get("model_id") and models:
        return "tgi", [_tgi(first, info)]
    return "openai", [_Found(one["id"], context=_context(one), kinds=_guess(one["id"])) for one in models]


def _ours(model: dict[str, Any]) -> _Found:
    own = model["groundswell"]
    kinds = frozenset(Kind(kind) for kind in own.get("kinds", ()) if kind in set(Kind)) or _TEXT
    return _Found(
        model["id"],
        context=_context(model),
        kinds=kinds,
        fingerprint=str(own.get("fingerprint", "")),
        continuation=Continuation(own.get("continuation", "none")),
        profile=str(own.get("profile", "")),
        slots=_positive(own.get("slots")),
    )


def _vllm(model: dict[str, Any]) -> _Found:
    # The root is a name or a path: it does not say which revision or quantisation was loaded.
    kinds = _guess(model["id"])
    continuation = Continuation.TEXT if Kind.CHAT in kinds else Continuation.NONE
    return _Found(model["id"], context=_context(model), kinds=kinds, continuation=continuation)


def _llamacpp(model: dict[str, Any], props: dict[str, Any]) -> _Found:
    told = model.get("meta")
    meta: dict[str, Any] = told if isinstance(told, dict) else {}
    settings = props.get("default_generation_settings")
    context = settings.get("n_ctx") if isinstance(settings, dict) else None
    kinds = _guess(model["id"])
    numbers = [_positive(meta.get(name)) for name in ("n_params", "size", "n_vocab", "n_embd")]
    path = str(props.get("model_path", "")).rsplit("/", 1)[-1]
    template = hashlib.sha256(str(props.get("chat_template", "")).encode()).hexdigest()
    # Parameters, bytes, vocabulary, file name and template: as good as a digest for honest operators.
    identity = "/".join(map(str, [*numbers, path, template])) if all(numbers[:3]) and path else ""
    return _Found(
        model["id"],
        identity=identity,
        context=_positive(context) or _context(meta) or _context(model),
        kinds=kinds,
        continuation=Continuation.TEXT if Kind.CHAT in kinds else Continuation.NONE,
        slots=_positive(props.get("total_slots")),
    )


async def _ollama(server: Server, models: list[dict[str, Any]]) -> list[_Found]:
    tags = {
        one.get("name"): one
        for one in (await server.object_at("/api/tags")).get("models", [])
        if isinstance(one, dict)
    }
    loaded = await loaded_by_ollama(server)
    found: list[_Found] = []
    for model in models:
        one = _Found(model["id"], kinds=_guess(model["id"]), warm=model["id"] in loaded)
        if one.id.endswith(":latest"):
            one.also = one.id.removesuffix(":latest")
        one.identity = str(tags.get(one.id, {}).get("digest", ""))
        if len(found) < SHOWN_MAX:
            shown = await server.object_at("/api/show", {"model": one.id})
            details = shown.get("model_info")
            if isinstance(details, dict):
                lengths = [_positive(details[key]) for key in details if key.endswith(".context_length")]
                one.context = next((length for length in lengths if length), one.context)
            # What the model could read; what is in memory was made for less, and drops the rest in silence.
            one.context = loaded.get(one.id) or one.context
            if "embedding" in (shown.get("capabilities") or ()):
                one.kinds = frozenset({Kind.EMBEDDING})
        found.append(one)
    return found


async def loaded_by_ollama(server: Server) -> dict[str, int]:
    """The models that an Ollama server holds in memory now, each with the context that it was given (0: not
    told)."""
    running = (await server.object_at("/api/ps")).get("models")
    return {
        str(one.get("name")): _positive(one.get("context_length"))
        for one in (running if isinstance(running, list) else ())
        if isinstance(one, dict)
    }


def _lmstudio(model: dict[str, Any], details: dict[str, Any]) -> _Found:
    embeds = details.get("type") == "embeddings"
    return _Found(
        model["id"],
        context=_positive(details.get("loaded_context_length")) or _context(details),
        kinds=frozenset({Kind.EMBEDDING}) if embeds else _guess(model["id"]),
        warm=details.get("state") != "not-loaded",
    )


def _tgi(model: dict[str, Any], info: dict[str, Any]) -> _Found:
    revision = str(info.get("model_sha") or "")
    return _Found(
        str(model["id"]),
        identity=f"{info['model_id']}/{revision}/{info.get('quantize')}" if revision else "",
        context=_positive(info.get("max_total_tokens")) or CONTEXT_DEFAULT,
        kinds=_TEXT,
        slots=_positive(info.get("max_concurrent_requests")),
    )


async def _continues(server: Server, model: str) -> bool:
    """Whether an assistant message at the end is gone on with, found out by counting.

    The prompt is counted without and with one more letter of the assistant's. A server that continues reads
    one token more; one that does not closes the message and opens another, which is two at least. What the
    model says does not matter, so that this holds for any model."""
    question = [{"role": "user", "content": "Say a letter."}]
    base = {"model": model, "max_tokens": 1, "temperature": 0}
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    begun = [*question, {"role": "assistant", "content": "a"}]
    counts = []
    for body in ({**base, "messages": question}, {**base, **flags, "messages": begun}):
        usage = (await server.object_at("/v1/chat/completions", body)).get("usage")
        counts.append(_positive(usage.get("prompt_tokens")) if isinstance(usage, dict) else 0)
    return counts[0] > 0 and counts[1] == counts[0] + 1


def _capability(server: Server, found: _Found, public: str, settings: ProbeSettings) -> Capability:
    return Capability(
        model=public,
        engine_model=found.id,
        kinds=found.kinds,
        fingerprint=settings.fingerprint or _fingerprint(server, found),
        continuation=found.continuation,
        context_tokens=found.context,
        price=settings.price,
        warm=found.warm,
        profile=settings.profile or found.profile,
    )


def _fingerprint(server: Server, found: _Found) -> str:
    if found.fingerprint:
        return found.fingerprint
    told = found.identity or f"{server.address}/{found.id}"
    return f"probed-{hashlib.sha256(told.encode()).hexdigest()[:32]}"


def _public(found: _Found, settings: ProbeSettings) -> list[str]:
    """The public names of an engine's model."""
    aliases = sorted(name for name, target in settings.aliases.items() if target in (found.id, found.also))
    return aliases or [name for name in (found.id, found.also) if name]


def _some(found: list[_Found]) -> str:
    """The engine's own names of its models, as far as a sentence takes them."""
    names = ", ".join(one.id for one in found[:10])
    return names + (", …" if len(found) > 10 else "")


def _guess(model: str) -> frozenset[Kind]:
    """Servers that do not say what a model is for leave its name to go by."""
    return frozenset({Kind.EMBEDDING}) if any(part in model.lower() for part in _EMBEDS) else _TEXT


def _context(facts: dict[str, Any]) -> int:
    names = (
        "max_model_len",
        "n_ctx",
        "context_length",
        "max_context_length",
        "context_window",
        "n_ctx_train",
    )
    return next((value for name in names if (value := _positive(facts.get(name)))), CONTEXT_DEFAULT)


def _positive(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else 0
