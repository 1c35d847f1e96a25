"""A real llama.cpp server in a process of its own, with the built-in model's weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "tests" / "llama"
LLAMA_SERVER = Path(os.environ.get("LLAMA_SERVER", ROOT / ".llama" / "llama-server"))
MODEL = ROOT / "src" / "groundswell" / "engines" / "builtin_model"
STARTS_S = 60.0
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def make_weights(folder: Path) -> Path:
    """The built-in model as llama.cpp reads it."""
    if not LLAMA_SERVER.exists():
        pytest.skip(f"no llama.cpp server at {LLAMA_SERVER}: run tests/llama/build.sh, or set LLAMA_SERVER")
    path = folder / "builtin.gguf"
    subprocess.run([sys.executable, LLAMA / "make_gguf.py", path], check=True)
    return path


def bias_to_call() -> dict[str, int]:
    """llama.cpp holds the model to a grammar when a tool is required, but lets it chatter first. This model
    has never seen a tool, so the bias makes it begin with the call."""
    vocabulary = json.loads((MODEL / "tokenizer.json").read_text())["model"]["vocab"]
    return {str(vocabulary['{"']): 100}


@contextmanager
def llama_server(weights: Path, *options: str) -> Iterator[str]:
    """A server on a free port until the block ends; its URL."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    command = [
        LLAMA_SERVER, "-m", weights, "--host", "127.0.0.1", "--port", port, "--alias", "tiny", "-c", "4096",
        "-np", "4", "--threads", "1", "--chat-template-file", LLAMA / "tools.jinja", *options,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + STARTS_S
        while not _is_up(url):
            assert process.poll() is None, "llama-server ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
