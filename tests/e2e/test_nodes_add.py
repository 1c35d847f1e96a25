"""`groundswell nodes add URL` with a real llama.cpp server: probed, shown, used at once, kept, removed."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from command import run
from gateway_process import GatewayProcess, gateway_process
from llama_process import WEATHER, bias_to_call, llama_server, make_weights
from ollama_shape import WORDS, Box, ollama

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

NO_NODES = "nodes = []\n"
QUESTION = [{"role": "user", "content": "What is Groundswell?"}]
KEY = "sk-of-the-box"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def llama(weights: Path) -> Iterator[str]:
    with llama_server(weights) as url:
        yield url


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that has nothing of its own: what it can do was added."""
    with gateway_process(tmp_path_factory.mktemp("nodes"), NO_NODES) as running:
        yield running


@pytest.fixture(scope="module")
def added(gateway: GatewayProcess, llama: str) -> Iterator[GatewayProcess]:
    """The gateway, with the server added under a name of ours."""
    node_id = good(gateway, "nodes", "add", llama, "--alias", "llama=tiny").split()[1]
    yield gateway
    good(gateway, "nodes", "rm", node_id)


@pytest.fixture
def client(added: GatewayProcess) -> Iterator[openai.OpenAI]:
    """The client as its documentation shows it: only base_url and api_key are ours."""
    with openai.OpenAI(base_url=f"{added.url}/v1", api_key=added.key, max_retries=0) as one:
        yield one


def good(gateway: GatewayProcess, *arguments: str) -> str:
    """The output of a command that must succeed."""
    done = run(gateway.folder / "data", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bad(gateway: GatewayProcess, *arguments: str) -> str:
    """What a command says that must fail: one sentence on standard error."""
    done = run(gateway.folder / "data", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def ask(gateway: GatewayProcess, model: str) -> httpx.Response:
    with gateway.client() as http:
        body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 60}
        return http.post("/v1/chat/completions", json=body)


def test_a_server_is_added_shown_used_and_removed(gateway: GatewayProcess, llama: str) -> None:
    """The whole life of an added engine; the very next request lands there."""
    said = good(gateway, "nodes", "add", llama, "--alias", "llama=tiny")
    first, server, *table = said.splitlines()
    assert first == "added 127-0-0-1-" + llama.rpartition(":")[2]
    assert server == "llamacpp server, 4 requests at once"
    headings, row = (line.split("\t") for line in table)
    shown = dict(zip(headings, row, strict=True))
    assert shown["model"] == "llama"
    assert shown["engine's name"] == "tiny"
    assert "chat" in shown["does"]
    assert int(shown["context"]) >= 1024
    assert shown["a broken stream"] == "continues", "the probe found that it goes on with a prefix"

    answer = ask(gateway, "llama")
    assert answer.status_code == 200, answer.text
    assert "Groundswell" in answer.json()["choices"][0]["message"]["content"]
    assert answer.json()["model"] == "llama"
    assert "llama" in good(gateway, "nodes", "list")

    node_id = first.split()[1]
    assert good(gateway, "nodes", "rm", node_id) == f"removed {node_id}\n"
    assert node_id not in good(gateway, "nodes", "list")
    with gateway.client() as http:
        assert "llama" not in {one["id"] for one in http.get("/v1/models").json()["data"]}


def test_what_was_added_stays_over_a_restart(tmp_path: Path, llama: str) -> None:
    """Also when the gateway had no time to end well."""
    with gateway_process(tmp_path, NO_NODES) as first:
        good(first, "nodes", "add", f"{llama}/v1/", "--alias", "llama=tiny")
        first.kill()
    with gateway_process(tmp_path, NO_NODES) as second:
        second.wait_for_model("llama")
        assert ask(second, "llama").status_code == 200


def test_a_test_looks_and_adds_nothing(gateway: GatewayProcess, llama: str) -> None:
    """To see what a box can do before anybody's request goes there."""
    assert re.search(
        r"^tiny\ttiny\t.*chat.*\tcontinues$", good(gateway, "nodes", "test", llama), re.MULTILINE
    )
    assert llama.rpartition(":")[2] not in good(gateway, "nodes", "list")


def test_tools_are_called_through_the_gateway(client: openai.OpenAI) -> None:
    """A function call that the engine makes arrives as one, in the types of the stock client."""
    answer = client.chat.completions.create(**weather_request())
    [call] = answer.choices[0].message.tool_calls or []
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.id
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


def test_tool_calls_are_streamed_piece_by_piece(client: openai.OpenAI) -> None:
    """The client puts the call together from the pieces, as it does with OpenAI's own."""
    with client.chat.completions.stream(**weather_request()) as stream:
        events = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        answer = stream.get_final_completion()
    [call] = answer.choices[0].message.tool_calls or []
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    assert "".join(event.arguments_delta for event in events) == call.function.arguments
    assert len(events) > 3, "in pieces, not held back and sent at once"


def test_a_tool_call_that_the_model_got_wrong_is_told_in_the_engine_s_words(client: openai.OpenAI) -> None:
    """Small models do it all the time; without the reason, whoever calls looks for the fault elsewhere."""
    with pytest.raises(openai.InternalServerError, match="does not match the expected") as failed:
        client.with_options(max_retries=0).chat.completions.create(
            **weather_request() | {"tool_choice": "auto", "max_tokens": 60}
        )
    assert failed.value.status_code == 502
    assert failed.value.code == "upstream_error"


def test_what_a_tool_answered_goes_back_in(client: openai.OpenAI) -> None:
    """The second half of a round: the call and its result are part of the next request."""
    call = client.chat.completions.create(**weather_request()).choices[0].message
    assert call.tool_calls
    result: Any = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "sunny"}
    messages: Any = [*weather_request()["messages"], call, result]
    answer = client.chat.completions.create(model="llama", messages=messages, max_tokens=20, temperature=0)
    assert answer.choices[0].message.content


