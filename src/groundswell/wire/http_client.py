"""The HTTP/1.1 client of the hot path: callbacks on a raw connection, kept alive and used again.

General clients cost more here than the engine's answer does: their layers make objects and tasks for each
read. This one makes a task only to connect. It knows what relaying needs and nothing else: no redirects, no
cookies, no compression, no proxies, no HTTP/2.

    HttpError
    ├── ConnectError     nothing was sent: refused, unreachable, TLS failure, timeout, too many connections
    ├── ConnectionLost   the connection ended before the response did
    └── ProtocolError    what came is not HTTP, or larger than its limit
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import httptools

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
# Python servers close idle connections after 5 s; ours go first, so that we seldom meet a closed one.
IDLE_TIMEOUT_S = 4.0
IDLE_MAX = 64  # Kept for each origin; more than this many at once is a burst that need not be kept warm.
CONNECTIONS_MAX = 1024  # All open connections of one client, until it is told how many are of use.
HEAD_BYTES_MAX = 64 << 10
HEADERS_MAX = 128

Headers = list[tuple[bytes, bytes]]


class HttpError(Exception):
    """The request did not get its whole response."""


class ConnectError(HttpError):
    """No connection, so that the server has seen nothing of the request."""


class ConnectionLost(HttpError):
    """The connection broke before the response was complete."""


class ProtocolError(HttpError):
    """The server does not speak HTTP as we know it."""


class ResponseHandler(Protocol):
    """Hears a response. Exactly one of ``on_end`` and ``on_error`` comes last, unless it was cancelled."""

    def on_head(self, status: int, headers: Headers) -> None:
        """Status and headers; header names are lower case."""

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_error(self, error: HttpError) -> None: ...


class Origin(NamedTuple):
    """Where connections go, and what may share them."""

    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def split_url(url: str) -> tuple[Origin, str]:
    """An origin and the path below it, without a slash at its end. Raises ``ValueError``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not an http or https address: {url}")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("an engine's address has no user, query or fragment")
    tls = parts.scheme == "https"
    return Origin(parts.hostname, parts.port or (443 if tls else 80), tls), parts.path.rstrip("/")


@dataclass(frozen=True, slots=True)
class Template:
    """A request but for its body: made once, sent often."""

    origin: Origin
    head: bytes

    @classmethod
    def of(
        cls, origin: Origin, method: str, target: str, headers: Sequence[tuple[str, str]] = ()
    ) -> Template:
        """Raises ``ValueError`` for a header that is more than one line."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {origin.authority}"]
        for name, value in headers:
            if any(mark in name or mark in value for mark in "\r\n\0"):
                raise ValueError("a header must be one line")
            lines.append(f"{name}: {value}")
        return cls(origin, "\r\n".join(lines).encode("latin-1") + b"\r\n")

    def filled(self, body: bytes | None) -> bytes:
        """The request with this body."""
        if body is None:
            return self.head + b"\r\n"
        return b"%bContent-Length: %d\r\n\r\n%b" % (self.head, len(body), body)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response, for callers that do not stream."""

    status: int
    headers: Headers
    body: bytes


