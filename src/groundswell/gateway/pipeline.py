"""The one pipeline that every request passes: request id, origin, authentication, scope, size, error shape.

The hot paths call ``admit`` directly as soon as a request's headers are complete; every other path meets the
same function in ``Guard``, a plain ASGI layer around the router. Access is denied by default: an endpoint
that does not say who may use it keeps the application from starting.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Literal, Protocol, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route

from groundswell.driver import Chance
from groundswell.gateway import errors
from groundswell.gateway.errors import Headers
from groundswell.gateway.origins import Origins
from groundswell.model.errors import (
    BadRequest,
    Forbidden,
    GroundswellError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unauthorized,
)
from groundswell.model.value import value
from groundswell.store.keys import MISS, Miss, Principal, Scope
from groundswell.telemetry import logs

_log = logging.getLogger(__name__)

JSON_BYTES_MAX = 128 << 10  # What an endpoint takes that does not say otherwise; more would hold the loop.
_chance = Chance()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")

ASGIMessage = MutableMapping[str, Any]
ASGIScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
ASGIApp = Callable[[ASGIScope, Receive, Send], Awaitable[None]]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Keys(Protocol):
    """What authentication needs of ``store.keys.KeyRing``."""

    def find_cached(self, token: str) -> Principal | Literal[Miss.MISS] | None: ...

    async def find(self, token: str) -> Principal | None: ...


@value
class Access:
    """Who may use an endpoint, and how much it reads. ``scope`` None: anyone, by declaration."""

    scope: Scope | None
    body_bytes_max: int = JSON_BYTES_MAX


def access(scope: Scope | None, body_bytes_max: int = JSON_BYTES_MAX) -> Callable[[Endpoint], Endpoint]:
    """Declare who may use an endpoint. Every endpoint of the application carries this."""

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.__access__ = Access(scope, body_bytes_max)  # type: ignore[attr-defined]
        return endpoint

    return declare


@value
class Seen:
    """One answered request, for metrics and the access log. ``seconds`` runs to the last byte written."""

    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    tenant: str = ""
    key_id: str = ""
    code: str = ""


Observe = Callable[[Seen], None]


def unobserved(_seen: Seen) -> None:
    """For those who do not want to know."""


def request_id(asked: bytes | None) -> str:
    """The client's own id when it is sane, otherwise a new one."""
    if asked is not None:
        text = asked.decode("latin-1")
        if _REQUEST_ID.match(text):
            return text
    return "req_" + _chance.take(12).hex()


class Pipeline:
    """Authentication and scope. Without ``keys`` every caller is the tenant ``local``, with all scopes."""

    def __init__(self, keys: Keys | None, origins: Origins | None = None) -> None:
        self._keys = keys
        self.origins = origins or Origins()

    def admit(
        self, method: str, headers: Mapping[bytes, bytes], wanted: Access, length: int | None
    ) -> Principal | Literal[Miss.MISS]:
        """The caller, checked for this endpoint. MISS: ask ``admit_later`` with the same arguments.

        Raises ``TooLarge``, ``Forbidden`` (origin, scope) or ``Unauthorized``, in this order.
        """
        if length is not None and length > wanted.body_bytes_max:
            raise too_large(wanted.body_bytes_max)
        self.origins.check(method, headers)
        if wanted.scope is None:
            return NOBODY
        if self._keys is None:
            return LOCAL
        found = self._keys.find_cached(_token(headers))
        return found if found is MISS else _checked(found, wanted.scope)

    async def admit_later(self, headers: Mapping[bytes, bytes], wanted: Access) -> Principal:
        """As ``admit``, when the store has to be asked."""
        if self._keys is None or wanted.scope is None:
            return NOBODY if wanted.scope is None else LOCAL
        return _checked(await self._keys.find(_token(headers)), wanted.scope)


LOCAL = Principal("local", "local", frozenset(Scope))
NOBODY = Principal("", "", frozenset())


def too_large(limit: int) -> TooLarge:
    """The error for a body over ``limit`` bytes."""
    return TooLarge(f"The body is larger than {limit} bytes.")


def _token(headers: Mapping[bytes, bytes]) -> str:
    value = headers.get(b"authorization")
    if value is not None:
        kind, _, token = value.decode("latin-1").partition(" ")
        if kind.lower() == "bearer" and token:
            return token.strip()
    else:
        token = headers.get(b"x-api-key", b"").decode("latin-1")
        if token:
            return token
    raise Unauthorized("No API key was given. Send it as 'Authorization: Bearer <key>'.")


def _checked(principal: Principal | None, scope: Scope) -> Principal:
    if principal is None:
        raise Unauthorized("The API key is not valid.")
    if scope not in principal.scopes:
        raise Forbidden(f"This API key lacks the scope {scope.value!r}.")
    return principal


