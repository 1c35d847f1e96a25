"""What a stranger sends: mutated requests to every endpoint of a real gateway, and clients that vanish."""

from __future__ import annotations

import copy
import json
import random
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from gateway_process import GatewayProcess, gateway_process

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SETTINGS = """
[queue]
wait_s = 3
[[nodes]]
id = "n0"
[[nodes.engines]]
kind = "emulated"
model = "m"
slots = 4
speed = 50
"""
REQUESTS = 400
PROMPT = "the-prompt-that-no-log-may-hold"
CHAT = {
    "model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
    "max_tokens": 3, "temperature": 0.5, "n": 1, "stream": False, "stop": ["x"], "seed": 1,
    "logit_bias": {"1": 2},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "text"}, "metadata": {"a": "b"},
}  # fmt: skip
SOUND: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/completions", {"model": "m", "prompt": PROMPT, "max_tokens": 3, "best_of": 1, "logprobs": 1}),
    ("/v1/embeddings", {"model": "m", "input": [PROMPT, "b"], "encoding_format": "float", "dimensions": 3}),
    (
        "/v1/transcodes",
        {"input": {"blob": "blob_" + "0" * 32}, "ladder": ["360p", {"height": 180, "crf": 23}]},
    ),
    ("/v1/nodes", {"url": "http://127.0.0.1:9", "key": "k", "aliases": {"a": "b"}, "slots": 2}),
]
JUNK: list[Any] = [
    None, True, 0, -1, 1.5, 1e300, 2**53, 2**64, "", "\x00", "😀", "é" * 50, "x" * 5000, [], {}, [[]], [None],
    {"a": None}, [1, 2], "NaN", "../../etc/passwd", "http://\r\nbox", "auto", [{}] * 3, {"type": "function"},
]  # fmt: skip
PATHS = [
    "/v1/models/%00", "/v1/transcodes?limit=-1", "/v1/transcodes?limit=%F0%9F%98%80",
    "/v1/transcodes?after=%00",
    "/v1/transcodes/%00", "/v1/transcodes/a/files/..%2f..%2fgroundswell.db", "/v1/transcodes/%ff/hls/%00/%00",
    "/v1/nodes/%00", "/v1/responses", "//", "/%ff", "/v1/blobs", "/metrics", "/v1/chat/completions",
]  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_process(tmp_path_factory.mktemp("hostile"), SETTINGS) as running:
        running.wait_for_model("m")
        yield running


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something could be changed."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield (*path, name)
        yield from places(one, (*path, name))


def mutated(rng: random.Random, sound: dict[str, Any]) -> bytes:
    """A request that is wrong in one to three places: a value, a field, or a byte of its JSON."""
    value = copy.deepcopy(sound)
    for _ in range(rng.choice((1, 1, 2, 3))):
        *path, last = rng.choice(list(places(value)) or [("zzz",)])
        inner: Any = value
        for name in path:
            inner = inner[name]
        if rng.random() < 0.15:
            del inner[last]
        else:
            inner[last] = copy.deepcopy(rng.choice(JUNK))
    body = bytearray(json.dumps(value).encode())
    if rng.random() < 0.3:
        at = rng.randrange(len(body))
        body[at : at + rng.randrange(3)] = rng.choice(
            (b"", b"\xff", b"\x00", b"[", b'{"a":', b"1e999", b'"\\ud800"')
        )
    return bytes(body)


def wrong_with(response: httpx.Response) -> str:
    """What no answer may be, in words; empty for an honest one."""
    if "x-request-id" not in response.headers:
        return "no request id"
    if response.status_code >= 400:
        error = response.json().get("error", {})
        if set(error) != {"message", "type", "param", "code"} or response.status_code == 500:
            return f"{response.status_code}: {response.text[:200]}"
    elif "event-stream" in response.headers.get("content-type", "") and "data: [DONE]" not in response.text:
        return "a stream without an end"
    return ""


