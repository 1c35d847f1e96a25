"""What strangers do to a real gateway beside what `test_fuzz.py` sends: they vanish, and they add engines."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from gateway_process import GatewayProcess, gateway_process, one_emulated

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_process(tmp_path_factory.mktemp("hostile"), one_emulated(50)) as running:
        running.wait_for_model("m")
        yield running


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
        gateway_process(Path(gateway.folder), one_emulated(50)),
    ):
        pass
    with gateway.client() as client:
        assert client.get("/readyz").status_code == 200
