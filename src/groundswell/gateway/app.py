"""Everything beside the hot paths: models, health, metrics, nodes, and the routes that wiring adds.

Plain Starlette routes behind ``pipeline.Guard``, without Starlette's own error layers: errors have one shape.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from groundswell.gateway import openapi, prescan
from groundswell.gateway.openai import KINDS
from groundswell.gateway.pipeline import ASGIApp, Guard, Observe, Pipeline, access, unobserved
from groundswell.gateway.relay import NodeView
from groundswell.model.errors import InternalError, NotFound
from groundswell.model.node import Capability
from groundswell.model.work import Kind
from groundswell.store.keys import Scope

TRANSCODES = frozenset({Kind.TRANSCODE})

# Paths of the OpenAI API whose nearest neighbour is not the one that is spelled most alike.
_INSTEAD = {
    "/v1/responses": "/v1/chat/completions",
    "/v1/videos": "/v1/transcodes",
    "/v1/files": "/v1/blobs",
    "/v1/uploads": "/v1/blobs",
}


@dataclass(frozen=True, slots=True)
class Operations:
    """What the application shows and does; wiring fills it in.

    ``add_node`` takes the JSON object of ``POST /v1/nodes`` and returns what is shown of the new node;
    ``remove_node`` takes its id; ``invite`` takes the object of ``POST /v1/invites`` and returns its answer.
    All raise ``GroundswellError``. ``instance`` tells this process from every other gateway.
    """

    nodes: Callable[[], Sequence[NodeView]]
    queued: Callable[[], int]
    metrics: Callable[[], tuple[bytes, str]]
    add_node: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    remove_node: Callable[[str], Awaitable[None]]
    invite: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    metrics_open: bool = False
    instance: str = ""


def application(
    operations: Operations, pipeline: Pipeline, routes: Iterable[Route] = (), observe: Observe = unobserved
) -> ASGIApp:
    """The ASGI application. ``routes`` are further ones; each endpoint declares its access."""
    table = [*_routes(operations), *routes]
    paths = [route.path for route in table]
    return Guard(Router(table), table, pipeline, lambda path: _not_found(path, paths), observe)


def answer(value: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _routes(operations: Operations) -> list[Route]:
    models = _Models(operations)
    nodes = _Nodes(operations)

    @access(None)
    async def healthz(_request: Request) -> Response:
        return answer({"status": "ok", "instance": operations.instance})

    @access(None)
    async def readyz(_request: Request) -> Response:
        ready = any(
            engine.healthy
            for view in operations.nodes()
            if view.state != "silent"
            for engine in view.report.engines
        )
        return answer({"status": "ready" if ready else "no engine is ready"}, 200 if ready else 503)

    @access(None if operations.metrics_open else Scope.ADMIN)
    async def metrics(_request: Request) -> Response:
        body, kind = operations.metrics()
        return Response(body, media_type=kind)

    described = msgspec.json.encode(openapi.description())

    @access(None)
    async def description(_request: Request) -> Response:
        return Response(described, media_type="application/json")

    @access(Scope.INFERENCE)
    async def hot(_request: Request) -> Response:
        raise InternalError("This path is served by the connection itself.")

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/v1/openapi.json", description),
        # Here only for what is not a POST: those never come this far.
        *(Route(path, hot, methods=["POST"]) for path in KINDS),
        Route("/v1/models", models.list),
        Route("/v1/models/{model:path}", models.get),
        Route("/v1/nodes", nodes.list),
        Route("/v1/nodes", nodes.add, methods=["POST"]),
        Route("/v1/nodes/{node}", nodes.remove, methods=["DELETE"]),
        Route("/v1/invites", nodes.invite, methods=["POST"]),
    ]


class _Models:
    """``GET /v1/models`` and ``GET /v1/models/{id}``: what healthy engines offer now, once each."""

    def __init__(self, operations: Operations) -> None:
        self._nodes = operations.nodes
        self._created_s = int(time.time())

    @access(Scope.INFERENCE)
    async def list(self, _request: Request) -> Response:
        found = self._found()
        return answer({"object": "list", "data": [self._entry(found[name]) for name in sorted(found)]})

    @access(Scope.INFERENCE)
    async def get(self, request: Request) -> Response:
        capability = self._found().get(request.path_params["model"])
        if capability is None:
            raise NotFound("This model does not exist here.", code="model_not_found", param="model")
        return answer(self._entry(capability))

    def _found(self) -> dict[str, Capability]:
        found: dict[str, Capability] = {}
        for view in self._nodes():
            for engine in view.report.engines:
                if engine.healthy:
                    for capability in engine.capabilities:
                        if capability.kinds != TRANSCODES:  # No model that an OpenAI client could ask for.
                            found.setdefault(capability.model, capability)
        return found

    def _entry(self, capability: Capability) -> dict[str, Any]:
        return {
            "id": capability.model,
            "object": "model",
            "created": self._created_s,
            "owned_by": "groundswell",
            "kinds": sorted(capability.kinds),
            "max_model_len": capability.context_tokens,
        }


class _Nodes:
    """``/v1/nodes``: the live view that the command line shows, and adding and removing engines by URL."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    @access(Scope.ADMIN)
    async def list(self, _request: Request) -> Response:
        nodes = [_node(view) for view in self._operations.nodes()]
        return answer({"object": "list", "data": nodes, "queued": self._operations.queued()})

    @access(Scope.ADMIN)
    async def add(self, request: Request) -> Response:
        return answer(await self._operations.add_node(prescan.decode(await request.body())), 201)

    @access(Scope.ADMIN)
    async def remove(self, request: Request) -> Response:
        await self._operations.remove_node(request.path_params["node"])
        return Response(status_code=204)

    @access(Scope.ADMIN)
    async def invite(self, request: Request) -> Response:
        return answer(await self._operations.invite(prescan.decode(await request.body())), 201)


def _node(view: NodeView) -> dict[str, Any]:
    report = view.report
    return {
        "id": report.node_id,
        "object": "node",
        "state": view.state,
        "age_s": round(view.age_s, 3),
        "draining": report.draining,
        "region": report.region,
        "trust": report.trust,
        "attempts": len(report.attempts),
        "engines": [
            {
                "id": engine.engine_id,
                "healthy": engine.healthy,
                "slots": engine.slots,
                "running": engine.running,
                "generation": engine.generation,
                "models": [_capability(capability) for capability in engine.capabilities],
            }
            for engine in report.engines
        ],
    }


def _capability(capability: Capability) -> dict[str, Any]:
    return {
        "model": capability.model,
        "engine_model": capability.engine_model,
        "kinds": sorted(capability.kinds),
        "continuation": capability.continuation.value,
        "context_tokens": capability.context_tokens,
        "warm": capability.warm,
    }


def _not_found(path: str, paths: Sequence[str]) -> NotFound:
    stem = "/".join(path.split("/")[:3])
    nearest = _INSTEAD.get(stem)
    if nearest not in paths:
        close = difflib.get_close_matches(path[:200], paths, n=1, cutoff=0.4)
        nearest = close[0] if close else "/v1/chat/completions"
    shown = path if len(path) <= 100 else path[:100] + "…"
    return NotFound(
        f"Nothing is served at {shown!r}. The nearest path that is: {nearest}.", code="unknown_url"
    )
