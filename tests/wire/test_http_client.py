"""The raw client against real sockets whose other end says exactly what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from groundswell.wire.http_client import (
    ConnectError,
    ConnectionLost,
    Headers,
    HttpClient,
    HttpError,
    Origin,
    ProtocolError,
    split_url,
)

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Recorder:
    """A handler that writes down what it hears."""

    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    error: HttpError | None = None
    ended: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    got_body: asyncio.Event = field(default_factory=asyncio.Event)

    def on_head(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers

    def on_body(self, data: bytes) -> None:
        self.body += data
        self.got_body.set()

    def on_end(self) -> None:
        self.ended += 1
        self.over.set()

    def on_error(self, error: HttpError) -> None:
        self.error = error
        self.over.set()


@dataclass
class Server:
    origin: Origin
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    closed_by_client: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def serve(
    answer: Callable[[Server, int, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Server]:
    """A server that reads each request's head and lets ``answer(server, number, writer)`` reply."""
    tasks = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        server.connections += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                server.requests.append(head + body)
                await answer(server, len(server.requests), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            server.closed_by_client.set()
        except asyncio.CancelledError:
            pass  # The test is over; asyncio would log a handler that ends as cancelled.
        finally:
            writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    server = Server(Origin("127.0.0.1", port, tls=False))
    try:
        yield server
    finally:
        listener.close()
        await asyncio.sleep(
            0.01
        )  # Handlers of connections that were just accepted start, so that they can end.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def client_of(**settings: float) -> AsyncIterator[HttpClient]:
    client = HttpClient(**settings)  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.close()


async def ok(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


async def test_a_kept_connection_serves_many_requests() -> None:
    """A connection for each request would cost more than the request."""
    async with serve(ok) as server, client_of() as client:
        for _ in range(5):
            response = await client.fetch(server.origin, "POST", "/x", headers=[("A", "b")], body=b"hi")
            assert (response.status, response.body) == (200, b"ok")
        assert server.connections == 1
        assert server.requests[0].startswith(b"POST /x HTTP/1.1\r\nHost: 127.0.0.1:")
        assert server.requests[0].endswith(b"A: b\r\nContent-Length: 2\r\n\r\nhi")


async def test_requests_at_the_same_time_get_connections_of_their_own() -> None:
    """One slow stream must not hold another back."""
    async with serve(ok) as server, client_of() as client:
        responses = await asyncio.gather(*(client.fetch(server.origin, "GET", "/") for _ in range(8)))
        assert [response.body for response in responses] == [b"ok"] * 8
        assert server.connections == 8


async def test_chunks_and_interim_responses_are_understood() -> None:
    """Engines stream in chunks, and a proxy in between may say 100 or 103 first."""

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        for piece in (
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Enc",
            b"oding: chunked\r\n\r\n3\r\nabc\r", b"\n2\r\nde\r\n0\r\n", b"X-Trailer: 1\r\n\r\n",
        ):  # fmt: skip
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serve(answer) as server, client_of() as client:
        for _ in range(2):
            response = await client.fetch(server.origin, "GET", "/")
            assert response.status == 200
            assert response.body == b"abcde"
            assert response.headers == [(b"x-a", b"1"), (b"transfer-encoding", b"chunked")]
        assert server.connections == 1


async def test_a_body_without_length_ends_with_its_connection() -> None:
    """HTTP/1.0 style servers exist; a broken chunked body, in contrast, is an error."""

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.close()

    async with serve(answer) as server, client_of() as client:
        assert (await client.fetch(server.origin, "GET", "/")).body == b"all of it"


@pytest.mark.parametrize(
    "part",
    [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"],
)  # fmt: skip
async def test_a_response_cut_short_is_an_error(part: bytes) -> None:
    """Half an answer must never pass for a whole one."""

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(part)
        writer.close()

    async with serve(answer) as server, client_of() as client:
        with pytest.raises(ConnectionLost):
            await client.fetch(server.origin, "GET", "/")


async def test_a_kept_connection_that_died_is_replaced_without_the_caller_noticing() -> None:
    """A server may close a kept connection at the moment we use it; nothing was answered, so we ask again."""

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        if number == 2:
            writer.close()  # The second request is read and its connection dropped without a byte.
        else:
            writer.write(OK)

    async with serve(answer) as server, client_of() as client:
        for _ in range(2):
            assert (await client.fetch(server.origin, "GET", "/")).body == b"ok"
        assert server.connections == 2
        assert len(server.requests) == 3


async def test_a_new_connection_that_dies_is_not_retried() -> None:
    """On a new connection it is the server that failed; whether to try elsewhere is not ours to decide."""

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with serve(answer) as server, client_of() as client:
        with pytest.raises(ConnectionLost):
            await client.fetch(server.origin, "GET", "/")
        assert len(server.requests) == 1


async def test_cancel_closes_the_connection_and_silences_the_handler() -> None:
    """The engine frees its slot when its connection closes; that is how a cancelled work stops costing."""

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")

    async with serve(answer) as server, client_of() as client:
        handler = Recorder()
        request = client.request(server.origin, "GET", "/", handler)
        await asyncio.wait_for(handler.got_body.wait(), 5)
        request.cancel()
        request.cancel()
        await asyncio.wait_for(server.closed_by_client.wait(), 5)
        assert not handler.over.is_set()


async def test_cancel_before_the_connection_is_made_sends_nothing() -> None:
    """A client that leaves at once must not start an engine."""
    async with serve(ok) as server, client_of() as client:
        handler = Recorder()
        client.request(server.origin, "GET", "/", handler).cancel()
        await client.fetch(server.origin, "GET", "/second")
        assert not handler.over.is_set()
        assert len(server.requests) == 1


async def test_cancel_from_inside_a_callback_is_safe() -> None:
    """The relay cancels when a client vanishes while its bytes are being handed over."""

    class Canceller(Recorder):
        def on_body(self, data: bytes) -> None:
            super().on_body(data)
            request.cancel()

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")

    async with serve(answer) as server, client_of() as client:
        handler = Canceller()
        request = client.request(server.origin, "GET", "/", handler)
        await asyncio.wait_for(server.closed_by_client.wait(), 5)
        assert handler.body == b"a"
        assert not handler.over.is_set()


async def test_a_paused_response_holds_the_server_back() -> None:
    """Back-pressure must reach the engine, or a slow client's stream piles up here."""
    total = 32 << 20
    written = 0

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while written < total:
            writer.write(bytes(1 << 16))
            await writer.drain()
            written += 1 << 16

    async with serve(answer) as server, client_of() as client:
        handler = Recorder()
        request = client.request(server.origin, "GET", "/", handler)
        await asyncio.wait_for(handler.got_body.wait(), 5)
        request.pause()
        await asyncio.sleep(0.1)
        held = len(handler.body)
        await asyncio.sleep(0.1)
        assert len(handler.body) == held
        assert written < total
        request.resume()
        await asyncio.wait_for(handler.over.wait(), 20)
        assert len(handler.body) == total


async def test_an_oversized_head_is_refused() -> None:
    """Headers are the server's to choose; our memory is not."""

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(200):
            writer.write(b"X-Filler: " + b"a" * 1000 + b"\r\n")
        writer.write(b"\r\n")

    async with serve(answer) as server, client_of() as client:
        with pytest.raises(ProtocolError):
            await client.fetch(server.origin, "GET", "/")


@pytest.mark.parametrize("junk", [b"220 smtp ready\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"])
async def test_what_is_not_http_is_an_error(junk: bytes) -> None:
    """An operator may type the wrong port."""

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(junk)

    async with serve(answer) as server, client_of() as client:
        with pytest.raises(ProtocolError):
            await client.fetch(server.origin, "GET", "/")


async def test_a_response_that_nobody_asked_for_closes_the_connection() -> None:
    """Its bytes would be taken for the next request's answer: another client's text."""

    async def answer(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")

    async with serve(answer) as server, client_of() as client:
        for _ in range(3):
            assert (await client.fetch(server.origin, "GET", "/")).body == b"ok"
        assert server.connections == 3


async def test_refused_connections_and_slow_answers_are_told_apart() -> None:
    """Refused means that nothing ran; silence does not."""

    async def silence(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with serve(silence) as server, client_of() as client:
        with pytest.raises(ConnectionLost, match=r"no answer within 0\.05 s"):
            await client.fetch(server.origin, "GET", "/", timeout_s=0.05)
    async with client_of() as client:
        with pytest.raises(ConnectError):
            await client.fetch(server.origin, "GET", "/")


async def test_idle_connections_are_closed_in_time() -> None:
    """Kept connections cost both ends memory, and old ones are the likely dead ones."""
    async with serve(ok) as server, client_of(idle_timeout_s=0.05) as client:
        await client.fetch(server.origin, "GET", "/")
        await asyncio.wait_for(server.closed_by_client.wait(), 5)
        await client.fetch(server.origin, "GET", "/")
        assert server.connections == 2


async def test_connections_are_bounded() -> None:
    """A surge must end in an error that is routed around, not in a process without file descriptors."""

    async def silence(server: Server, number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with serve(silence) as server, client_of(connections_max=2) as client:
        handlers = [Recorder() for _ in range(3)]
        requests = [client.request(server.origin, "GET", "/", handler) for handler in handlers]
        await asyncio.wait_for(handlers[2].over.wait(), 5)
        assert isinstance(handlers[2].error, ConnectError)
        while len(server.requests) < 2:
            await asyncio.sleep(0.001)
        for request in requests:
            request.cancel()


def test_addresses_are_split_and_bad_ones_refused() -> None:
    """The address is typed by a person."""
    assert split_url("http://box:11434/v1/") == (Origin("box", 11434, False), "/v1")
    assert split_url("https://api.example") == (Origin("api.example", 443, True), "")
    assert Origin("::1", 80, False).authority == "[::1]"
    for bad in ("box:11434", "ftp://box", "http://", "http://u:p@box", "http://box/?q=1"):
        with pytest.raises(ValueError):
            split_url(bad)


async def test_a_header_cannot_smuggle_another() -> None:
    """A key with a line break in it would be a request of its own."""
    async with client_of() as client:
        with pytest.raises(ValueError):
            client.request(Origin("h", 1, False), "GET", "/", Recorder(), headers=[("A", "b\r\nC: d")])
