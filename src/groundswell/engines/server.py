"""The HTTP server of our own engines: small enough to start in a fraction of a second.

An engine process serves a handful of JSON paths on the loopback to the node beside it. A web framework
would cost more to import than the engine itself, so this is plain ASGI on uvicorn: an exact table of paths,
bodies with a limit, the project's error shape, and one rule that matters most: when the client goes away,
the handler is cancelled at once, whether it waits, computes or writes.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from groundswell.model.errors import BadRequest, GroundswellError, InternalError, NotFound, TooLarge

BODY_BYTES_MAX = 16 * 1024 * 1024  # far above any prompt that a context holds
PARENT_CHECK_S = 1.0
PARENT_VARIABLE = "GROUNDSWELL_PARENT_PID"
DRAIN_S = 3  # how long open answers may take after SIGTERM
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Cut(Exception):
    """Raised by a handler: drop the connection without a proper end, as a dying engine does."""


class Request:
    """One HTTP request, and the way to answer it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.body = b""
        self.started = False
        self._receive = receive
        self._send = send

    async def read(self, limit: int = BODY_BYTES_MAX) -> None:
        """Read the whole body. Raises ``TooLarge`` above ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise TooLarge(f"the body is larger than {limit} bytes")
            if not message.get("more_body", False):
                break
        self.body = b"".join(parts)

    async def gone(self) -> None:
        """Return when the client is gone (or was answered in full)."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def object(self) -> dict[str, Any]:
        """The body as a JSON object. Raises ``BadRequest``."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            raise BadRequest("the body is not valid JSON", code="invalid_json") from None
        if not isinstance(value, dict):
            raise BadRequest("the body is not a JSON object", code="invalid_json")
        return value

    async def answer(self, value: Any, status: int = 200) -> None:
        """Answer with one JSON value."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        await self._start(status, b"application/json", [(b"content-length", str(len(body)).encode())])
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, value: Any) -> None:
        """Send one server-sent event; the first one starts the answer."""
        if not self.started:
            headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
            await self._start(200, b"text/event-stream; charset=utf-8", headers)
        text = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        )
        await self._send(
            {"type": "http.response.body", "body": b"data: %b\n\n" % text.encode(), "more_body": True}
        )

    async def end(self) -> None:
        """End a stream of events."""
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, content_type: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        headers = [(b"content-type", content_type), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


Handler = Callable[[Request], Awaitable[None]]


class App:
    """An ASGI application from a table of (method, path) to handler."""

    def __init__(self, routes: Mapping[tuple[str, str], Handler]) -> None:
        self._routes = dict(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive, send)
        try:
            await request.read()
        except TooLarge as error:
            await request.answer(error_body(error), error.status)
            return
        except asyncio.CancelledError:
            return
        answering = asyncio.ensure_future(self._answer(request))
        gone = asyncio.ensure_future(request.gone())
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            answering.cancel()
            await asyncio.wait({answering, gone})

    async def _answer(self, request: Request) -> None:
        try:
            handler = self._routes.get((request.method, request.path))
            if handler is None:
                raise NotFound(f"{request.method} {request.path} is not served here")
            await handler(request)
        except Cut:
            return
        except GroundswellError as error:
            await _fail(request, error)
        except Exception:
            traceback.print_exc()
            await _fail(request, InternalError("the engine failed"))


async def _fail(request: Request, error: GroundswellError) -> None:
    """Before the answer began: a status. After: one error event, and no [DONE] behind it."""
    if request.started:
        await request.event(error_body(error))
        await request.end()
    else:
        await request.answer(error_body(error), error.status)


def error_body(error: GroundswellError) -> dict[str, Any]:
    """The error in the shape that the OpenAI clients read: four keys, all present."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def command_line(name: str, about: str, slots: int, slots_help: str) -> argparse.ArgumentParser:
    """What every engine can be told on its command line; an engine with more to tell adds it."""
    parser = argparse.ArgumentParser(
        prog=f"groundswell serve {name}",
        description=about,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--slots", type=int, default=slots, help=slots_help)
    return parser


def serve(app: App, host: str = "127.0.0.1", port: int = 0) -> int:
    """Serve until SIGTERM, SIGINT or the death of the parent; return the exit status.

    Prints one line, ``listening HOST:PORT``, when it can be asked; port 0 takes a free one. The status is 1,
    with a sentence on standard error, when the address cannot be had. An engine belongs
    to the process that started it (``GROUNDSWELL_PARENT_PID``, else whoever is the parent now): when that is
    killed, the engine ends too, so that nothing is left over.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            bound = (sockets or [listener])[0].getsockname()
            print(f"listening {bound[0]}:{bound[1]}", flush=True)

    parent = int(os.environ.get(PARENT_VARIABLE) or os.getppid())
    _end_with_parent()
    if os.getppid() != parent:
        return 0  # it died while we were starting
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        # Python adds the address to the system's words; it is in ours already.
        why = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        print(f"Port {port} of {host} cannot be had ({why}). Choose another with --port.", file=sys.stderr)
        return 1
    config = uvicorn.Config(
        app, lifespan="off", ws="none", access_log=False, log_level="critical", server_header=False,
        timeout_keep_alive=75, timeout_graceful_shutdown=DRAIN_S,
    )  # fmt: skip
    server = Server(config)

    async def run() -> None:
        watch = asyncio.ensure_future(_watch_parent(parent))
        try:
            await server.serve(sockets=[listener])
        finally:
            watch.cancel()

    # uvicorn hands the signal on after a clean end; for a child that was asked to stop, that is success.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run())
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _end_with_parent() -> None:
    """Ask Linux for SIGKILL when the parent dies: it also ends a process whose loop hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


async def _watch_parent(parent: int) -> None:
    """Elsewhere than on Linux, and if the parent died before we asked."""
    while os.getppid() == parent:  # noqa: ASYNC110  nobody tells a process that it was orphaned
        await asyncio.sleep(PARENT_CHECK_S)
    os._exit(0)