class Request:
    """One request in flight."""

    __slots__ = (
        "_client", "_connecting", "_connection", "_paused", "data", "handler", "origin", "over", "retriable",
    )  # fmt: skip

    def __init__(self, client: HttpClient, origin: Origin, data: bytes, handler: ResponseHandler) -> None:
        self._client = client
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._paused = False
        self.origin = origin
        self.data = data
        self.handler = handler
        self.over = False
        self.retriable = False  # On a connection that was used before, and no byte of an answer has come.

    def cancel(self) -> None:
        """Close the connection at once; the handler hears nothing more. Idempotent, at any moment."""
        self.over = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def pause(self) -> None:
        """Stop reading, so that the server feels it."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def attach(self, connection: _Connection, used: bool) -> None:
        """Send on this connection."""
        self._connection = connection
        self._connecting = None
        self.retriable = used
        connection.send(self)
        if self._paused:
            connection.pause()

    def detach(self) -> None:
        """The response is complete; the connection is no longer ours."""
        self._connection = None
        self.over = True

    def connect(self) -> None:
        """Send on a new connection, made in a task."""
        self._connection = None
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def fail(self, error: HttpError) -> None:
        """It ends here, with an error."""
        if not self.over:
            self.over = True
            self._connection = None
            self.handler.on_error(error)

    async def _connect(self) -> None:
        try:
            connection = await self._client.open(self.origin)
        except HttpError as error:
            self._connecting = None
            self.fail(error)
            return
        if self.over:
            connection.abort()
        else:
            self.attach(connection, used=False)


class HttpClient:
    """Connections to any number of origins. Lives on one event loop; ``close`` it."""

    def __init__(
        self,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self.connections_max = connections_max
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Origin, deque[_Connection]] = {}
        self._all: set[_Connection] = set()
        self._emptied = asyncio.Event()
        self._opening = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def request(
        self,
        origin: Origin,
        method: str,
        target: str,
        handler: ResponseHandler,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
    ) -> Request:
        """As ``send``, for a request that is made once."""
        return self.send(Template.of(origin, method, target, headers), handler, body)

    def send(self, template: Template, handler: ResponseHandler, body: bytes | None = None) -> Request:
        """Send a request; its response comes to ``handler``. Never raises for what the network does.

        A request that meets a kept connection which the server had just closed is sent once more, on a new
        one. ``handler`` is not called before this returns."""
        request = Request(self, template.origin, template.filled(body), handler)
        connection = self._take(template.origin)
        if connection is None:
            request.connect()
        else:
            request.attach(connection, used=True)
        return request

    async def fetch(
        self,
        origin: Origin,
        method: str,
        target: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        timeout_s: float = 10.0,
        body_bytes_max: int = 4 << 20,
    ) -> Response:
        """The whole response. Raises ``HttpError``; ``ConnectionLost`` when it takes too long."""
        collector = _Collector(body_bytes_max)
        request = self.request(origin, method, target, collector, headers=headers, body=body)
        try:
            async with asyncio.timeout(timeout_s):
                return await collector.done
        except TimeoutError:
            raise ConnectionLost(f"no answer within {timeout_s:g} s") from None
        finally:
            if not request.over:
                request.cancel()

    async def close(self) -> None:
        """Close every connection; requests in flight hear ``ConnectionLost``."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._idle.clear()
        for connection in list(self._all):
            connection.abort(tell=True)
        if self._all:  # Transports finish closing in the loop's next turns.
            async with asyncio.timeout(1):
                await self._emptied.wait()

    async def open(self, origin: Origin) -> _Connection:
        """A new connection. Raises ``ConnectError``."""
        if self._closed or len(self._all) + self._opening >= self.connections_max:
            raise ConnectError("closed" if self._closed else "too many connections are open")
        context = (self._tls or ssl.create_default_context()) if origin.tls else None
        self._tls = context or self._tls
        self._opening += 1
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self, origin), origin.host, origin.port, ssl=context
                )
        except TimeoutError:
            raise ConnectError(f"no connection within {self._connect_timeout_s:g} s") from None
        except OSError as error:  # ssl.SSLError is one.
            raise ConnectError(_why(error)) from error
        finally:
            self._opening -= 1
        return connection

    # --- what connections tell ---

    def opened(self, connection: _Connection) -> None:
        self._all.add(connection)

    def gone(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if self._closed and not self._all:
            self._emptied.set()
        idle = self._idle.get(connection.origin)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def release(self, connection: _Connection) -> None:
        """Keep a connection whose response is complete for the next request."""
        idle = self._idle.setdefault(connection.origin, deque())
        if self._closed or len(idle) >= IDLE_MAX:
            connection.abort()
            return
        connection.idle_since_s = self._loop.time()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._idle_timeout_s, self._sweep)

    def _take(self, origin: Origin) -> _Connection | None:
        """The connection used last: it is the least likely to have been closed, and the others may age."""
        idle = self._idle.get(origin)
        oldest_s = self._loop.time() - self._idle_timeout_s
        while idle:
            connection = idle.pop()
            if connection.idle_since_s >= oldest_s and not connection.closing:
                return connection
            connection.abort()
        return None

    def _sweep(self) -> None:
        self._sweeper = None
        oldest_s = self._loop.time() - self._idle_timeout_s
        for origin, idle in list(self._idle.items()):
            while idle and idle[0].idle_since_s <= oldest_s:
                idle.popleft().abort()
            if not idle:
                del self._idle[origin]
        if self._idle:
            self._sweeper = self._loop.call_later(self._idle_timeout_s / 2, self._sweep)