def test_no_mutated_request_gets_more_than_an_honest_error(gateway: GatewayProcess) -> None:
    """No 500, no connection lost, no growth; and nothing of keys or prompts in what is kept of it."""
    rng = random.Random(20261122)
    process = psutil.Process(gateway.process.pid)
    files = process.num_fds()
    seen = b""
    with gateway.client() as client:
        for number in range(REQUESTS):
            if rng.random() < 0.8:
                path, sound = rng.choice(SOUND)
                kind = {"content-type": "application/json"}
                method, body, headers = "POST", mutated(rng, sound), kind
            else:
                path, method = rng.choice(PATHS), rng.choice(("GET", "POST", "PUT", "DELETE", "OPTIONS"))
                body, headers = b"{}", {"authorization": "Bearer x"} if rng.random() < 0.3 else {}
            response = client.request(method, path, content=body, headers=headers)
            assert not wrong_with(response), (number, method, path, body, wrong_with(response))
            seen += response.content if response.status_code >= 400 and gateway.key in response.text else b""
            if response.status_code == 201 and path == "/v1/nodes":
                client.delete(f"/v1/nodes/{response.json()['id']}")
        metrics = client.get("/metrics").content
    assert not seen
    kept = [path.read_bytes() for path in gateway.folder.glob("data/groundswell.db*")]
    kept += [(gateway.folder / "log.jsonl").read_bytes(), metrics]
    assert not any(secret.encode() in text for text in kept for secret in (gateway.key, PROMPT))
    assert process.num_fds() <= files + 5


def test_clients_that_vanish_leave_nothing_behind(gateway: GatewayProcess) -> None:
    """A hundred connections cut in mid-stream, at once and by reset: all slots free, no file left open."""
    process = psutil.Process(gateway.process.pid)
    files = process.num_fds()
    where = urlsplit(gateway.url)
    messages = [{"role": "user", "content": "hi"}]
    long = {"model": "m", "messages": messages, "stream": True, "max_tokens": 5000, "ignore_eos": True}
    body = json.dumps(long).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {gateway.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    sockets = [socket.create_connection((where.hostname, where.port)) for _ in range(100)]
    for one in sockets:
        one.sendall(head.encode() + body)
    ready, _, _ = select.select(sockets, [], [], 10)
    got = ready[0].recv(12)
    for number, one in enumerate(sockets):
        if number % 2:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        one.close()
    assert got == b"HTTP/1.1 200"
    deadline = time.monotonic() + 10
    with gateway.client() as client:
        while time.monotonic() < deadline:
            shown = client.get("/v1/nodes").json()
            busy = sum(
                node["attempts"] + sum(e["running"] for e in node["engines"]) for node in shown["data"]
            )
            if not shown["queued"] and not busy and process.num_fds() <= files + 8:
                break
            time.sleep(0.1)
        assert (shown["queued"], busy) == (0, 0)
        assert process.num_fds() <= files + 8
        whole = {"model": "m", "messages": messages, "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=whole).status_code == 200
    log = (gateway.folder / "log.jsonl").read_text()
    assert not [line for line in log.splitlines() if '"level": "error"' in line]


@pytest.mark.parametrize(
    "wrong", [{"key": "😀"}, {"key": "a\r\nb"}, {"url": "http://bücher"}, {"url": "http://a/ä b"}]
)
def test_an_engine_that_no_header_can_address_is_refused(
    gateway: GatewayProcess, wrong: dict[str, str]
) -> None:
    """Such a key or address would fail as a defect of ours, or carry a header of its own."""
    with gateway.client() as client:
        response = client.post("/v1/nodes", json={"url": "http://127.0.0.1:9", **wrong})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(wrong))


def test_a_second_gateway_on_the_same_data_is_refused(gateway: GatewayProcess) -> None:
    """Two that lease the same jobs would do them twice; the first one goes on untouched."""
    with (
        pytest.raises(AssertionError, match="Another gateway"),
        gateway_process(Path(gateway.folder), SETTINGS),
    ):
        pass
    with gateway.client() as client:
        assert client.get("/readyz").status_code == 200
