"""LiteLLM as a client library."""

from __future__ import annotations

import json
from typing import Any

import litellm
from behaviours import (
    BIAS,
    CHAT,
    EMBEDDER,
    ENDLESS,
    KEY,
    QUESTION,
    TEXTS,
    TOOLS,
    URL,
    WEATHER,
    hold_the_abort,
    raised,
    say,
    versions,
)


def chat(content: str = QUESTION, model: str = CHAT, **more: Any) -> Any:
    settings = {"api_base": URL, "api_key": KEY, "temperature": 0, "max_retries": 0, **more}
    messages = [{"role": "user", "content": content}]
    return litellm.completion(model=f"openai/{model}", messages=messages, **settings)


litellm.suppress_debug_info = True  # It prints advice among our lines.
versions("litellm", "openai")

answer = chat()
say("chat", content=answer.choices[0].message.content, tokens=answer.usage.completion_tokens)

content, tokens, pieces = "", 0, 0
for chunk in chat(stream=True, stream_options={"include_usage": True}):
    delta = chunk.choices[0].delta.content if chunk.choices else None
    content += delta or ""
    pieces += bool(delta)
    usage = getattr(chunk, "usage", None)
    tokens = usage.completion_tokens if usage else tokens
say("stream", content=content, tokens=tokens, pieces=pieces)

weather: dict[str, Any] = {
    "tools": [WEATHER], "tool_choice": "required", "max_tokens": 400, "logit_bias": BIAS,
}  # fmt: skip
[call] = chat("What is the weather in Rome?", TOOLS, **weather).choices[0].message.tool_calls
say("tools", name=call.function.name, arguments=json.loads(call.function.arguments))

chunks = list(chat("What is the weather in Rome?", TOOLS, stream=True, **weather))
[call] = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
say("tool_stream", name=call.function.name, arguments=json.loads(call.function.arguments))

vectors = litellm.embedding(model=f"openai/{EMBEDDER}", input=TEXTS, api_base=URL, api_key=KEY)
say("embeddings", lengths=[len(one["embedding"]) for one in vectors.data])

say(
    "errors",
    bad_request=raised(lambda: chat(temperature=9)),
    unauthorised=raised(lambda: chat(api_key="gsw_wrong")),
    not_found=raised(lambda: chat(model="no-such-model")),
)

pieces = 0
stream = chat(model=ENDLESS, stream=True, max_tokens=4000, extra_body={"ignore_eos": True})
for chunk in stream:
    pieces += bool(chunk.choices[0].delta.content)
    if pieces == 5:
        break
stream.completion_stream.close()
hold_the_abort(pieces)