class _Connection(asyncio.Protocol):
    """One connection; carries one request at a time."""

    def __init__(self, client: HttpClient, origin: Origin) -> None:
        self.origin = origin
        self.idle_since_s = 0.0
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: Headers = []
        self._head_bytes = 0
        self._in_head = True
        self._framed = False
        self._complete = False
        self._reusable = False
        self._surplus = False  # More came than the one response: the connection cannot be used again.
        self._reading = True

    # --- what requests do ---

    @property
    def closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def send(self, request: Request) -> None:
        assert self._request is None, "a connection carries one request at a time"
        assert self._transport is not None
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._start_message()
        self._transport.write(request.data)

    def abort(self, *, tell: bool = False) -> None:
        """Close now. The request hears of it only with ``tell``."""
        request, self._request = self._request, None
        if self._transport is not None:
            self._transport.abort()
        if tell and request is not None:
            request.fail(ConnectionLost("the client was closed"))

    def pause(self) -> None:
        if self._reading and not self.closing:
            self._reading = False
            assert self._transport is not None
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._reading and not self.closing:
            self._reading = True
            assert self._transport is not None
            self._transport.resume_reading()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's, but behave as one.
        self._transport = cast("asyncio.Transport", transport)
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._request is None:
            self.abort()  # Bytes that nobody asked for: the connection is not to be trusted.
            return
        self._request.retriable = False
        if self._in_head:
            self._head_bytes += len(data)
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
            if self._in_head and self._head_bytes > HEAD_BYTES_MAX:
                raise ProtocolError("the response's head is too large")
        except HttpError as error:
            self._fail(error)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, HttpError):
                _log.error("a response handler failed", exc_info=cause)
                cause = ProtocolError("the response could not be handled")
            self._fail(cause)
        except httptools.HttpParserUpgrade:
            self._fail(ProtocolError("the server switched protocols"))
        except httptools.HttpParserError:
            self._surplus = True
            if not self._complete:
                self._fail(ProtocolError("the response is not HTTP"))
        if self._complete and self._request is not None:
            self._finish(reusable=self._reusable and not self._surplus)

    def eof_received(self) -> None:
        return None  # Close; connection_lost says the rest.

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.gone(self)
        self._transport = None
        request, self._request = self._request, None
        if request is None:
            return
        if request.retriable:
            request.connect()
        elif not self._in_head and not self._framed and exc is None:
            # Neither a length nor chunks: such a body ends with its connection (RFC 9112, 6.3).
            request.detach()
            request.handler.on_end()
        else:
            request.fail(ConnectionLost(str(exc) if exc else "the connection was closed"))

    # --- the parser's callbacks ---

    def on_message_begin(self) -> None:
        if self._complete:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head or self._complete:
            return  # Trailers, or surplus.
        if len(self._headers) >= HEADERS_MAX:
            raise ProtocolError("the response has too many headers")
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            return  # An interim response; the real one follows.
        self._in_head = False
        if status in (204, 304):
            self._framed = True
        if self._request is not None:
            self._request.handler.on_head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if self._request is not None and not self._complete:
            self._request.handler.on_body(data)

    def on_message_complete(self) -> None:
        if self._in_head:
            self._start_message()
        elif not self._complete:
            self._complete = True
            # The parser forgets what it saw of the framing right after this.
            assert self._parser is not None
            self._reusable = self._parser.should_keep_alive()

    # --- ends ---

    def _start_message(self) -> None:
        self._headers = []
        self._head_bytes = 0
        self._in_head = True
        self._framed = False
        self._complete = False

    def _finish(self, *, reusable: bool) -> None:
        """Release first, so that a request made in ``on_end`` finds this connection."""
        request, self._request = self._request, None
        assert request is not None
        request.detach()
        self.resume()
        if reusable and not self.closing:
            self._client.release(self)
        else:
            self.abort()
        request.handler.on_end()

    def _fail(self, error: HttpError) -> None:
        request, self._request = self._request, None
        self.abort()
        if request is not None:
            request.fail(error)


class _Collector:
    """Gathers a whole response."""

    def __init__(self, body_bytes_max: int) -> None:
        self.done: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._headers: Headers = []
        self._body = bytearray()
        self._max = body_bytes_max

    def on_head(self, status: int, headers: Headers) -> None:
        self._status, self._headers = status, headers

    def on_body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._max and not self.done.done():
            self.done.set_exception(ProtocolError(f"the response is larger than {self._max} bytes"))

    def on_end(self) -> None:
        if not self.done.done():
            self.done.set_result(Response(self._status, self._headers, bytes(self._body)))

    def on_error(self, error: HttpError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def _why(error: OSError) -> str:
    """In words, for operators: the system's own where it gave a number, and no Python around them."""
    if isinstance(error, ssl.SSLError) or error.errno is None or error.errno <= 0:
        return error.strerror or str(error) or type(error).__name__
    return os.strerror(error.errno)
