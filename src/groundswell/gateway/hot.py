"""One request on a hot path, and its answer, straight on the transport.

It stands where uvicorn has its request-response cycle, with the same few attributes, so that pipelining,
keep-alive and draining are the server's own; there is no ASGI between the parser and the relay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from groundswell.gateway import errors
from groundswell.gateway.errors import Headers
from groundswell.gateway.pipeline import NOBODY, Access, Observe, Pipeline, Seen, too_large
from groundswell.model.errors import GroundswellError, InternalError
from groundswell.model.work import Kind
from groundswell.store.keys import Principal

TRACEPARENT_BYTES = 64  # W3C Trace Context: version 00 has 55.

_log = logging.getLogger(__name__)


class Client(Protocol):
    """What the connection tells the exchange that answers it."""

    def gone(self) -> None:
        """The client has disconnected: free the engine at once."""

    def pause(self) -> None:
        """The client reads slowly: hold output back."""

    def resume(self) -> None: ...


class Connection(Protocol):
    """What a cycle needs of the connection that it answers on; ``protocol.GatewayProtocol``."""

    transport: asyncio.Transport
    flow: FlowControl
    loop: asyncio.AbstractEventLoop
    server_state: ServerState
    tasks: set[asyncio.Task[None]]
    scope: Any

    def on_hot_complete(self, cycle: HotCycle) -> None:
        """The answer is written."""


@dataclass(frozen=True, slots=True)
class HotPaths:
    """Which paths are hot, who may use them, and what begins once a request is complete.

    ``begin`` gets the whole request; it answers through the cycle, now or later, and may raise a
    ``GroundswellError`` as long as it has not.
    """

    pipeline: Pipeline
    kinds: Mapping[str, Kind]
    access: Access
    begin: Callable[[HotCycle], None]
    observe: Observe


@lru_cache(256)
def _lines(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Headers as they go out; most answers have the same ones."""
    return b"".join([b"%b: %b\r\n" % line for line in headers])


