"""What an OpenAI-compatible engine is sent: an allow-list of fields for each flavour, and how it continues.

A field that an engine does not know may be an error there (strict servers), or change what it does in a way
that nobody asked for. So only fields on its list are forwarded; the others were accepted and have no effect.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from groundswell.model.errors import UpstreamError
from groundswell.model.node import Capability, Continuation
from groundswell.model.work import Kind
from groundswell.ports import Payload

# What every server of this interface understands (https://platform.openai.com/docs/api-reference).
_SAMPLING: Final = frozenset(
    {
        "frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "seed", "stop", "stream",
        "temperature", "top_p", "user",
    }
)  # fmt: skip
_STANDARD: Final = {
    Kind.CHAT: _SAMPLING
    | {
        "function_call", "functions", "logprobs", "messages", "parallel_tool_calls", "response_format",
        "tool_choice", "tools", "top_logprobs",
    },
    Kind.COMPLETION: _SAMPLING | {"best_of", "echo", "logprobs", "prompt", "suffix"},
    Kind.EMBEDDING: frozenset({"dimensions", "encoding_format", "input", "user"}),
}  # fmt: skip

# What a flavour knows besides. vLLM: docs/serving/openai_compatible_server.md; SGLang:
# docs/basic_usage/sampling_params.md; llama.cpp: tools/server/README.md; Ollama: docs/openai.md.
_VLLM: Final = frozenset(
    {
        "chat_template_kwargs", "ignore_eos", "include_stop_str_in_output", "length_penalty", "min_p",
        "min_tokens", "reasoning_effort", "repetition_penalty", "skip_special_tokens",
        "spaces_between_special_tokens", "stop_token_ids", "top_k",
    }
)  # fmt: skip
_EXTRA: Final[dict[str, frozenset[str]]] = {
    "groundswell": frozenset({"ignore_eos", "min_tokens", "top_k"}),
    "vllm": _VLLM,
    "sglang": frozenset(
        {
            "chat_template_kwargs", "ignore_eos", "min_p", "min_tokens", "reasoning_effort",
            "repetition_penalty", "skip_special_tokens", "spaces_between_special_tokens", "stop_token_ids",
            "top_k",
        }
    ),
    "llamacpp": frozenset(
        {
            "cache_prompt", "chat_template_kwargs", "ignore_eos", "min_p", "reasoning_effort",
            "repeat_penalty", "top_k", "typical_p",
        }
    ),
    "ollama": frozenset({"reasoning_effort"}),
    "lmstudio": frozenset({"repeat_penalty", "top_k"}),
}  # fmt: skip
_EMBEDDING_EXTRA: Final = {"vllm": frozenset({"truncate_prompt_tokens"})}

PATHS: Final = {
    Kind.CHAT: "/v1/chat/completions",
    Kind.COMPLETION: "/v1/completions",
    Kind.EMBEDDING: "/v1/embeddings",
}


def request_body(flavour: str, capability: Capability, payload: Payload) -> dict[str, Any]:
    """The request as this engine is sent it. Raises ``UpstreamError`` when it cannot be continued there."""
    kind = payload.kind
    allowed = _allowed(flavour, kind)
    body = {name: value for name, value in payload.body.items() if name in allowed and value is not None}
    body["model"] = capability.engine_model
    if kind is Kind.EMBEDDING:
        return body
    if body.get("stream"):
        # Asked for whether the client did or not: it is what is settled.
        body["stream_options"] = {"include_usage": True}
    if payload.emitted is not None and payload.emitted.text:
        if capability.continuation is Continuation.NONE:
            raise UpstreamError("This engine cannot continue a text.", code="stream_interrupted")
        _continue(flavour, body, kind, payload.emitted.text)
    return body


@cache
def _allowed(flavour: str, kind: Kind) -> frozenset[str]:
    extra = _EMBEDDING_EXTRA if kind is Kind.EMBEDDING else _EXTRA
    return _STANDARD[kind] | extra.get(flavour, frozenset())


def _continue(flavour: str, body: dict[str, Any], kind: Kind, text: str) -> None:
    if kind is Kind.CHAT:
        body["messages"] = [*body["messages"], {"role": "assistant", "content": text}]
        # llama.cpp before these fields continues an assistant message that comes last by itself.
        body["continue_final_message"] = True
        body["add_generation_prompt"] = False
        return
    prompt = body["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise UpstreamError("A prompt of token ids cannot be continued.", code="stream_interrupted")
    body["prompt"] = prompt + text
    if flavour == "groundswell":
        body["continue_from"] = len(prompt)
