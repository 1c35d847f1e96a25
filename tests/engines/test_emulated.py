"""The emulated engine as a real process: the OpenAI interface, exact continuation, faults, a clean end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundswell.engines.emulated import tokenize

MODEL = "emulated-8b"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Erzähl mir von Ebbe & Flut."},
]


def start(*options: str) -> tuple[subprocess.Popen[str], str]:
    """A server process on a free port, and its address."""
    command = [
        sys.executable,
        "-m",
        "groundswell.engines.emulated",
        "--model",
        MODEL,
        "--speed",
        "50",
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    words = process.stdout.readline().split()
    assert words[0] == "listening"
    return process, f"http://{words[1]}"


def stop(process: subprocess.Popen[str]) -> int:
    process.terminate()
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(10)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process, address = start()
    yield address
    assert stop(process) == 0


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=20) as client:
        yield client
        client.post("/faults", json={"kind": "none"})


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def events(http: httpx.Client, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of one stream; raises what httpx raises when the connection breaks."""
    with http.stream("POST", path, json={"model": MODEL, "stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text_of(chunks: list[Any]) -> str:
    """The content of a stream of either kind."""
    choices = [choice for chunk in chunks if chunk != "[DONE]" for choice in chunk["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def deltas(chunks: list[Any]) -> list[str]:
    return [text for chunk in chunks if (text := text_of([chunk]))]


def load(http: httpx.Client) -> dict[str, int]:
    return dict(http.get("/load").json())


def wait_until_idle(http: httpx.Client, within_s: float = 1.0) -> None:
    end_s = time.monotonic() + within_s
    while load(http)["running"] + load(http)["waiting"]:
        assert time.monotonic() < end_s, "the engine still works for a client that left"
        time.sleep(0.01)


def test_the_official_client_streams_a_chat(client: openai.OpenAI) -> None:
    """Role first, then content, one finish reason, then the usage: what strict clients count on."""
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=20, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_the_same_answer_comes_streamed_and_whole(client: openai.OpenAI, http: httpx.Client) -> None:
    """Deterministic text is what makes a wrong continuation visible."""
    body = {"messages": MESSAGES, "max_tokens": 60, "temperature": 0}
    whole = client.chat.completions.create(model=MODEL, **body)  # type: ignore[call-overload]
    assert whole.choices[0].message.content == text_of(events(http, "/v1/chat/completions", body))


def test_roles_prompts_and_seeds_change_the_text(http: httpx.Client) -> None:
    """A replay with another prompt, role or seed must not pass for the same stream."""
    base = {"messages": MESSAGES, "max_tokens": 10, "temperature": 1.0, "seed": 1}
    other_role = [{**MESSAGES[0], "role": "user"}, MESSAGES[1]]
    other_text = [MESSAGES[0], {"role": "user", "content": "Erzähl mir von Ebbe & Flut!"}]
    variants = [
        base,
        {**base, "seed": 2},
        {**base, "messages": other_role},
        {**base, "messages": other_text},
        {**base, "temperature": 0},
    ]
    texts = {text_of(events(http, "/v1/chat/completions", body)) for body in variants}
    assert len(texts) == len(variants)


SAMPLING = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.8, "seed": -7},
    "penalties": {"temperature": 0.8, "seed": 7, "frequency_penalty": 1.5, "presence_penalty": 1.0},
    "stops": {"temperature": 0, "stop": ["b z", "t. k", "p ré"]},
    "bias": {"temperature": 0, "logit_bias": {str(tokenize(" bab")[0]): 5}, "frequency_penalty": 0.5},
}


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_stream_continued_from_any_point_is_byte_equal(
    http: httpx.Client, kind: str, sampling: str
) -> None:
    """The promise of exact continuation: whatever was sent, the rest is what would have come."""
    path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
    tokens = 120
    body: dict[str, Any] = {**SAMPLING[sampling], "max_tokens": tokens, "min_tokens": 90}
    prompt = "Once upon a time "
    body |= {"messages": MESSAGES} if kind == "chat" else {"prompt": prompt}
    usage = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    whole = events(http, path, {**body, **usage})
    text = text_of(whole)
    counts = [chunk["usage"]["completion_tokens"] for chunk in whole if text_of([chunk])]
    pieces = deltas(whole)
    assert len(pieces) > 5
    for cut in random.Random(f"{kind}{sampling}").sample(range(1, len(pieces)), min(6, len(pieces) - 1)):
        sent = "".join(pieces[:cut])
        again = {**body, "max_tokens": tokens - counts[cut - 1], "min_tokens": 90 - counts[cut - 1], **usage}
        if again["min_tokens"] < 0:
            again["min_tokens"] = 0
        if kind == "chat":
            again["messages"] = [*MESSAGES, {"role": "assistant", "content": sent}]
            again |= {"continue_final_message": True, "add_generation_prompt": False}
        else:
            again |= {"prompt": prompt + sent, "continue_from": len(prompt)}
        rest = events(http, path, again)
        assert sent + text_of(rest) == text
        first, second = whole[-2]["usage"], rest[-2]["usage"]
        assert second["total_tokens"] == first["total_tokens"]
        assert second["prompt_tokens"] == first["prompt_tokens"] + counts[cut - 1]
        finish = [chunk["choices"][0]["finish_reason"] for chunk in (whole[-3], rest[-3])]
        assert finish[0] == finish[1] is not None


def test_penalties_matter_and_count_what_was_sent_before(http: httpx.Client) -> None:
    """If they did nothing, the test above would prove nothing about them."""
    word = tokenize(" bab")[0]
    body = {"prompt": "x", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "logit_bias": {word: 3}}
    plain = text_of(events(http, "/v1/completions", body))
    penalised = text_of(events(http, "/v1/completions", {**body, "frequency_penalty": 2.0}))
    assert plain != penalised
    assert plain.split()[:1] == penalised.split()[:1]


def test_a_text_pasted_as_prompt_is_not_taken_for_generated(http: httpx.Client) -> None:
    """Only ``continue_from`` makes a prefix count for penalties; a plain prompt never does."""
    first = text_of(events(http, "/v1/completions", {"prompt": "x", "max_tokens": 60, "temperature": 0}))
    body = {"prompt": "x" + first, "max_tokens": 40, "min_tokens": 40, "temperature": 0}
    body |= {"frequency_penalty": 2.0, "logit_bias": {str(tokenize(word)[0]): 3 for word in first.split()}}
    assert text_of(events(http, "/v1/completions", body)) != text_of(
        events(http, "/v1/completions", {**body, "continue_from": 1})
    )


def test_stop_strings_end_the_text_before_them(http: httpx.Client) -> None:
    """Neither the stop string nor any part of it is sent, however it falls across tokens."""
    body = {"prompt": "stop here", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    full = text_of(events(http, "/v1/completions", body))
    stop_text = full[70:76]
    chunks = events(http, "/v1/completions", {**body, "stop": stop_text})
    assert text_of(chunks) == full[: full.index(stop_text)]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_log_probabilities_come_in_the_shape_of_openai(client: openai.OpenAI) -> None:
    """One entry per token, aligned with the text, with as many alternatives as were asked for."""
    chat = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert "".join(entry.token for entry in content) == chat.choices[0].message.content
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in content)
    text = client.completions.create(model=MODEL, prompt="a", max_tokens=5, temperature=0, logprobs=2)
    assert text.choices[0].logprobs is not None
    tokens, offsets = text.choices[0].logprobs.tokens or [], text.choices[0].logprobs.text_offset or []
    assert "".join(tokens) == text.choices[0].text
    assert offsets == [sum(len(token) for token in tokens[:place]) for place in range(len(tokens))]


def test_models_say_what_a_gateway_must_know(http: httpx.Client) -> None:
    """Continuation and slots are announced by the engine, not guessed."""
    entry = http.get("/v1/models").json()["data"][0]
    assert entry["id"] == MODEL
    assert entry["context_length"] == 131_072
    assert entry["groundswell"] == {
        "fingerprint": f"emulated-1:{MODEL}", "continuation": "exact", "slots": 256, "profile": "h100-8b",
    }  # fmt: skip
    assert http.get("/health").status_code == 200


def test_embeddings_depend_on_the_text_alone(client: openai.OpenAI) -> None:
    """A vector of length one for each input, in order, and the same one tomorrow."""
    many = client.embeddings.create(model=MODEL, input=["a", "b", "a"], encoding_format="float")
    first, second, third = (entry.embedding for entry in many.data)
    assert first == third != second
    assert sum(value * value for value in first) == pytest.approx(1.0)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=MODEL, input=[], encoding_format="float")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages"),
        ({"messages": MESSAGES, "temperature": 3}, 400, "temperature"),
        ({"messages": MESSAGES, "max_tokens": 0}, 400, "max_tokens"),
        ({"messages": MESSAGES, "max_tokens": 1.5}, 400, "max_tokens"),
        ({"messages": MESSAGES, "n": 2}, 400, "n"),
        ({"messages": MESSAGES, "stop": [1]}, 400, "stop"),
        ({"messages": MESSAGES, "stream": "yes"}, 400, "stream"),
        ({"messages": MESSAGES, "logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"messages": MESSAGES, "tools": [{"type": "function"}]}, 400, "tools"),
        ({"messages": MESSAGES, "response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"messages": MESSAGES, "continue_final_message": True}, 400, "add_generation_prompt"),
        (
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": False},
            400,
            "messages",
        ),
        ({"messages": [{"role": "user", "content": "long" * 140_000}]}, 400, "messages"),
        ({"messages": MESSAGES, "model": "other"}, 404, "model"),
    ],
)
def test_a_bad_request_is_told_in_four_keys(
    http: httpx.Client, body: dict[str, Any], status: int, param: str
) -> None:
    """Clients map status and code to exceptions, and people need the field's name."""
    response = http.post("/v1/chat/completions", json={"model": MODEL, **body})
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param


def test_what_is_not_json_or_not_here_is_told_in_four_keys(http: httpx.Client) -> None:
    """Also the errors before any field is read."""
    for content in (b"{", b"[]", b"[" * 100_000, b"\xff"):
        response = http.post("/v1/completions", content=content)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    assert http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert http.post("/v1/completions", content=b" " * (17 << 20)).status_code == 413


def test_a_client_that_leaves_frees_the_engine(http: httpx.Client, address: str) -> None:
    """An abandoned stream must not hold a slot, waiting or running, streamed or not."""
    body = {"model": MODEL, "prompt": "x", "max_tokens": 100_000, "ignore_eos": True}
    with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        chunks = response.iter_raw()  # held on to: dropping it would close the connection
        next(chunks)
        assert load(http)["running"] == 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/completions", json=body, timeout=0.2)
    wait_until_idle(http)


def test_an_error_before_the_first_token_is_a_status(client: openai.OpenAI, http: httpx.Client) -> None:
    """So that a gateway can still fail over without the client noticing."""
    http.post("/faults", json={"kind": "error"})
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=MODEL, prompt="x", stream=True)
    assert caught.value.status_code == 502
    client.completions.create(model=MODEL, prompt="x")  # one stream only


def test_an_error_after_it_is_one_event_and_no_done(client: openai.OpenAI, http: httpx.Client) -> None:
    """The official client raises it; [DONE] behind it would hide it from others."""
    http.post("/faults", json={"kind": "error", "after_tokens": 3, "streams": 2})
    chunks = events(http, "/v1/completions", {"prompt": "x", "max_tokens": 9, "ignore_eos": True})
    assert len(deltas(chunks[:-1])) == 3
    assert chunks[-1]["error"]["code"] == "engine_fault"
    with pytest.raises(openai.APIError):
        list(client.completions.create(model=MODEL, prompt="x", max_tokens=9, temperature=0, stream=True))


def test_a_cut_ends_the_connection_in_mid_air(http: httpx.Client) -> None:
    """A broken connection must look like one, not like a short answer."""
    http.post("/faults", json={"kind": "cut", "after_tokens": 2})
    with pytest.raises(httpx.RemoteProtocolError):
        events(http, "/v1/completions", {"prompt": "x", "max_tokens": 9, "ignore_eos": True})
    wait_until_idle(http)


def test_a_hang_goes_silent_and_ends_with_the_client(http: httpx.Client) -> None:
    """The stall that a gateway has to notice by itself."""
    http.post("/faults", json={"kind": "hang", "after_tokens": 2})
    body = {"model": MODEL, "prompt": "x", "max_tokens": 9, "ignore_eos": True, "stream": True}
    with (
        pytest.raises(httpx.ReadTimeout),
        http.stream("POST", "/v1/completions", json=body, timeout=0.3) as one,
    ):
        list(one.iter_raw())
    wait_until_idle(http)


def test_a_slow_stream_is_slow_from_there_on(http: httpx.Client) -> None:
    """Slow, but complete and the same text."""
    body = {"prompt": "x", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    plain = text_of(events(http, "/v1/completions", body))
    http.post("/faults", json={"kind": "slow", "after_tokens": 4, "factor": 300})
    begin_s = time.monotonic()
    assert text_of(events(http, "/v1/completions", body)) == plain
    assert time.monotonic() - begin_s > 0.1
    assert http.post("/faults", json={"kind": "sleepy"}).status_code == 400


def test_a_crash_kills_the_process() -> None:
    """As a GPU driver does: no goodbye."""
    process, address = start()
    with httpx.Client(base_url=address, timeout=10) as http:
        http.post("/faults", json={"kind": "crash", "after_tokens": 1})
        with pytest.raises(httpx.RemoteProtocolError):
            events(http, "/v1/completions", {"prompt": "x", "max_tokens": 9, "ignore_eos": True})
    assert process.wait(10) == -signal.SIGKILL
    stop(process)


def test_more_streams_than_slots_wait_their_turn() -> None:
    """With one slot, the second stream starts when the first is over; the load says so."""
    process, address = start("--slots", "1", "--speed", "2")
    body = {"model": MODEL, "prompt": "x", "max_tokens": 50_000, "ignore_eos": True, "stream": True}
    try:
        with (
            httpx.Client(base_url=address, timeout=10) as http,
            http.stream("POST", "/v1/completions", json=body) as first,
        ):
            chunks = first.iter_raw()  # held on to: dropping it would close the connection
            next(chunks)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}/v1/completions", json=body, timeout=0.3)
            assert load(http)["running"] == 1
    finally:
        assert stop(process) == 0


def test_it_ends_with_the_process_that_started_it() -> None:
    """After kill -9 of a gateway no engine may be left over."""
    code = (
        "import subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'groundswell.engines.emulated', '--model', 'm']\n"
        "child = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    end_s = time.monotonic() + 5
    while alive(child):
        assert time.monotonic() < end_s
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Where nobody collects orphans, a dead one stays as a zombie.
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


@given(st.text(), st.lists(st.sampled_from([" bab", " dif.", " zék", " gö."])))
def test_generated_text_leads_back_to_its_tokens(prompt: str, words: list[str]) -> None:
    """The tokens of prompt and answer together are those of each, wherever the prompt ended."""
    assert tokenize(prompt + "".join(words)) == tokenize(prompt) + tokenize("".join(words))
