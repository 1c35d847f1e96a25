"""What a connection may do to the server: nothing that harms others, and every refusal in one shape."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading
from typing import Any

import pytest
from scripted_works import KEY, Gateway, chunk

from groundswell.gateway import openai
from groundswell.gateway.protocol import Limits
from groundswell.model.work import Work
from groundswell.ports import Exchange

HOST = b"Host: localhost\r\n"
AUTH = b"Authorization: Bearer " + KEY.encode() + b"\r\n"
CHAT = b'{"model":"llama","messages":[{"role":"user","content":"hi"}]}'
STREAM = CHAT[:-1] + b',"stream":true}'


@pytest.fixture
def limits() -> Limits:
    """As shipped, with deadlines that a test can wait for."""
    return Limits(head_s=0.3, idle_s=0.3, body_s=0.3, stalled_s=0.3, linger_s=0.2)


def post(
    body: bytes = CHAT, path: bytes = b"/v1/chat/completions", extra: bytes = b"", auth: bytes = AUTH
) -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%b%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        path, HOST, auth, extra, len(body), body,
    )  # fmt: skip


def get(path: bytes = b"/healthz", extra: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, HOST, extra)


def answers(data: bytes) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """Each response in what came back: status, headers, body (by content length or chunked)."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(b": ") for line in lines[1:])}
        body = b""
        if headers.get(b"transfer-encoding") == b"chunked":
            while True:
                size, _, data = data.partition(b"\r\n")
                part, data = data[: int(size or b"0", 16)], data[int(size or b"0", 16) + 2 :]
                if not part:
                    break
                body += part
        else:
            length = int(headers.get(b"content-length", b"0"))
            body, data = data[:length], data[length:]
        found.append((int(lines[0].split()[1]), headers, body))
    return found


def refused(data: bytes) -> tuple[int, str]:
    """Status and code of the one answer, after checking the shape that every error has."""
    [(status, headers, body)] = answers(data)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert headers[b"content-type"] == b"application/json"
    assert b"x-request-id" in headers
    return status, error["code"]


