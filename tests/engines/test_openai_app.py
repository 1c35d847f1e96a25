"""What our engines share between tokens and JSON, with a model that says exactly what it is told to."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from groundswell.engines.openai_app import GenerateRequest, OpenAIApp, Piece, Prompt, TokenLogprob


class Parrot:
    """Yields the given tokens, one piece each; an exception among them is raised."""

    name, fingerprint, profile = "parrot", "parrot-1", "cpu"
    context_tokens, slots = 64, 2

    def __init__(self, *tokens: bytes | Exception) -> None:
        self.tokens = tokens
        self.asked: list[GenerateRequest] = []
        self.closed = False

    def chat_prompt(self, messages: list[dict[str, str]], prefix: str) -> Prompt:
        return self.text_prompt(" ".join(message["content"] for message in messages), prefix)

    def text_prompt(self, text: str, prefix: str) -> Prompt:
        return Prompt(tuple(range(len(text + prefix))), len(prefix))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.asked.append(request)
        try:
            for token in self.tokens[: request.max_tokens]:
                if isinstance(token, Exception):
                    raise token
                yield Piece(
                    token, 1, (TokenLogprob(token, -0.5),) if request.top_logprobs is not None else ()
                )
            yield Piece(b"", 0, finish_reason="length" if request.max_tokens <= len(self.tokens) else "stop")
        finally:
            self.closed = True


async def post(model: Parrot, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    transport = httpx.ASGITransport(OpenAIApp(model))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        return await client.post(path, json={"model": "parrot", "prompt": "ab", "max_tokens": 32, **body})


async def chunks(model: Parrot, **body: Any) -> list[Any]:
    response = await post(model, stream=True, **body)
    lines = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def texts(events: list[Any]) -> list[str]:
    return [event["choices"][0]["text"] for event in events if event != "[DONE]" and event["choices"]]


async def test_a_character_split_over_tokens_is_sent_whole() -> None:
    """Half a character is not text: JSON cannot carry it, and nobody could continue from it."""
    events = await chunks(Parrot(b"a", b"\xf0\x9f", b"\x98\x80", b"b"))
    assert texts(events) == ["a", "😀", "b", ""]


async def test_a_character_that_never_ends_becomes_a_replacement() -> None:
    """The model may stop anywhere; the answer is valid text all the same."""
    answer = (await post(Parrot(b"a", b"\xf0\x9f"))).json()
    assert answer["choices"][0]["text"] == "a\N{REPLACEMENT CHARACTER}"
    assert answer["usage"]["completion_tokens"] == 2


async def test_a_token_with_the_end_of_one_character_and_the_start_of_the_next_waits() -> None:
    """What was sent must end where a token ends, or a continuation would cut tokens elsewhere."""
    events = await chunks(Parrot("é".encode()[:1], "é".encode()[1:] + "ö".encode()[:1], "ö".encode()[1:]))
    assert texts(events) == ["éö", ""]


async def test_what_may_become_a_stop_string_is_held_back_as_whole_tokens() -> None:
    """The beginning of a stop string is not sent; if it was none, each token goes by itself."""
    events = await chunks(Parrot(b"one", b" tw", b"o t", b"hree"), stop=["wo tree"])
    assert texts(events) == ["one", " tw", "o t", "hree", ""]
    events = await chunks(Parrot(b"one", b" tw", b"o t", b"ree", b"!"), stop=["wo tree"])
    assert texts(events) == ["one", " t", ""]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


async def test_a_held_beginning_is_sent_when_the_text_ends() -> None:
    """Nothing of the text may be lost because a stop string was near."""
    answer = (await post(Parrot(b"one", b" tw"), stop=" two")).json()
    assert answer["choices"][0]["text"] == "one tw"


async def test_the_earliest_stop_string_wins() -> None:
    """Whatever their order in the request."""
    answer = (await post(Parrot(b"abcdef"), stop=["ef", "cd"])).json()
    assert answer["choices"][0]["text"] == "ab"


async def test_running_usage_counts_what_was_sent_and_the_last_one_everything() -> None:
    """A gateway plans the rest from what it passed on, and pays for what was made."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await chunks(Parrot(b"a", b"x", b"y", b"z"), stop="xyz", stream_options=options)
    assert [event["usage"]["completion_tokens"] for event in events[:-1]] == [1, 4, 4]
    assert events[-2]["choices"] == []


async def test_log_probabilities_of_a_cut_token_stay_out_when_its_text_does() -> None:
    """Each entry stands for text that the client has."""
    answer = (await post(Parrot(b"a", b"bc", b"d"), stop="c", logprobs=0)).json()
    assert answer["choices"][0]["text"] == "ab"
    assert answer["choices"][0]["logprobs"]["tokens"] == ["a", "bc"]


async def test_a_defect_of_the_model_is_told_without_its_words(capfd: pytest.CaptureFixture[str]) -> None:
    """Before the first token as a status, after it as one event without [DONE]; the trace stays here."""
    response = await post(Parrot(ValueError("secret")), stream=True)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    events = await chunks(Parrot(b"a", ValueError("secret")))
    assert set(events[-1]["error"]) == {"message", "type", "param", "code"}
    assert "secret" not in json.dumps([response.json(), events])
    assert "secret" in capfd.readouterr().err


async def test_the_budget_fits_the_context_and_a_prefix_counts_against_the_default() -> None:
    """A continued stream must end where the undisturbed one would have."""
    model = Parrot(b"x")
    await post(model, prompt="p" * 60)
    await post(model, prompt="p" * 60, max_tokens=None)
    await post(model, prompt="abcdef", continue_from=2, max_tokens=None)
    await post(model, "/v1/chat/completions", messages=[{"role": "user", "content": "abcd"}], max_tokens=None)
    assert [asked.max_tokens for asked in model.asked] == [4, 4, 12, 60]
    assert model.asked[2].prompt.generated == 4
    assert model.closed