class HotCycle:
    """Body in, answer out. ``turn`` is true once all earlier requests of the connection are answered."""

    __slots__ = (
        "_began_s", "_chunked", "_paths", "_protocol", "_started", "_status", "body", "body_complete",
        "client", "code", "disconnected", "keep_alive", "kind", "message_event", "origin_lines", "path",
        "principal", "refusal", "request_id", "response_complete", "traceparent", "turn",
    )  # fmt: skip

    def __init__(
        self, protocol: Connection, paths: HotPaths, path: str, request_id: str, keep_alive: bool
    ) -> None:
        self._protocol = protocol
        self._paths = paths
        self._began_s = time.monotonic()
        self._started = False
        self._status = 0
        self._chunked = protocol.scope["http_version"] == "1.1"
        self.path = path
        self.kind = paths.kinds[path]
        self.request_id = request_id
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.body_complete = False
        self.principal: Principal | None = None
        self.refusal: GroundswellError | None = None
        self.client: Client | None = None
        self.code = ""
        self.traceparent = ""
        self.origin_lines: Headers = []  # For a page of another origin that may read the answer.
        self.turn = False
        self.response_complete = False
        self.disconnected = False
        self.message_event = _UNHEARD

    @property
    def started(self) -> bool:
        """Whether the status line has gone out."""
        return self._status != 0

    @property
    def paused(self) -> bool:
        """Whether the client is behind: what is written now waits in memory."""
        return self._protocol.flow.write_paused

    def admit(self, headers: Mapping[bytes, bytes], length: int | None) -> None:
        """Authenticate, before any of the body is looked at."""
        if b"traceparent" in headers:
            self.traceparent = headers[b"traceparent"][:TRACEPARENT_BYTES].decode("latin-1")
        try:
            found = self._paths.pipeline.admit("POST", headers, self._paths.access, length)
        except GroundswellError as error:
            self.refusal = error
            return
        if isinstance(found, Principal):
            self.principal = found
            return
        self._protocol.flow.pause_reading()  # Nobody fills memory before we know who it is.
        task = self._protocol.loop.create_task(self._admit_later(headers))
        self._protocol.tasks.add(task)
        task.add_done_callback(self._protocol.tasks.discard)

    async def _admit_later(self, headers: Mapping[bytes, bytes]) -> None:
        try:
            self.principal = await self._paths.pipeline.admit_later(headers, self._paths.access)
        except GroundswellError as error:
            self.refusal = error
        except Exception:
            _log.exception("a key could not be looked up", extra={"request_id": self.request_id})
            self.refusal = InternalError("The API key could not be looked up.")
        self._protocol.flow.resume_reading()
        self.advance()

    def feed(self, data: bytes) -> None:
        """More of the body. Over the limit, the request is refused and the rest is not kept."""
        if self.refusal is not None:
            return
        self.body += data
        limit = self._paths.access.body_bytes_max
        if len(self.body) > limit:
            self.refusal = too_large(limit)
            self.body = bytearray()

    def advance(self) -> None:
        """Begin, or refuse, when it is this request's turn and enough of it is known."""
        if not self.turn or self._started or self.disconnected:
            return
        if self.refusal is not None:
            self._started = True
            self.fail(self.refusal)
        elif self.body_complete and self.principal is not None:
            self._started = True
            try:
                self._paths.begin(self)
            except GroundswellError as error:
                self.fail(error)
            except Exception:
                self.fail_as_defect()
            self.body = bytearray()

    def fail(self, error: GroundswellError) -> None:
        """Answer with an error; one event and no ``[DONE]`` when a stream has already begun."""
        if self.response_complete or self.disconnected:
            return
        self.code = error.code
        if self.started:
            # The event says it all. The connection stays: its head did not say that it would close.
            self.write(errors.event(error))
            self.end()
        else:
            self.respond(error.status, errors.headers(error), errors.body(error))

    def fail_as_defect(self) -> None:
        """Answer that we failed; from within the handler of an exception that nobody expected."""
        _log.exception("a request failed", extra={"request_id": self.request_id})
        self.fail(InternalError("The server failed on this request. This is a defect of the server."))

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer at once."""
        if self.response_complete or self.disconnected:
            return
        if not self.body_complete:
            self.keep_alive = False
        self._status = status
        self._protocol.transport.write(
            self._head(status, headers, b"content-length: %d\r\n" % len(body)) + body
        )
        self._complete()

    def open(self, headers: Headers, first: bytes) -> None:
        """Begin a stream with status 200 and its first bytes."""
        if self.response_complete or self.disconnected:
            return
        self._status = 200
        framing = b""
        if self._chunked:
            framing = b"transfer-encoding: chunked\r\n"
            first = b"%x\r\n%b\r\n" % (len(first), first)
        else:
            self.keep_alive = False
        self._protocol.transport.write(self._head(200, headers, framing) + first)

    def write(self, data: bytes) -> None:
        """More of the stream. ``data`` must not be empty: an empty chunk would end it."""
        if self.response_complete or self.disconnected:
            return
        self._protocol.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self, last: bytes = b"") -> None:
        """The stream is complete."""
        if self.response_complete or self.disconnected:
            return
        if self._chunked:
            last = (b"%x\r\n%b\r\n" % (len(last), last) if last else b"") + b"0\r\n\r\n"
        if last:
            self._protocol.transport.write(last)
        self._complete()

    def lost(self, code: str) -> None:
        """The connection is gone."""
        if self.response_complete or self.disconnected:
            return
        self.disconnected = True
        self.code = code
        client, self.client = self.client, None
        if client is not None:
            client.gone()
        self._observe(self._status or 499)

    def _head(self, status: int, headers: Headers, framing: bytes) -> bytes:
        spent_ms = int((time.monotonic() - self._began_s) * 1000)
        return b"%b%b%b%bx-request-id: %b\r\nopenai-processing-ms: %d\r\n%b" % (
            STATUS_LINE[status],
            _lines(tuple(self._protocol.server_state.default_headers)),
            _lines((*headers, *self.origin_lines)),
            framing,
            self.request_id.encode(),
            spent_ms,
            b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n",
        )

    def _complete(self) -> None:
        self.response_complete = True
        self.client = None
        self._observe(self._status)
        self._protocol.on_hot_complete(self)

    def _observe(self, status: int) -> None:
        caller = self.principal or NOBODY
        self._paths.observe(
            Seen(
                self.request_id, "POST", self.path, status, time.monotonic() - self._began_s,
                caller.tenant, caller.key_id, self.code,
            )
        )  # fmt: skip


class _Unheard(asyncio.Event):
    """uvicorn wakes a cycle's application through this; a hot cycle has none."""


_UNHEARD = _Unheard()
