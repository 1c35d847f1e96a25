"""uvicorn's HTTP/1.1 protocol made safe against what it accepts, with the hot paths served directly.

No Python server has all of this by itself: deadlines for the head, the body and idle connections, limits on
headers and URL, one valid Host, no doubled headers that proxies read differently, JSON errors only, and no
error written into the middle of another request's answer. See docs/reference/http.md for the figures.

Bytes that arrive while an answer is in progress wait unparsed, so that reading goes on and a client that
leaves is noticed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import re
import socket
import struct
import sys
import termios
import urllib.parse
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from groundswell.gateway import errors
from groundswell.gateway.hot import HotCycle, HotPaths
from groundswell.gateway.pipeline import Seen, request_id, too_large
from groundswell.gateway.unread import LOOKS, Progress, Unread
from groundswell.model.errors import (
    BadRequest,
    GroundswellError,
    HeadersTooLarge,
    RequestTimeout,
    UnsupportedMedia,
    UriTooLong,
)

MIB = 1 << 20
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, and drop what the kernel still holds.


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may cost. Seconds, bytes, counts.

    Above ``behind_bytes`` that a client has not taken, beside what the kernel holds (``server``), its engine
    is paused; then ``stalled_s`` and ``progress_bytes`` hold, see ``unread``. Such a stream costs 63 kB.

    A body may take ``body_s`` plus a time per MiB received: hot paths are short JSON; uploads come over
    people's lines (64 KiB/s at least).
    """

    head_s: float = 10.0
    idle_s: float = 15.0
    keep_alive_s: float = 65.0
    body_s: float = 30.0
    body_s_per_mib: float = 1.0
    upload_s_per_mib: float = 16.0
    stalled_s: float = 30.0
    progress_bytes: int = 4 << 10
    behind_bytes: int = 16 << 10
    unread_bytes_max: int = 256 << 20  # Of all clients together.
    linger_s: float = 2.0
    url_bytes_max: int = 8 << 10
    headers_max: int = 100
    headers_bytes_max: int = 32 << 10
    upload_bytes_max: int = 4 << 30
    held_bytes_max: int = 64 << 10
    connections_max: int = 10_000


_SINGLETONS = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding", b"authorization",
     b"x-api-key", b"x-request-id", b"origin", b"idempotency-key", b"expect"}
)  # fmt: skip
_HOST = re.compile(rb"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?\Z")
_JSON = b"application/json"