@pytest.mark.parametrize(
    ("request_bytes", "wanted"),
    [
        (post(extra=b"Transfer-Encoding: chunked\r\n"), (400, "invalid_http")),
        (post(extra=b"Content-Length: 5\r\n"), (400, "invalid_http")),
        (post().replace(b"Content-Length: ", b"Content-Length: +"), (400, "invalid_http")),
        (post().replace(b"Content-Length: 6", b"Content-Length: -6"), (400, "invalid_http")),
        (
            post().replace(b"Content-Length: %d" % len(CHAT), b"Transfer-Encoding: xchunked"),
            (400, "invalid_http"),
        ),
        (
            post(b"11111111111111111\r\n").replace(b"Content-Length: 19", b"Transfer-Encoding: chunked"),
            (400, "invalid_http"),
        ),
        (b"GET /healthz HTTP/1.1\nHost: a\n\n", (400, "invalid_http")),
        (get(extra=b"A: b\r\n c\r\n"), (400, "invalid_http")),
        (b"GET /healthz HTTP/1.1\r\n\r\n", (400, "invalid_host")),
        (get(extra=b"Host: localhost\r\n"), (400, "invalid_http")),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost/#@evil\r\n\r\n", (400, "invalid_host")),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost:99999\r\n\r\n", (400, "invalid_host")),
        (b"GET /healthz HTTP/1.1\r\nHost: rebound.example\r\n\r\n", (400, "invalid_host")),
        (b"GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, "invalid_http")),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, "invalid_http")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, "invalid_http")),
        (post(extra=b"Upgrade: h2c\r\nConnection: Upgrade\r\n"), (400, "upgrade_not_supported")),
        (post(extra=AUTH), (400, "invalid_http")),
        (post(extra=b"Content-Encoding: gzip\r\n"), (415, "unsupported_encoding")),
        (get(b"/" + b"a" * 9000), (414, "url_too_long")),
        (get(extra=b"A: " + b"x" * 33_000 + b"\r\n"), (431, "headers_too_large")),
        (get(extra=b"A: b\r\n" * 101), (431, "headers_too_large")),
        (get(extra=b"A: " + b"x" * 70_000)[:-4], (431, "headers_too_large")),
        (b"\x16\x03\x01\x02\x00\x01\x00", (400, "invalid_http")),
    ],
)
async def test_what_is_not_clean_http_is_refused_and_the_connection_closed(
    gateway: Gateway, request_bytes: bytes, wanted: tuple[int, str]
) -> None:
    """Proxies and servers that read these differently are how requests are smuggled."""
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = await gateway.raw(request_bytes + smuggled)
    assert refused(answer) == wanted
    assert b"connection: close" in answer
    assert gateway.seen[-1].status == wanted[0]
    assert gateway.script.works == []


async def test_a_head_that_never_ends_is_answered_with_408(gateway: Gateway) -> None:
    """A client that sends a byte now and then must not hold a connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nA")
    for _ in range(3):
        await asyncio.sleep(0.1)
        writer.write(b"T")
    assert refused(await asyncio.wait_for(reader.read(), 2)) == (408, "request_timeout")
    writer.close()


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/nodes"])
async def test_a_body_that_stops_is_answered_with_408(gateway: Gateway, path: bytes) -> None:
    """On the hot path and beside it: half a body must not hold its buffer for ever."""
    auth = b"Authorization: Bearer gsw_admin\r\n"
    assert refused(await gateway.raw(post(path=path, auth=auth)[:-5])) == (408, "request_timeout")


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/nodes"])
async def test_an_answer_before_the_body_says_that_the_connection_closes(
    gateway: Gateway, path: bytes
) -> None:
    """A client that is not told sends its next request into the closing connection, and loses it."""
    head, _, body = post(path=path, auth=b"").partition(b"\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head + b"\r\n\r\n")
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.write(body)
    answer += await reader.read()
    assert refused(answer) == (401, "invalid_api_key")
    assert b"connection: close" in answer
    writer.close()


async def test_idle_connections_are_closed(gateway: Gateway) -> None:
    """Sockets that say nothing would otherwise use up the file descriptors."""
    assert await gateway.raw(b"") == b""


async def test_a_body_over_the_limit_is_refused_before_it_is_read(gateway: Gateway) -> None:
    """By its declared length at once; without one at the byte that is too many."""
    head = post()[: -len(CHAT)].replace(b"Content-Length: %d" % len(CHAT), b"Content-Length: 70000")
    assert refused(await gateway.raw(head)) == (413, "request_too_large")
    chunked = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    part = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    assert refused(await gateway.raw(chunked + part * 3)) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (CHAT + b" " * 9000, 200),
        (CHAT[:-1] + b',"zzz":1}' + b" " * 9000, 400),
        (b"[" * 9000, 400),
        (CHAT + b" " * 9000 + b"x", 400),
    ],
)
async def test_a_large_body_is_read_beside_the_loop(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, body: bytes, wanted: int
) -> None:
    """Reading it at once would hold up every other stream; the answer is the same, and so is the order."""
    monkeypatch.setattr(openai, "INLINE_BYTES_MAX", 8000)
    script = gateway.script

    def play(work: Work, _exchange: Exchange) -> None:
        script.offer(work)
        script.send(work, b'{"id":"a","model":"m","choices":[]}')
        script.done(work)

    script.play = play
    found = answers(await gateway.raw(post(body) * 3 + get(extra=b"Connection: close\r\n")))
    assert [status for status, _, _ in found] == [wanted] * 3 + [200]


async def test_nobody_works_for_a_client_that_left_while_its_body_was_read(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A work without a client would hold an engine, and be charged."""
    monkeypatch.setattr(openai, "INLINE_BYTES_MAX", 8000)
    reading, left = threading.Event(), threading.Event()

    def understand(*what: Any) -> openai.Understood:
        reading.set()
        left.wait(5)
        return real(*what)

    real = openai.understand
    monkeypatch.setattr(openai, "understand", understand)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(post(CHAT + b" " * 9000))
    assert await asyncio.to_thread(reading.wait, 5)
    writer.close()
    while not gateway.seen:
        await asyncio.sleep(0.01)  # Until the server has noticed.
    left.set()
    assert gateway.seen[-1].code == "client_closed"
    assert answers(await gateway.raw(get(extra=b"Connection: close\r\n")))[0][0] == 200
    assert gateway.script.works == []


async def test_authentication_comes_before_the_body(gateway: Gateway) -> None:
    """Without a key nothing is read, not even to say that it is not JSON."""
    assert refused(await gateway.raw(post(b"{", auth=b"")[:-1])) == (401, "invalid_api_key")


async def test_a_trailer_does_not_become_a_header(gateway: Gateway) -> None:
    """Otherwise a trailer could bring the key, past every check of the head."""
    body = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(CHAT), CHAT, AUTH)
    data = post(b"", auth=b"Connection: close\r\n").replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    assert refused(await gateway.raw(data + body)) == (401, "invalid_api_key")


