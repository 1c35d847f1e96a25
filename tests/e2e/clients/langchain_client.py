"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

from __future__ import annotations

from typing import Any

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
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


def chat(model: str = CHAT, key: str = KEY, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=URL, api_key=key, **{"temperature": 0, "max_retries": 0, **more})


versions("langchain-openai", "langchain-core", "openai")

answer = chat().invoke(QUESTION)
say("chat", content=answer.content, tokens=answer.usage_metadata["output_tokens"])

content, tokens, pieces = "", 0, 0
for chunk in chat(stream_usage=True).stream(QUESTION):
    content += chunk.content
    pieces += bool(chunk.content)
    tokens += (chunk.usage_metadata or {}).get("output_tokens", 0)
say("stream", content=content, tokens=tokens, pieces=pieces)

caller = chat(TOOLS, max_tokens=400, logit_bias=BIAS).bind_tools([WEATHER], tool_choice="required")
[call] = caller.invoke("What is the weather in Rome?").tool_calls
say("tools", name=call["name"], arguments=call["args"])

whole: Any = None
for chunk in caller.stream("What is the weather in Rome?"):
    whole = chunk if whole is None else whole + chunk
[call] = whole.tool_calls
say("tool_stream", name=call["name"], arguments=call["args"])

# Otherwise it would count tokens with a tokenizer of OpenAI's, which it downloads, and send their numbers.
embedder = OpenAIEmbeddings(model=EMBEDDER, base_url=URL, api_key=KEY, check_embedding_ctx_length=False)
say("embeddings", lengths=[len(one) for one in embedder.embed_documents(TEXTS)])

say(
    "errors",
    bad_request=raised(lambda: chat(temperature=9).invoke(QUESTION)),
    unauthorised=raised(lambda: chat(key="gsw_wrong").invoke(QUESTION)),
    not_found=raised(lambda: chat("no-such-model").invoke(QUESTION)),
)

pieces = 0
stream = chat(ENDLESS, max_tokens=4000, extra_body={"ignore_eos": True}).stream(QUESTION)
for chunk in stream:
    pieces += bool(chunk.content)
    if pieces == 5:
        break
stream.close()
hold_the_abort(pieces)
