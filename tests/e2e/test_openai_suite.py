"""The tests that openai-python ships for its own API, unmodified, pointed at a real gateway.

They come with the source distribution (scripts/setup.sh test) and call each method of each resource, sync and
async, over three HTTP clients, with strict validation of the answers. Normally a mock of the specification
answers; here engines do. Their other tests replace the transport and reach no server. The npm package of
openai-node has no tests; js/client.mjs plays what they ask.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from gateway_process import GatewayProcess, gateway_process

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / ".venv-clients" / "openai-python"
RESOURCES = ("test_models.py", "test_embeddings.py", "test_completions.py", "chat")
# The models that those tests name.
CHAT, COMPLETION, EMBEDDING = "gpt-6-astra", "gpt-3.5-turbo-instruct", "text-embedding-3-small"
SETTINGS = f"""
[[nodes]]
id = "a"
engines = [
    {{kind = "emulated", model = "{CHAT}", speed = 50.0}},
    {{kind = "emulated", model = "{COMPLETION}", speed = 50.0}},
    {{kind = "embeddings"}},
]
"""
# What fails: class and method, what the gateway answers, and why that is right.
REFUSED = {
    r"chat.test_completions.*_create_with_all_params_": (
        "400", "the example has max_tokens 0 and a bias on 'foo', which is no token id; OpenAI refuses both"
    ),
    r"test_completions.*_create_with_all_params_": ("400", "the example has best_of 0, which OpenAI refuses"),
    r"test_embeddings.*_create_with_all_params": ("400", "dimensions 1: this model has 384 and no fewer"),
    r"chat.test_completions.*_(retrieve|update|delete)": ("404", "chats are not stored"),
    r"chat.test_completions.*_list": ("405", "chats are not stored"),
    r"chat.completions.test_messages.*_list": ("404", "chats are not stored"),
    r"test_embeddings.*_create\[(strict|aiohttp)\]": (
        "APIResponseValidationError",
        "the client asks for base64 by itself, and its strict mode does not take base64",
    ),
    r"test_models.*_delete": ("405", "only a fine-tuned model can be deleted, and none is made here"),
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose models have the names that those tests ask for."""
    assert SOURCE.exists(), "no .venv-clients/openai-python: run scripts/setup.sh test"
    with gateway_process(tmp_path_factory.mktemp("suite"), SETTINGS) as running:
        running.wait_for_model("all-minilm-l6-v2")
        body = {"url": running.address("embeddings"), "aliases": {EMBEDDING: "all-minilm-l6-v2"}}
        with running.client() as http:
            assert http.post("/v1/nodes", json=body).status_code == 201
        for model in (CHAT, COMPLETION, EMBEDDING):
            running.wait_for_model(model)
        yield running


def test_it_passes_but_for_what_is_listed(gateway: GatewayProcess, tmp_path: Path) -> None:
    """The client's own idea of a right answer; each failure is known, with the answer that it gets."""
    results = _run(gateway, tmp_path / "results.xml")
    passed = {name for name, error in results.items() if error is None}
    wrong = {}
    for name, error in results.items():
        wanted = next((code for pattern, (code, _) in REFUSED.items() if re.match(pattern, name)), None)
        known = error is None if "_path_params_" in name else error == wanted
        if not known:
            wrong[name] = (error, wanted)
    assert not wrong
    page = (ROOT / "docs" / "reference" / "clients.md").read_text(encoding="utf-8")
    assert f"{len(results)} tests, {len(passed)} pass" in page
    for _, why in REFUSED.values():
        assert why in page


def _run(gateway: GatewayProcess, report: Path) -> dict[str, str | None]:
    """Each test by its dotted name, with the status of the answer that it did not take."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    env |= {
        "TEST_API_BASE_URL": f"{gateway.url}/v1",
        "GROUNDSWELL_API_KEY": gateway.key,
        "PYTHONPATH": str(Path(__file__).parent / "clients"),
    }
    options = [
        "-n",
        "0",
        "-q",
        "--tb=line",
        "-p",
        "no:logging",
        "-p",
        "no:cacheprovider",
        "-p",
        "with_our_key",
    ]
    files = [f"tests/api_resources/{one}" for one in RESOURCES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *files],
        cwd=SOURCE, env=env, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    results: dict[str, str | None] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        name = f"{case.get('classname')}.{case.get('name')}".removeprefix("tests.api_resources.")
        found = re.search(r"(?<=Error code: )\d+|(?<=openai\.)API\w+", _message(bad))
        results[name] = None if bad is None else found[0] if found else _message(bad)
    return results


def _message(bad: ElementTree.Element | None) -> str:
    return "" if bad is None else bad.get("message", "").replace("openai.APIStatusError", "")
