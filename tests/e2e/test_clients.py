"""Programs that speak to OpenAI, unmodified, against a real gateway with real engines.

Each plays the same behaviours in a process of its own (tests/e2e/clients, js/ai.mjs) and says what it saw.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gateway_process import GatewayProcess, gateway_process
from llama_process import WEATHER, bias_to_call, llama_server, make_weights
from node_process import JS, node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "clients"
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
PAGE = ROOT / "docs" / "reference" / "clients.md"
EMBEDDER = "all-minilm-l6-v2"
FAMOUS = "gpt-4o-mini"
SETTINGS = """
[[nodes]]
id = "a"
engines = [{{kind = "builtin"}}, {{kind = "embeddings"}}, {{kind = "emulated", speed = 0.2}}]
[[engines]]
id = "llama"
url = "{url}"
aliases = {{llama = "tiny", "{famous}" = "tiny"}}
"""


OPENAI_ERRORS = ("BadRequestError", "AuthenticationError", "NotFoundError")
LANGCHAIN_ERRORS = ("OpenAIInvalidRequestError", "OpenAIAuthenticationError", "OpenAIModelNotFoundError")
AI_ERRORS = ("AI_APICallError 400", "AI_APICallError 401", "AI_APICallError 404")
LLM_ERRORS = ("Error code: 400", "Error code: 401", "Error code: 404")


@dataclass(frozen=True)
class Client:
    """``errors`` are what it makes of a bad request, a wrong key and an unknown model."""

    program: tuple[str | Path, ...]
    errors: tuple[str, str, str]
    calls_tools: bool = True
    embeds: bool = True


CLIENTS = {
    "ai with openai-compatible": Client((JS / "ai.mjs", "compatible"), AI_ERRORS),
    "ai with openai": Client((JS / "ai.mjs", "official"), AI_ERRORS),
    "langchain": Client((SCRIPTS / "langchain_client.py",), LANGCHAIN_ERRORS),
    "litellm": Client((SCRIPTS / "litellm_client.py",), OPENAI_ERRORS),
    "llama-index": Client((SCRIPTS / "llama_index_client.py",), OPENAI_ERRORS),
    "llm": Client((SCRIPTS / "llm_client.py",), LLM_ERRORS, calls_tools=False, embeds=False),
}
EACH = pytest.mark.parametrize("name", CLIENTS)
Seen = dict[str, dict[str, Any]]


class Theatre:
    """Plays a client once and keeps what it said, for all tests about it."""

    def __init__(self, gateway: GatewayProcess, home: Path) -> None:
        self.gateway = gateway
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "LLM_"))}
        self.env = kept | {
            "LLM_USER_PATH": str(home / "llm"),
            "LITELLM_LOCAL_MODEL_COST_MAP": "true",  # Otherwise it fetches a list of prices when it starts.
        }
        models = {"chat": "builtin", "embedder": EMBEDDER, "tools": "llama", "endless": "emulated"}
        self._asked = json.dumps(
            {"url": gateway.url, "key": gateway.key, "famous": FAMOUS, "weather": WEATHER}
            | models | {"bias": bias_to_call()}
        )  # fmt: skip
        self._seen: dict[str, Seen] = {}

    def seen(self, name: str) -> Seen:
        if name not in self._seen:
            self._seen[name] = {}  # Should it fail, it is not played again for the next test.
            self._seen[name] = self._play(CLIENTS[name])
        return self._seen[name]

    def _play(self, client: Client) -> Seen:
        first, *rest = client.program
        runner = node() if Path(first).suffix == ".mjs" else PYTHON
        with subprocess.Popen(
            [runner, first, *rest, self._asked], cwd=Path(first).parent, env=self.env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            seen = dict(self._lines(process))
            assert "abort" in seen, process.communicate()[1]
            self.gateway.wait_until_idle(2.0)
            seen["abort"]["lives"] = process.poll() is None
            process.communicate()
            assert process.returncode == 0
        return seen

    @staticmethod
    def _lines(process: subprocess.Popen[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        assert process.stdout is not None
        for line in iter(process.stdout.readline, ""):
            one = json.loads(line)
            behaviour = one.pop("behaviour")
            yield behaviour, one
            if behaviour == "abort":
                return


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """One gateway for all: a local chat model, embeddings, an emulated engine, and llama.cpp by its URL."""
    assert PYTHON.exists(), "no .venv-clients: run scripts/setup.sh test"
    folder = tmp_path_factory.mktemp("clients")
    with llama_server(make_weights(folder)) as url:
        settings = SETTINGS.format(url=url, famous=FAMOUS)
        with gateway_process(folder / "gateway", settings) as gateway:
            for model in ("builtin", EMBEDDER, "emulated", "llama", FAMOUS):
                gateway.wait_for_model(model)
            yield Theatre(gateway, folder)


@EACH
def test_it_chats_and_its_stream_says_the_same(theatre: Theatre, name: str) -> None:
    """Greedy decoding has one answer; the stream came in pieces, and both were counted."""
    seen = theatre.seen(name)
    whole, stream = seen["chat"], seen["stream"]
    assert "Groundswell" in whole["content"]
    assert stream["content"] == whole["content"]
    if name == "llm":
        assert seen["tokens"]["tokens"] > 20
        return
    assert stream["tokens"] == whole["tokens"] > 20
    assert stream["pieces"] > 20


@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.calls_tools])
def test_it_calls_a_tool_whole_and_streamed(theatre: Theatre, name: str) -> None:
    """A call that llama.cpp makes arrives in the client's own types, put together from its pieces too."""
    seen = theatre.seen(name)
    for call in (seen["tools"], seen["tool_stream"]):
        assert call["name"] == "weather"
        assert call["arguments"]["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.embeds])
def test_it_embeds(theatre: Theatre, name: str) -> None:
    """Several texts at once, in whatever encoding it asks for."""
    assert theatre.seen(name)["embeddings"]["lengths"] == [384, 384]


@EACH
def test_it_tells_errors_apart(theatre: Theatre, name: str) -> None:
    """What a program catches, or a person reads, follows from the status and the shape of the body."""
    errors = theatre.seen(name)["errors"]
    assert (errors["bad_request"], errors["unauthorised"], errors["not_found"]) == CLIENTS[name].errors


@EACH
def test_its_abort_frees_the_engine(theatre: Theatre, name: str) -> None:
    """A stream that nobody reads any more must not keep an engine busy while the program lives on."""
    abort = theatre.seen(name)["abort"]
    assert abort["pieces"] >= 5
    assert abort["lives"]


def test_a_class_for_openais_own_models_takes_an_alias(theatre: Theatre) -> None:
    """LlamaIndex's OpenAI class knows names from a list of its own; an alias gives ours such a name."""
    assert "Groundswell" in theatre.seen("llama-index")["famous"]["content"]


def test_the_python_in_the_page_runs(theatre: Theatre) -> None:
    """What somebody pastes works as it stands, with another address and key."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    code = "".join(blocks).replace("http://127.0.0.1:8787", theatre.gateway.url)
    done = subprocess.run(
        [PYTHON, "-c", code.replace("gsw_...", theatre.gateway.key)], env=theatre.env,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if "gateway" in line]) == len(blocks) == 3


@EACH
def test_the_page_says_which_versions_these_were(theatre: Theatre, name: str) -> None:
    """Whoever asks whether a client works finds the release that did."""
    page = PAGE.read_text(encoding="utf-8")
    for package, version in theatre.seen(name)["versions"]["packages"].items():
        if package != "openai":  # Other clients bring it; the page names the one that is tested by itself.
            assert re.search(rf"`{re.escape(package)}` {re.escape(version)}\b", page), f"{package} {version}"
