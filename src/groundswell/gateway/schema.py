"""What the three text endpoints accept, as types. A field that no type names is a 400 that names it.

Three sorts of fields pass: those that engines use, those that the OpenAI API knows and no engine here can use
(accepted, so that existing clients work, and dropped by the adapters), and widely used extras of open
engines. Which of them an engine sees is the allow-list of its adapter. Image and audio parts pass through
untouched: the gateway opens no URL in them. The bounds are those of the OpenAI specification.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from groundswell.gateway import prescan
from groundswell.model.errors import BadRequest
from groundswell.model.work import Kind

Name = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+\Z")]
Label = Annotated[str, Meta(max_length=512, pattern=r"^[^\x00]*\Z")]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Signed64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=4)]
TokenName = Annotated[str, Meta(pattern=r"^[0-9]{1,9}\Z")]
Bias = Annotated[dict[TokenName, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=300)]
Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], Label], Meta(max_length=16)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]

COMPLETION_TOKENS = 16
SCHEMA_BYTES_MAX = 64 << 10
SCHEMA_DEPTH_MAX = 32


class StreamOptions(Struct, forbid_unknown_fields=True):
    """``include_obfuscation`` is accepted; nothing here pads chunks."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Message(Struct, forbid_unknown_fields=True):
    """One message. ``content`` parts keep whatever their type needs (text, images, audio, files)."""

    role: Annotated[str, Meta(pattern=r"^(system|developer|user|assistant|tool|function)\Z")]
    content: str | list[dict[str, Any]] | None = None
    name: Label | None = None
    tool_calls: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_call_id: Label | None = None
    function_call: dict[str, Any] | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None
    annotations: list[Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Sampling(Struct, forbid_unknown_fields=True, kw_only=True):
    """What chat and completions have in common."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: Stop | None = None
    seed: Signed64 | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    user: Label | None = None
    # Extras of open engines (vLLM, SGLang, llama.cpp, ...).
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Fraction | None = None
    typical_p: Fraction | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    length_penalty: Annotated[float, Meta(ge=-10, le=10)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    cache_prompt: bool | None = None


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    function_call: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: Label | None = None
    chat_template_kwargs: dict[str, bool | int | str] | None = None
    # Known to the OpenAI API; no engine here can use them.
    audio: dict[str, Any] | None = None
    metadata: Metadata | None = None
    modalities: list[Label] | None = None
    moderation: Any = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Label | None = None
    safety_identifier: Label | None = None
    service_tier: Label | None = None
    store: bool | None = None
    verbosity: Label | None = None
    web_search_options: dict[str, Any] | None = None


class CompletionRequest(Sampling):
    """``POST /v1/completions``."""

    prompt: str | Annotated[list[str | int | list[TokenId]], Meta(min_length=1, max_length=300_000)]
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    suffix: str | None = None


class EmbeddingRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """``POST /v1/embeddings``."""

    model: Name
    input: str | Annotated[list[str | int | list[TokenId]], Meta(min_length=1, max_length=300_000)]
    dimensions: Count | None = None
    encoding_format: Annotated[str, Meta(pattern=r"^(float|base64)\Z")] | None = None
    user: Label | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None


Request = ChatRequest | CompletionRequest | EmbeddingRequest

_TYPES: dict[Kind, type[ChatRequest] | type[CompletionRequest] | type[EmbeddingRequest]] = {
    Kind.CHAT: ChatRequest,
    Kind.COMPLETION: CompletionRequest,
    Kind.EMBEDDING: EmbeddingRequest,
}
_AT = re.compile(r" - at (?:`?key`? in )?`\$\.?(.*)`\Z", re.DOTALL)
_FIELD = re.compile(r"(?:unknown|missing required) field `([^`]*)`\Z")


def parse(kind: Kind, raw: bytes | bytearray) -> tuple[Request, dict[str, Any]]:
    """The typed request, and the same as a plain dictionary for an engine's adapter.

    Raises ``BadRequest`` with ``param`` naming the field.
    """
    body = prescan.decode(raw)
    try:
        request = msgspec.convert(body, _TYPES[kind])
    except msgspec.ValidationError as error:
        raise _named(error) from None
    if isinstance(request, EmbeddingRequest):
        _check_inputs(request.input, "input", strings_max=2048)
    else:
        _check_sampling(request, body)
    return request, body


def _named(error: msgspec.ValidationError) -> BadRequest:
    """msgspec's words are plain enough for a client; the path in them becomes ``param``."""
    text = str(error)
    at = _AT.search(text)
    path = at.group(1) if at else ""
    what = text[: at.start()] if at else text
    field = _FIELD.search(what)
    if field:
        path = f"{path}.{field.group(1)}" if path else field.group(1)
        if "unknown" in what:
            return BadRequest(f"Unknown field {path[:200]!r}.", param=path[:200], code="unknown_field")
        return BadRequest(f"Missing field {path!r}.", param=path, code="missing_field")
    what = what.replace("Expected", "expected").replace("`", "")
    return BadRequest(f"Invalid value for {path!r}: {what}.", param=path or None, code="invalid_value")


def _check_sampling(request: ChatRequest | CompletionRequest, body: dict[str, Any]) -> None:
    """The rules that tie fields together. Aliases are folded in ``body``."""
    if request.stream_options is not None and not request.stream:
        raise BadRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if isinstance(request, CompletionRequest):
        _check_inputs(request.prompt, "prompt", strings_max=128)
        if request.max_tokens is None:
            # The API's default, said aloud: engines differ, and a second attempt must know what is left.
            body["max_tokens"] = COMPLETION_TOKENS
        if request.best_of is not None and request.best_of < (request.n or 1):
            raise BadRequest("'best_of' must be at least 'n'.", param="best_of")
        if request.stream and (request.best_of or 1) > (request.n or 1):
            raise BadRequest("'best_of' cannot be streamed.", param="best_of")
        return
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    if request.max_completion_tokens is not None:
        if request.max_tokens is not None and request.max_tokens != request.max_completion_tokens:
            raise BadRequest(
                "'max_tokens' and 'max_completion_tokens' are two names of one limit and differ.",
                param="max_completion_tokens",
            )
        # Open engines know the older name everywhere.
        body["max_tokens"] = body.pop("max_completion_tokens")
    for param in ("tools", "functions", "response_format"):
        if body.get(param) is not None:
            _check_schemas(body[param], param)


def _check_inputs(value: Any, param: str, strings_max: int) -> None:
    """A string, strings, token ids, or lists of token ids; not a mixture, and nothing empty."""
    if isinstance(value, str):
        if param == "input" and not value:
            raise BadRequest("'input' must not be empty.", param=param)
        return
    kinds = {type(item) for item in value}
    if len(kinds) != 1:
        raise BadRequest(f"'{param}' mixes strings, token ids and lists.", param=param)
    if kinds == {int}:
        if min(value) < 0:
            raise BadRequest(f"A token id in '{param}' is negative.", param=param)
        return
    if len(value) > strings_max:
        raise BadRequest(f"'{param}' has more than {strings_max} entries.", param=param)
    if param == "input" and not all(value):
        raise BadRequest("An entry of 'input' is empty.", param=param)


def _check_schemas(value: Any, param: str) -> None:
    """JSON schemas stay small and shallow, and refer to nothing outside: no engine is asked to fetch."""
    if len(msgspec.json.encode(value)) > SCHEMA_BYTES_MAX * (1 if param == "response_format" else 16):
        raise BadRequest(f"The schemas in '{param}' are too large.", param=param)
    level: list[Any] = [value]
    for _ in range(SCHEMA_DEPTH_MAX):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                reference = item.get("$ref")
                if isinstance(reference, str) and not reference.startswith("#"):
                    raise BadRequest(f"A '$ref' in '{param}' points outside of its schema.", param=param)
                below += [v for v in item.values() if isinstance(v, dict | list)]
            else:
                below += [v for v in item if isinstance(v, dict | list)]
        if not below:
            return
        level = below
    raise BadRequest(f"A schema in '{param}' is nested deeper than {SCHEMA_DEPTH_MAX}.", param=param)