class GatewayProtocol(HttpToolsProtocol):
    """One connection. ``hosts`` are the allowed names of this server, without port; None allows any."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        hot: HotPaths,
        limits: Limits,
        unread: Unread,
        hosts: frozenset[str] | None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._hot = hot
        self._limits = limits
        self._hosts = hosts
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for = ""
        self._unread = unread
        self._progress = Progress(limits.stalled_s, limits.progress_bytes)
        self._look_timer: asyncio.TimerHandle | None = None
        self._lost_as = "client_closed"
        self._held = bytearray()
        self._feeding = False
        self._open = False  # A message has begun and is not complete.
        self._in_body = False
        self._fed_whole_head = 0
        self._body_bytes = 0
        self._body_began_s = 0.0
        self._error: GroundswellError | None = None  # Why a parser callback stopped the parser.
        self._refusal: GroundswellError | None = None  # To be written when earlier answers are out.
        self._deaf = False  # Nothing more is read from this client but its end.
        self._turn: HotCycle | None = None
        self._header_bytes = 0

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections_max:
            transport.abort()
            return
        transport.set_write_buffer_limits(self._limits.behind_bytes)
        self._arm("idle", self._limits.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._unread.forget(self)
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.lost(self._lost_as)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf or self._refusal is not None:
            return
        if self._busy() and not self._open:
            self._held += data
            if len(self._held) > self._limits.held_bytes_max:
                self.flow.pause_reading()
            if len(self._held) > 16 * self._limits.held_bytes_max:
                self.transport.abort()
            return
        self._feed(data)

    # --- a client that is behind ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._fell_behind()
        if self._turn is not None and self._turn.client is not None:
            self._turn.client.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread.note(self, self.transport.get_write_buffer_size())
        if self._turn is not None and self._turn.client is not None:
            self._turn.client.resume()

    def _fell_behind(self) -> None:
        """From now on the client must take what waits for it."""
        left = self.transport.get_write_buffer_size()
        self._progress.begin(self.loop.time(), left + self._in_kernel())
        if self._look_timer is None:
            self._look_later()
        self._unread.note(self, left)

    def _look_later(self) -> None:
        self._look_timer = self.loop.call_later(self._limits.stalled_s / LOOKS, self._look)

    def _look(self) -> None:
        self._look_timer = None
        left = self.transport.get_write_buffer_size()
        answering = self._busy() and not self.flow.write_paused
        if not left or answering:
            self._unread.forget(self)  # It has all, or is close behind; when it falls back, writing pauses.
        elif self._progress.stands_still(self.loop.time(), left + self._in_kernel()):
            self.cut()
        else:
            self._look_later()
            self._unread.note(self, left)

    def _in_kernel(self) -> int:
        """What the client's machine has not acknowledged: it goes down by bits, our buffer in large steps."""
        try:
            fd = self.transport.get_extra_info("socket").fileno()
            return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:  # Closed meanwhile, or not Linux: then the steps must do.
            return 0

    def cut(self) -> None:
        """Let go of a client that does not read, with all that waits for it."""
        self._lost_as = "client_stalled"
        sock = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    # --- parsing ---

    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _feed(self, data: bytes) -> None:
        was_open = self._open
        self._feeding = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgrade()
        except httptools.HttpParserError:
            error, self._error = self._error, None
            self._refuse(error or BadRequest("This is not a valid HTTP/1.1 request.", code="invalid_http"))
        finally:
            self._feeding = False
        if not self._deaf and self._refusal is None:
            self._after_feed(len(data), was_open)
        if self._turn is not None:
            self._turn.advance()

    def _after_feed(self, size: int, was_open: bool) -> None:
        if self._open and not self._in_body:
            # A line without an end is known to the parser alone; its size shows only here.
            self._fed_whole_head = self._fed_whole_head + size if was_open else 0
            if self._fed_whole_head > self._limits.headers_bytes_max + self._limits.url_bytes_max:
                self._refuse(HeadersTooLarge("The headers are too large."))
                return
        self._watch()

    def _watch(self) -> None:
        """Arm the deadline that fits what the connection waits for."""
        if self._open and self._in_body:
            if self._timer_for != "body":
                self._arm("body", self._limits.body_s)
        elif not self._busy():
            if self._timer_for != "head":
                self._arm("head", self._limits.head_s)
        else:
            self._disarm()

    def _upgrade(self) -> None:
        """httptools stops at an Upgrade header or CONNECT; a bodyless request is answered without it."""
        error = BadRequest("Upgrade and CONNECT are not supported.", code="upgrade_not_supported")
        self.cycle.keep_alive = False
        self._deaf = True
        if isinstance(self.cycle, HotCycle):
            self.cycle.refusal = self.cycle.refusal or error

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._open = True
        self._in_body = False
        self._header_bytes = 0
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self._limits.url_bytes_max:
            self._stop(UriTooLong(f"The URL is longer than {self._limits.url_bytes_max} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        size = self._header_bytes = self._header_bytes + len(name) + len(value)
        headers, limits = self.headers, self._limits
        if size > limits.headers_bytes_max:
            self._stop(HeadersTooLarge(f"The headers are larger than {limits.headers_bytes_max} bytes."))
        if self._in_body:
            return  # A trailer: nothing here needs one, and none may pass for a header.
        if len(headers) >= limits.headers_max:
            self._stop(HeadersTooLarge(f"There are more than {limits.headers_max} headers."))
        headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._body_began_s = self.loop.time()
        headers = dict(self.headers)
        length = self._check_head(headers)
        self.expect_100_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        path = self.url.partition(b"?")[0]
        text = path.decode("ascii", "replace")
        if "%" in text:
            text = urllib.parse.unquote(text)
        if self.parser.get_method() == b"POST" and text in self._hot.kinds:
            self._begin_hot(text, headers, length)
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if isinstance(self.cycle, HotCycle):
            self.cycle.feed(body)
            return
        if self._body_bytes > self._limits.upload_bytes_max:
            self._stop(too_large(self._limits.upload_bytes_max))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._open = False
        self._in_body = False
        if isinstance(self.cycle, HotCycle):
            self.cycle.body_complete = True
            return
        super().on_message_complete()

    def _stop(self, error: GroundswellError) -> None:
        """Leave the parser from within a callback; ``_feed`` refuses the request."""
        self._error = error
        raise error

    # --- what a head must be ---

    def _check_head(self, headers: dict[bytes, bytes]) -> int | None:
        """The declared length of the body. Raises through ``_stop`` for what is refused."""
        if len(headers) != len(self.headers):
            seen: set[bytes] = set()
            for name, _ in self.headers:
                if name in seen and name in _SINGLETONS:
                    self._stop(BadRequest(f"The header {name.decode()} is given twice.", code="invalid_http"))
                seen.add(name)
        self._check_host(headers.get(b"host"))
        if not self.url.startswith(b"/"):
            self._stop(BadRequest("The request target must be a path.", code="invalid_http"))
        if b"transfer-encoding" in headers:
            version = self.parser.get_http_version()
            if headers[b"transfer-encoding"].lower() != b"chunked" or version != "1.1":
                self._stop(
                    BadRequest("The only Transfer-Encoding is chunked, in HTTP/1.1.", code="invalid_http")
                )
            if b"content-length" in headers:
                self._stop(
                    BadRequest(
                        "Content-Length and Transfer-Encoding exclude each other.", code="invalid_http"
                    )
                )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._stop(UnsupportedMedia("Compressed bodies are not accepted; send it as it is."))
        length = headers.get(b"content-length")
        if length is None:
            return None
        if not length.isdigit():
            self._stop(BadRequest("Content-Length is not a number.", code="invalid_http"))
        if int(length[:20]) > self._limits.upload_bytes_max:
            self._stop(too_large(self._limits.upload_bytes_max))
        return int(length[:20])

    def _check_host(self, host: bytes | None) -> None:
        name = _name_of(host) if host is not None else None
        if name is None:
            self._stop(BadRequest("A single valid Host header is required.", code="invalid_host"))
        elif self._hosts is not None and name not in self._hosts:
            self._stop(BadRequest("This server does not answer to that Host.", code="invalid_host"))

    # --- hot paths ---

    def _begin_hot(self, path: str, headers: dict[bytes, bytes], length: int | None) -> None:
        version = self.parser.get_http_version()
        if version != "1.1":
            self.scope["http_version"] = version
        previous = self.cycle
        keep_alive = version == "1.1" and self.parser.should_keep_alive()
        cycle = HotCycle(self, self._hot, path, request_id(headers.get(b"x-request-id")), keep_alive)
        self.cycle = cycle  # type: ignore[assignment]
        if b"origin" in headers:
            cycle.origin_lines = self._hot.pipeline.origins.readable(headers)
        content_type = headers.get(b"content-type", _JSON)
        if content_type != _JSON and content_type.partition(b";")[0].strip().lower() != _JSON:
            cycle.refusal = UnsupportedMedia(
                "The body must be sent with Content-Type: application/json.", code="unsupported_media_type"
            )
        else:
            cycle.admit(headers, length)
        if (
            self.expect_100_continue
            and cycle.refusal is None
            and not (previous and not previous.response_complete)
        ):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if previous is None or previous.response_complete:
            self._start_asgi_task(cycle, self.app)  # type: ignore[arg-type]
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """uvicorn calls this when it is a request's turn."""
        if not isinstance(cycle, HotCycle):
            super()._start_asgi_task(cycle, partial(_honest, cycle, app))
            return
        cycle.turn = True
        self._turn = cycle
        if not self._feeding:
            # Not at once: a thousand refused requests in one packet must not nest a thousand calls.
            self.loop.call_soon(cycle.advance)

    def on_hot_complete(self, cycle: HotCycle) -> None:
        """A hot path's answer is written."""
        self._turn = None
        if not cycle.keep_alive:
            self._close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        if self._open and self._in_body and self.cycle.response_complete:
            self._close()  # Answered before its body was all here (an error): the rest is not wanted.
        super().on_response_complete()
        if self._look_timer is None and self.transport.get_write_buffer_size():
            self._fell_behind()  # A closed connection, too, stays until its last byte is taken.
        if self.transport.is_closing() or self._deaf or self._busy():
            return
        if self._refusal is not None:
            error, self._refusal = self._refusal, None
            self._write_refusal(error)
        elif self._held:
            self.loop.call_soon(self._feed_held)
        elif self._open:
            self._watch()

    def _feed_held(self) -> None:
        if self._busy() or self._deaf or self.transport.is_closing():
            return
        data, self._held = bytes(self._held), bytearray()
        if data:
            self._unset_keepalive_if_required()
            self._feed(data)

    # --- refusing and closing ---

    def _refuse(self, error: GroundswellError) -> None:
        """End the connection with this error, after the answers to what came before it."""
        self._disarm()
        if self._open and self._in_body and self._busy() and self._of_this_message():
            cycle = self.cycle
            if isinstance(cycle, HotCycle):
                cycle.refusal = cycle.refusal or error
                cycle.keep_alive = False
                self._deaf = True
                if cycle.turn:
                    cycle.advance()
                return
            if not self.pipeline:
                cycle.disconnected = True
                cycle.message_event.set()
                if cycle.response_started:
                    self.transport.close()
                else:
                    self._write_refusal(error)
                return
            self.pipeline.popleft()
        if self._busy():
            self._refusal = error
        else:
            self._write_refusal(error)

    def _of_this_message(self) -> bool:
        """Whether the latest cycle belongs to the message whose body is being read."""
        return self.cycle.scope is self.scope if isinstance(self.cycle, RequestResponseCycle) else True

    def _write_refusal(self, error: GroundswellError) -> None:
        body = errors.body(error)
        asked = dict(self.headers).get(b"x-request-id") if self.headers else None
        ident = request_id(asked)
        self._hot.observe(Seen(ident, "", "(refused)", error.status, 0.0, code=error.code))
        lines = [
            *self.server_state.default_headers,
            *errors.headers(error),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", ident.encode()),
            (b"connection", b"close"),
        ]
        head = b"".join([STATUS_LINE[error.status], *(b"%b: %b\r\n" % line for line in lines), b"\r\n"])
        self.transport.write(head + body)
        self._close()

    def _close(self) -> None:
        """Half-close and listen a little: closing on a client that still sends would destroy the answer."""
        if self.transport.is_closing():
            return
        self._deaf = True
        self._held.clear()
        self.pipeline.clear()
        if not self._open and not self.flow.read_paused:
            self.transport.close()
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._arm("linger", self._limits.linger_s)

    # --- deadlines ---

    def _arm(self, what: str, seconds: float) -> None:
        self._disarm()
        self._timer_for = what
        self._timer = self.loop.call_later(seconds, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._timer_for = ""

    def _expire(self) -> None:
        what, self._timer, self._timer_for = self._timer_for, None, ""
        if self.transport.is_closing():
            return
        if what in ("idle", "linger"):
            self.transport.close()
        elif what == "head":
            self._refuse(
                RequestTimeout(f"The headers did not arrive within {self._limits.head_s:g} seconds.")
            )
        elif what == "body":
            left_s = self._body_left_s()
            if left_s > 0:
                self._arm("body", left_s)
            else:
                self._refuse(RequestTimeout("The body did not arrive in time."))

    def _body_left_s(self) -> float:
        if self.flow.read_paused:
            return self._limits.body_s  # We are the slow side.
        hot = isinstance(self.cycle, HotCycle)
        per_mib_s = self._limits.body_s_per_mib if hot else self._limits.upload_s_per_mib
        allowed_s = self._limits.body_s + per_mib_s * self._body_bytes / MIB
        return self._body_began_s + allowed_s - self.loop.time()


@lru_cache(256)
def _name_of(host: bytes) -> str | None:
    """The name in a Host header, without its port; None if the header is not valid."""
    match = _HOST.match(host)
    if match is None or int(match.group(1) or 0) > 65_535:
        return None
    name = host.decode("ascii").lower()
    return name if match.group(1) is None else name.rpartition(":")[0]


async def _honest(cycle: RequestResponseCycle, app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Run ``app``; an answer that begins before the body is all here says that the connection closes after
    it. A client that does not know would send its next request into the closing connection."""

    async def telling(message: Any) -> None:
        if message["type"] != "http.response.start" or not cycle.more_body:
            await send(message)
            return
        message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        keep_alive = cycle.keep_alive
        await send(message)
        # uvicorn would close at once and so destroy the answer; ``_close`` listens until the client has it.
        cycle.keep_alive = keep_alive

    await app(scope, receive, telling)