async def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    """Hot and other paths share a connection; a thousand at once neither nest nor mix."""

    def play(work: Work, _exchange: Exchange) -> None:
        gateway.script.offer(work)
        gateway.script.send(work, b'{"id":"a","model":"m","choices":[]}')
        gateway.script.done(work)

    gateway.script.play = play
    many = (post() + get() + post(b"{}")) * 300
    found = answers(await gateway.raw(many + get(extra=b"Connection: close\r\n"), 20))
    assert [status for status, _, _ in found] == [200, 200, 400] * 300 + [200]


async def test_an_error_waits_for_the_answers_before_it(gateway: Gateway) -> None:
    """An error in the middle of another request's answer would be taken for a part of it."""
    script = gateway.script
    script.play = lambda work, _exchange: script.offer(work)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(post(STREAM) + b"NONSENSE\r\n\r\n")
    await asyncio.wait_for(script.submitted.wait(), 2)
    work = script.works[0]
    script.send(work, chunk({"content": "x"}))
    await asyncio.sleep(0.02)
    script.send(work, chunk({"content": "y"}))
    script.done(work)
    first, second = answers(await asyncio.wait_for(reader.read(), 2))
    assert first[0] == 200
    assert first[2].endswith(b"data: [DONE]\n\n")
    assert second[0] == 400
    writer.close()


async def test_data_sent_during_an_answer_waits_and_a_disconnect_is_still_seen(gateway: Gateway) -> None:
    """A client that sends its next request early and then leaves must free the engine too."""
    script = gateway.script
    script.play = lambda work, _exchange: script.offer(work)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(post(STREAM))
    await asyncio.wait_for(script.submitted.wait(), 2)
    writer.write(post())
    await asyncio.sleep(0.05)
    assert len(script.works) == 1
    writer.close()
    await asyncio.wait_for(script.was_cancelled.wait(), 1)


async def test_nothing_runs_that_came_behind_a_request_to_close(gateway: Gateway) -> None:
    """The client said that it would not send more; what is there all the same is somebody else's."""
    data = await gateway.raw(post(auth=b"", extra=b"Connection: close\r\n") + post() + post())
    assert refused(data) == (401, "invalid_api_key")
    assert gateway.script.works == []


async def test_the_next_request_on_a_kept_connection_is_served(gateway: Gateway) -> None:
    """Keep-alive after a stream; the next request may arrive while the stream is still going."""
    script = gateway.script
    script.play = lambda work, _exchange: script.offer(work)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(post(STREAM))
    await asyncio.wait_for(script.submitted.wait(), 2)
    writer.write(get(extra=b"Connection: close\r\n"))
    await asyncio.sleep(0.02)
    script.send(script.works[0], chunk({"content": "x"}))
    script.done(script.works[0])
    found = answers(await asyncio.wait_for(reader.read(), 2))
    assert [status for status, _, _ in found] == [200, 200]
    assert found[1][2].startswith(b'{"status":"ok"')
    writer.close()


