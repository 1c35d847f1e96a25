"""LlamaIndex's OpenAILike, its OpenAI class under a name that it knows, and OpenAIEmbedding."""

from __future__ import annotations

import gc
from typing import Any

from behaviours import (
    BIAS,
    CHAT,
    EMBEDDER,
    ENDLESS,
    FAMOUS,
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
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike


def chat(model: str = CHAT, key: str = KEY, **more: Any) -> OpenAILike:
    settings = {"temperature": 0, "max_retries": 0, "is_chat_model": True, **more}
    return OpenAILike(model=model, api_base=URL, api_key=key, **settings)


def weather(city: str) -> str:
    """The weather in a city."""
    return city


MESSAGES = [ChatMessage(role="user", content=QUESTION)]

versions("llama-index-llms-openai-like", "llama-index-llms-openai", "llama-index-embeddings-openai", "openai")

answer = chat().chat(MESSAGES)
say("chat", content=answer.message.content, tokens=answer.raw.usage.completion_tokens)

content, tokens, pieces = "", 0, 0
usage = {"stream_options": {"include_usage": True}}
for part in chat(additional_kwargs=usage).stream_chat(MESSAGES):
    content += part.delta or ""
    pieces += bool(part.delta)
    tokens = part.raw.usage.completion_tokens if part.raw.usage else tokens
say("stream", content=content, tokens=tokens, pieces=pieces)

# The class for OpenAI itself looks the model up in a list of OpenAI's: an alias gives ours such a name.
famous = OpenAI(model=FAMOUS, api_base=URL, api_key=KEY, temperature=0, max_retries=0, max_tokens=60)
say("famous", content=famous.chat(MESSAGES).message.content)

properties = WEATHER["function"]["parameters"]
tool = FunctionTool.from_defaults(weather)
tool.metadata.get_parameters_dict = lambda: properties  # type: ignore[method-assign]
caller = chat(TOOLS, max_tokens=400, is_function_calling_model=True, additional_kwargs={"logit_bias": BIAS})
message = ChatMessage(role="user", content="What is the weather in Rome?")
called = caller.chat_with_tools([tool], user_msg=message, tool_required=True)
[call] = caller.get_tool_calls_from_response(called)
say("tools", name=call.tool_name, arguments=call.tool_kwargs)

for part in caller.stream_chat_with_tools([tool], user_msg=message, tool_required=True):
    last = part
[call] = caller.get_tool_calls_from_response(last)
say("tool_stream", name=call.tool_name, arguments=call.tool_kwargs)

embedder = OpenAIEmbedding(model_name=EMBEDDER, api_base=URL, api_key=KEY)
say("embeddings", lengths=[len(one) for one in embedder.get_text_embedding_batch(TEXTS)])

say(
    "errors",
    bad_request=raised(lambda: chat(additional_kwargs={"top_p": 9}).chat(MESSAGES)),
    unauthorised=raised(lambda: chat(key="gsw_wrong").chat(MESSAGES)),
    not_found=raised(lambda: chat("no-such-model").chat(MESSAGES)),
)

pieces = 0
endless = {"extra_body": {"ignore_eos": True}}
stream = chat(ENDLESS, max_tokens=4000, additional_kwargs=endless).stream_chat(MESSAGES)
for part in stream:
    pieces += bool(part.delta)
    if pieces == 5:
        break
stream.close()
gc.collect()  # LlamaIndex leaves the connection of a stream that it closes to the garbage collector.
hold_the_abort(pieces)