def weather_request() -> dict[str, Any]:
    return {
        "model": "llama",
        "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "logit_bias": bias_to_call(),
        "max_tokens": 400,
        "temperature": 0,
    }


def test_a_server_with_a_key_is_added_with_it(gateway: GatewayProcess, weights: Path) -> None:
    """Without it, or with another, the sentence says that it is the key; the right one is told to nobody."""
    with llama_server(weights, "--api-key", KEY) as url:
        assert "give it with --key" in bad(gateway, "nodes", "add", url)
        assert "does not accept its key" in bad(gateway, "nodes", "add", url, "--key", "sk-wrong")
        said = good(gateway, "nodes", "add", url, "--key", KEY, "--alias", "locked=tiny")
        assert ask(gateway, "locked").status_code == 200
        listed = good(gateway, "nodes", "list")
        good(gateway, "nodes", "rm", said.split()[1])
    assert KEY not in said + listed
    data = gateway.folder / "data"
    assert KEY not in (gateway.folder / "log.jsonl").read_text()
    assert KEY.encode() not in (data / "groundswell.db").read_bytes()


def test_an_ollama_box_is_added_by_its_address(gateway: GatewayProcess) -> None:
    """The first thing that many will try: the address alone, then the names that Ollama itself takes."""
    with ollama() as box:
        said = good(gateway, "nodes", "add", box.url)
        assert "ollama server" in said
        assert re.search(r"^llama3.2\tllama3.2:latest\tchat, completion\t131072\t", said, re.MULTILINE)
        assert re.search(r"^all-minilm\tall-minilm:latest\tembedding\t512\t", said, re.MULTILINE)
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
            messages: Any = [{"role": "user", "content": "Why is the sky blue?"}]
            for name in ("llama3.2", "llama3.2:latest"):
                answer = client.chat.completions.create(model=name, messages=messages, top_p=0.5)
                assert answer.choices[0].message.content == "".join(WORDS)
                assert answer.model == name
            with client.chat.completions.create(model=name, messages=messages, stream=True) as stream:
                chunks = list(stream)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(WORDS)
            assert all(chunk.usage is None for chunk in chunks), (
                "it was asked for to be settled, not to be shown"
            )
            assert chunks[-1].choices[0].finish_reason == "stop"
            assert client.completions.create(model=name, prompt="Why?").choices[0].text == "".join(WORDS)
            vectors = client.embeddings.create(model="all-minilm", input=["a", "b"]).data
            assert [round(x, 3) for x in vectors[1].embedding] == [0.6, 0.8]
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="mistral", messages=messages)
        asked = [body for path, body in box.asked if path == "/v1/chat/completions" and "top_p" in body]
        assert {body["model"] for body in asked} == {"llama3.2:latest"}
        wait_for_context(gateway, "llama3.2", 4096)
        good(gateway, "nodes", "rm", said.split()[1])


def test_an_ollama_box_may_be_empty_at_first(gateway: GatewayProcess) -> None:
    """Somebody adds it before the first model is pulled; that model is there as soon as it is."""
    with ollama(Box(models=[])) as box:
        said = good(gateway, "nodes", "add", box.url)
        assert "it has no models yet" in said
        box.models.append("llama3.2:latest")
        gateway.wait_for_model("llama3.2")
        good(gateway, "nodes", "rm", said.split()[1])


def wait_for_context(gateway: GatewayProcess, model: str, tokens: int) -> None:
    """What a loaded model was given replaces what it could take: Ollama drops the rest in silence."""
    deadline = time.monotonic() + 20
    with gateway.client() as http:
        while http.get(f"/v1/models/{model}").json().get("max_model_len") != tokens:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_cannot_be_added_is_said(gateway: GatewayProcess, llama: str) -> None:
    """Nothing is added by half: a box that is off, an address that is none, a model that it has not."""
    before = good(gateway, "nodes", "list")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{one.getsockname()[1]}"
        for command in ("add", "test"):
            said = bad(gateway, "nodes", command, closed)
            assert f"No engine answers at {closed.removeprefix('http://')} (Connection refused)" in said
    assert "http://box:11434" in bad(gateway, "nodes", "add", "box:11434")
    for key in ((), ("--key", gateway.key)):
        assert "this gateway itself" in bad(gateway, "nodes", "add", f"{gateway.url}/v1", *key)
    assert "has no model 'huge'" in bad(gateway, "nodes", "add", llama, "--alias", "llama=huge")
    assert "no OpenAI-compatible server" in bad(gateway, "nodes", "add", f"{llama}/nowhere")
    assert good(gateway, "nodes", "list") == before