async def _unread(gateway: Gateway, request: bytes) -> socket.socket:
    """A client that has asked, and reads nothing. Its own kernel takes as little as can be."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", gateway.port))
    await loop.sock_sendall(client, request)
    return client


async def _until_paused(gateway: Gateway, work: Work) -> None:
    """Give the client output until its engine is paused for good: its kernel still takes some at first."""
    flow, still = gateway.script.flow, 0
    for _ in range(3000):
        if flow and flow[-1][0] == "pause":
            still += 1
            if still == 10:
                return
            await asyncio.sleep(0.002)
        else:
            still = 0
            gateway.script.send(work, chunk({"content": "x" * 1000}))
            await asyncio.sleep(0)
    raise AssertionError(f"never paused: {flow}")


@pytest.mark.parametrize("reads", [0, 1])
async def test_a_slow_reader_pauses_its_node_and_is_cut_off(gateway: Gateway, reads: int) -> None:
    """What a client does not read must not pile up here, nor hold an engine for ever; nor may a client that
    takes a byte now and then."""
    script = gateway.script
    script.play = lambda work, _exchange: script.offer(work)
    with await _unread(gateway, post(STREAM)) as client:
        await asyncio.wait_for(script.submitted.wait(), 2)
        await _until_paused(gateway, script.works[0])
        async with asyncio.timeout(10):
            while not script.was_cancelled.is_set():
                assert len(client.recv(reads)) == reads
                await asyncio.sleep(0.03)
        assert gateway.seen[-1].code == "client_stalled"
        poll = select.poll()
        poll.register(client, 0)
        assert poll.poll(2000) == [(client.fileno(), select.POLLERR | select.POLLHUP)], "cut with a reset"
    assert gateway.server.connections == 0


def _large(gateway: Gateway, size: int) -> None:
    """Whole answers of this size from now on."""
    script = gateway.script

    def play(work: Work, _exchange: Exchange) -> None:
        script.offer(work)
        message = {"role": "assistant", "content": "x" * size}
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        script.send(work, json.dumps(answer).encode())
        script.done(work)

    script.play = play


async def test_a_whole_answer_that_nobody_takes_is_dropped(gateway: Gateway) -> None:
    """The work is done and charged, but its answer must not wait in memory for a client that sleeps."""
    _large(gateway, 1 << 20)
    with await _unread(gateway, post()):
        await asyncio.wait_for(gateway.script.submitted.wait(), 2)
        assert gateway.server.connections == 1
        async with asyncio.timeout(10):
            while gateway.server.connections:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("limits", [Limits(unread_bytes_max=2 << 20)])
async def test_when_too_much_waits_for_all_clients_the_worst_is_cut_at_once(gateway: Gateway) -> None:
    """A thousand clients that ask for large answers and read none would fill the memory in their 30 s."""
    seen = []
    for size in (200_000, 1_700_000, 600_000):
        _large(gateway, size)
        gateway.script.submitted.clear()
        seen.append(await _unread(gateway, post()))
        await asyncio.wait_for(gateway.script.submitted.wait(), 2)
    async with asyncio.timeout(10):
        while gateway.server.connections > 2:
            await asyncio.sleep(0.02)
    poll = select.poll()
    for client in seen:
        poll.register(client, 0)
    assert [number for number, _ in poll.poll(2000)] == [seen[1].fileno()]
    for client in seen:
        client.close()


async def test_http_1_0_gets_a_stream_without_chunks(gateway: Gateway) -> None:
    """Old clients and simple tools read until the end of the connection."""
    script = gateway.script

    def play(work: Work, _exchange: Exchange) -> None:
        script.offer(work)
        script.send(work, chunk({"content": "x"}))
        script.done(work)

    script.play = play
    data = await gateway.raw(post(STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert b"transfer-encoding" not in data
    assert data.endswith(b"\n\ndata: [DONE]\n\n")


async def test_expect_continue_is_answered(gateway: Gateway) -> None:
    """curl waits a second for it before it sends a larger body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    data = post(b"{}", extra=b"Expect: 100-continue\r\nConnection: close\r\n")
    writer.write(data[:-2])
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(data[-2:])
    assert refused(await asyncio.wait_for(reader.read(), 2)) == (400, "missing_field")
    writer.close()


async def test_draining_lets_open_streams_end(gateway: Gateway) -> None:
    """A stop takes no new connection and breaks no stream that ends in time."""
    script = gateway.script
    script.play = lambda work, _exchange: script.offer(work)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(post(STREAM))
    await asyncio.wait_for(script.submitted.wait(), 2)
    script.send(script.works[0], chunk({"content": "x"}))
    stopping = asyncio.create_task(gateway.server.stop())
    await asyncio.sleep(0.3)
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", gateway.port)
    script.send(script.works[0], chunk({"content": "y"}))
    script.done(script.works[0])
    assert answers(await asyncio.wait_for(reader.read(), 2))[0][2].endswith(b"data: [DONE]\n\n")
    await asyncio.wait_for(stopping, 5)
    writer.close()


async def test_draining_cuts_what_does_not_end(gateway: Gateway) -> None:
    """Nobody waits for a stream that never ends; its engine is freed."""
    gateway.script.play = lambda work, _exchange: gateway.script.offer(work)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(post(STREAM))
    await asyncio.wait_for(gateway.script.submitted.wait(), 2)
    await asyncio.wait_for(gateway.server.stop(), 6)
    assert len(gateway.script.cancelled) == 1
    writer.close()