class Guard:
    """The pipeline around the router: finds the route first, so that its declaration decides."""

    def __init__(
        self,
        app: ASGIApp,
        routes: Iterable[BaseRoute],
        pipeline: Pipeline,
        not_found: Callable[[str], NotFound],
        observe: Observe = unobserved,
    ) -> None:
        self._app = app
        self._pipeline = pipeline
        self._not_found = not_found
        self._observe = observe
        self._routes: list[tuple[Route, Access]] = []
        for route in routes:
            declared = getattr(getattr(route, "endpoint", None), "__access__", None)
            if not isinstance(route, Route) or declared is None:
                raise ValueError(f"{route!r} does not declare who may use it; see gateway.pipeline.access")
            self._routes.append((route, declared))

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Call(self, scope, receive, send).run()

    async def authorise(
        self, scope: ASGIScope, headers: Mapping[bytes, bytes]
    ) -> tuple[str, Access, Principal]:
        """The route's path, its declaration and the caller. Raises what the client is to see."""
        route, wanted = self._match(scope)
        length = headers.get(b"content-length")
        declared = int(length) if length is not None and length.isdigit() else None
        caller = self._pipeline.admit(scope["method"], headers, wanted, declared)
        if caller is MISS:
            caller = await self._pipeline.admit_later(headers, wanted)
        return route.path, wanted, caller

    def _match(self, scope: ASGIScope) -> tuple[Route, Access]:
        allowed: set[str] = set()
        for route, wanted in self._routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                return route, wanted
            if match is Match.PARTIAL:
                allowed |= route.methods or set()
        if allowed:
            raise _NotAllowed(allowed)
        raise self._not_found(scope["path"])


class _NotAllowed(MethodNotAllowed):
    def __init__(self, methods: Iterable[str]) -> None:
        self.allow = ", ".join(sorted(methods))
        super().__init__(f"This method is not allowed here; allowed: {self.allow}.")


class _Call:
    """One request on its way through the guard."""

    def __init__(self, guard: Guard, scope: ASGIScope, receive: Receive, send: Send) -> None:
        self._guard = guard
        self._scope = scope
        self._receive = receive
        self._send = send
        self._status = 0
        self._code = ""
        self._origin_lines: Headers = []
        self._body_left = JSON_BYTES_MAX

    async def run(self) -> None:
        began_s = time.monotonic()
        headers = dict(self._scope["headers"])
        self._id = request_id(headers.get(b"x-request-id"))
        logs.request_id.set(self._id)
        route, caller = "", NOBODY
        origins = self._guard._pipeline.origins
        self._origin_lines = origins.readable(headers)
        try:
            if (allowed := origins.preflight(self._scope["method"], headers)) is not None:
                self._origin_lines = allowed
                await self.send({"type": "http.response.start", "status": 204})
                await self.send({"type": "http.response.body"})
                return
            route, wanted, caller = await self._guard.authorise(self._scope, headers)
            self._body_left = self._body_max = wanted.body_bytes_max
            state = self._scope.setdefault("state", {})
            state["principal"], state["request_id"] = caller, self._id
            await self._guard._app(self._scope, self.receive, self.send)
        except GroundswellError as error:
            await self._fail(error)
        except ClientDisconnect:
            self._status = self._status or 499
        except HTTPException as error:
            # Starlette's own words, about multipart bodies and the like: all are the client's doing.
            await self._fail(BadRequest(str(error.detail)))
        except Exception:
            _log.exception("a request failed", extra={"request_id": self._id})
            await self._fail(
                InternalError("The server failed on this request. This is a defect of the server.")
            )
        finally:
            self._guard._observe(
                Seen(
                    self._id, self._scope["method"], route or "(none)", self._status,
                    time.monotonic() - began_s, caller.tenant, caller.key_id, self._code,
                )
            )  # fmt: skip

    async def receive(self) -> ASGIMessage:
        message = await self._receive()
        if message["type"] == "http.request":
            self._body_left -= len(message.get("body", b""))
            if self._body_left < 0:
                raise too_large(self._body_max)
        return message

    async def send(self, message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            lines = [*message.get("headers", ()), (b"x-request-id", self._id.encode())]
            # The files of a video say for themselves that any page may read them.
            if self._origin_lines and all(name != b"access-control-allow-origin" for name, _ in lines):
                lines += self._origin_lines
            message["headers"] = lines
        await self._send(message)

    async def _fail(self, error: GroundswellError) -> None:
        self._code = error.code
        if self._status:
            raise error  # The response has begun: the server cuts it off, which the client sees as an error.
        body = errors.body(error)
        lines = [*errors.headers(error), (b"content-length", b"%d" % len(body))]
        if isinstance(error, _NotAllowed):
            lines.append((b"allow", error.allow.encode()))
        await self.send({"type": "http.response.start", "status": error.status, "headers": lines})
        sent = b"" if self._scope["method"] == "HEAD" else body
        await self.send({"type": "http.response.body", "body": sent, "more_body": False})
