"""The official OpenAI clients, Python and Node.js, against a real gateway with real engines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from gateway_process import GatewayProcess, gateway_process
from node_process import JS, node

pytestmark = pytest.mark.e2e
QUESTION = [{"role": "user", "content": "What is Groundswell?"}]
EMBEDDER = "all-minilm-l6-v2"
SETTINGS = """
[[nodes]]
id = "a"
engines = [{kind = "builtin"}, {kind = "embeddings"}]
[[nodes]]
id = "b"
engines = [{kind = "builtin"}, {kind = "emulated", model = "emulated"}]
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for all tests here: a start costs seconds."""
    with gateway_process(tmp_path_factory.mktemp("clients"), SETTINGS) as running:
        running.wait_for_model("builtin", 2)
        running.wait_for_model("emulated")
        running.wait_for_model(EMBEDDER)
        yield running


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    """The client as its documentation shows it: only base_url and api_key are ours."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as one:
        yield one


def test_a_completion_and_its_stream_say_the_same(client: openai.OpenAI) -> None:
    """Greedy decoding has one answer, whichever way it travels."""
    whole = client.chat.completions.create(model="builtin", messages=QUESTION, temperature=0)
    stream = client.chat.completions.create(
        model="builtin", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert len(text) > 20
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.model for chunk in chunks} == {"builtin"}


def test_completions_embeddings_and_models_are_served(client: openai.OpenAI) -> None:
    """The other endpoints that a stock client reaches."""
    completion = client.completions.create(model="builtin", prompt="The capital of France is", max_tokens=8)
    assert completion.choices[0].text
    vectors = client.embeddings.create(model=EMBEDDER, input=["a quick fox", "a fast fox", "tax law"])
    same, other = (_dot(vectors.data[0].embedding, vectors.data[i].embedding) for i in (1, 2))
    assert same > other
    assert {"builtin", EMBEDDER, "emulated"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("builtin").id == "builtin"


def test_tools_are_passed_through(client: openai.OpenAI) -> None:
    """A request with tools is served, not refused, by a model that may not use them."""
    tool: Any = {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
    }
    answer = client.chat.completions.create(
        model="builtin", messages=QUESTION, tools=[tool], tool_choice="none", temperature=0
    )
    assert answer.choices[0].message.content


def test_each_error_has_its_exception_class(gateway: GatewayProcess, client: openai.OpenAI) -> None:
    """Clients tell errors apart by class, which follows from the status."""
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="builtin", messages=QUESTION, temperature=9)
    assert bad.value.param == "temperature"
    assert bad.value.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="what each does"):
        client.chat.completions.create(model=EMBEDDER, messages=QUESTION)
    with pytest.raises(openai.NotFoundError) as unserved:
        client.images.generate(prompt="a gate")
    assert "/v1/" in unserved.value.message
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="gsw_wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.chat.completions.create(model="builtin", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(
            model="builtin", messages=QUESTION, extra_body={"api_base": "http://x"}
        )
    assert unknown.value.param == "api_base"


def test_an_abort_frees_the_engine_within_a_second(gateway: GatewayProcess, client: openai.OpenAI) -> None:
    """Whoever stops reading must not keep an engine busy."""
    stream = client.chat.completions.create(
        model="emulated", messages=QUESTION, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
    )
    for _ in zip(range(5), stream, strict=False):
        pass
    assert gateway.streams_running() == 1
    stream.close()
    gateway.wait_until_idle(1.0)


@pytest.mark.parametrize("command", ["chat", "stream"])
def test_the_node_client_chats(gateway: GatewayProcess, command: str) -> None:
    """The same, by the other official client."""
    answer = _node(gateway, command)
    assert len(answer["content"]) > 20
    assert answer["usage"]["completion_tokens"] > 5
    if command == "stream":
        assert answer["ids"] == 1
        assert answer["finishes"] == ["stop"]


def test_the_node_client_reaches_the_rest(gateway: GatewayProcess) -> None:
    """Embeddings (base64 on the wire by default), models and tools."""
    assert _node(gateway, "embeddings", EMBEDDER) == {"count": 2, "length": 384}
    assert "builtin" in _node(gateway, "models")["names"]
    assert _node(gateway, "tools")["content"]


def test_the_node_client_maps_errors(gateway: GatewayProcess) -> None:
    """Its exception classes."""
    assert _node(gateway, "errors") == {
        "badRequest": "BadRequestError",
        "unauthorized": "AuthenticationError",
        "notFound": "NotFoundError",
        "unserved": "NotFoundError",
    }


def test_the_node_clients_abort_frees_the_engine(gateway: GatewayProcess) -> None:
    """An AbortController closes the connection; the engine must notice while the program lives on."""
    command = [node(), "client.mjs", "abort", f"{gateway.url}/v1", gateway.key, "emulated"]
    with subprocess.Popen(command, cwd=JS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        assert json.loads(one.stdout.readline())["chunks"] >= 5
        gateway.wait_until_idle(1.0)
        assert one.poll() is None
        one.communicate()


def test_every_call_of_the_node_client_comes_raw_parsed_and_both(gateway: GatewayProcess) -> None:
    """What its own tests ask of each method. They are not in the npm package, so they are played here."""
    seen = _node(gateway, "each", EMBEDDER)
    assert set(seen) == {"chat", "completions", "embeddings", "models.list", "models.retrieve"}
    for method, one in seen.items():
        assert one == {"status": 200, "same": True, "request_id": True}, method


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _node(gateway: GatewayProcess, command: str, *arguments: str) -> Any:
    """One command of js/client.mjs with the Node.js release that npm brought."""
    done = subprocess.run(
        [str(node()), "client.mjs", command, f"{gateway.url}/v1", gateway.key, *arguments],
        cwd=JS, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
