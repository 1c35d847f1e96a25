"""Everything beside the hot paths: access, errors, health, models, nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from scripted_works import ADMIN_KEY, KEY, VIDEO_KEY, Gateway
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from groundswell.gateway.app import Operations, application
from groundswell.gateway.pipeline import Pipeline
from groundswell.gateway.relay import NodeView
from groundswell.model.node import NodeReport

ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        yield client


def check(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == "false"
    return error


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/healthz", {None, KEY, VIDEO_KEY, ADMIN_KEY, "gsw_wrong"}),
        ("GET", "/readyz", {None, KEY, VIDEO_KEY, ADMIN_KEY, "gsw_wrong"}),
        ("GET", "/metrics", {ADMIN_KEY}),
        ("GET", "/v1/models", {KEY, ADMIN_KEY}),
        ("GET", "/v1/models/llama", {KEY, ADMIN_KEY}),
        ("GET", "/v1/nodes", {ADMIN_KEY}),
        ("POST", "/v1/nodes", {ADMIN_KEY}),
        ("DELETE", "/v1/nodes/x", {ADMIN_KEY}),
        ("POST", "/v1/invites", {ADMIN_KEY}),
        ("POST", "/v1/embeddings", {KEY, ADMIN_KEY}),
    ],
)
async def test_each_route_lets_in_whom_it_names(
    gateway: Gateway, http: httpx.AsyncClient, method: str, path: str, allowed: set[str | None]
) -> None:
    """The whole matrix of routes and keys; a forged address or host name changes nothing."""
    gateway.script.play = lambda work, _exchange: gateway.script.fail(work, "model_not_found")
    for key in (None, KEY, VIDEO_KEY, ADMIN_KEY, "gsw_wrong"):
        for forged in ({}, {"x-forwarded-for": "127.0.0.1", "host": "127.0.0.1"}):
            headers = forged | ({"authorization": f"Bearer {key}"} if key else {})
            body = {"model": "m", "input": "x"} if method == "POST" else None
            response = await http.request(method, path, headers=headers, json=body)
            refused = response.status_code in (401, 403)
            assert refused == (key not in allowed), (key, response.text)
            if refused:
                assert response.status_code == (401 if key in (None, "gsw_wrong") else 403)


async def test_a_key_in_x_api_key_counts_too(http: httpx.AsyncClient) -> None:
    """Some clients send it there."""
    assert (await http.get("/v1/models", headers={"x-api-key": KEY})).status_code == 200


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/responses", "/v1/chat/completions"),
        ("/v1/embedding", "/v1/embeddings"),
        ("//v1/models", "/v1/models"),
        ("/v1/./models", "/v1/models"),
        ("/v1/..%2fmetrics", "/metrics"),
        ("/%00", ""),
        ("/<img onerror>", ""),
    ],
)
async def test_an_unknown_path_names_the_nearest_one(gateway: Gateway, path: str, nearest: str) -> None:
    """A wrong base_url is the most common mistake of all."""
    raw = await gateway.raw(
        f"GET {path.replace(' ', '%20')} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert b"404 Not Found" in raw
    assert b"unknown_url" in raw
    assert nearest.encode() + b"." in raw or not nearest or (nearest.encode() + b'"') in raw


async def test_a_wrong_method_names_the_right_one(http: httpx.AsyncClient) -> None:
    """Hot paths too."""
    for path, allow in (("/v1/chat/completions", "POST"), ("/v1/nodes", "GET, HEAD, POST")):
        response = await http.put(path, headers=ADMIN)
        check(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allow


async def test_a_foreign_page_cannot_change_anything(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """A browser sends Origin; only pages of this host and of allowed ones may write."""
    for origin, passes in (
        ("https://evil.example", False),
        ("null", False),
        ("https://app.example", True),
        (gateway.url, True),
    ):
        for path in ("/v1/nodes", "/v1/chat/completions"):
            response = await http.post(path, headers=ADMIN | {"origin": origin}, json={"x": 1})
            assert (response.status_code != 403) == passes
            readable = response.headers.get("access-control-allow-origin")
            assert readable == (origin if origin == "https://app.example" else None)
        assert (await http.get("/v1/models", headers=ADMIN | {"origin": origin})).status_code == 200


@pytest.mark.parametrize("path", ["/v1/nodes", "/v1/chat/completions", "/v1/models/llama"])
async def test_a_browser_that_asks_first_is_answered_without_a_key(
    http: httpx.AsyncClient, path: str
) -> None:
    """It sends no key with its question, and sends the page's request only after a yes."""
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-app"}
    yes = await http.options(path, headers=asks | {"origin": "https://app.example"})
    assert yes.status_code == 204
    assert yes.headers["access-control-allow-origin"] == "https://app.example"
    assert yes.headers["access-control-allow-headers"] == "authorization,x-app"
    assert "POST" in yes.headers["access-control-allow-methods"]
    assert yes.headers["vary"] == "origin"
    for origin in ("https://evil.example", "null", "https://app.example.evil.example"):
        no = await http.options(path, headers=asks | {"origin": origin})
        check(no, 403, "origin_not_allowed")
        assert "access-control-allow-origin" not in no.headers
    check(await http.options(path, headers={"origin": "https://app.example"}), 405, "method_not_allowed")


async def test_an_allowed_page_can_read_errors_too(http: httpx.AsyncClient) -> None:
    """Otherwise its author sees that something failed, and never what."""
    page = {"origin": "https://app.example"}
    for response in (
        await http.get("/v1/models", headers=page),
        await http.get("/nowhere", headers=page),
        await http.post("/v1/chat/completions", headers=page, json={}),
        await http.post("/v1/chat/completions", headers=page | {"content-type": "text/plain"}, content=b"{}"),
    ):
        assert response.is_error
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-request-id" in response.headers["access-control-expose-headers"]


async def test_readiness_follows_the_engines(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """Load balancers send traffic only where something can serve it."""
    assert (await http.get("/readyz")).status_code == 200
    gateway.views[0] = replace(gateway.views[0], age_s=11.0)
    assert (await http.get("/readyz")).status_code == 503
    assert (await http.get("/v1/nodes", headers=ADMIN)).json()["data"][0]["state"] == "silent"
    gateway.views[0] = NodeView(NodeReport("node-1", 1, 1), 0.1)
    assert (await http.get("/readyz")).status_code == 503


async def test_the_live_view_has_what_the_command_line_shows(http: httpx.AsyncClient) -> None:
    """``groundswell status`` reads it."""
    shown = (await http.get("/v1/nodes", headers=ADMIN)).json()
    assert shown["queued"] == 3
    [node] = shown["data"]
    assert (node["id"], node["engines"][0]["models"][0]["model"]) == ("node-1", "llama")


async def test_nodes_are_added_and_removed(http: httpx.AsyncClient) -> None:
    """What they do is wiring's; what they accept is JSON."""
    added = await http.post("/v1/nodes", headers=ADMIN, json={"url": "http://box"})
    assert (added.status_code, added.json()) == (201, {"id": "node-2", "url": "http://box"})
    assert (await http.delete("/v1/nodes/node-2", headers=ADMIN)).status_code == 204
    check(await http.post("/v1/nodes", headers=ADMIN, content=b"{"), 400, "invalid_json")


async def test_a_body_over_the_endpoints_limit_is_refused(http: httpx.AsyncClient) -> None:
    """By its declared length, and by what really comes."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * (64 << 10)

    check(await http.post("/v1/nodes", headers=ADMIN, content=b" " * (2 << 20)), 413, "request_too_large")
    check(await http.post("/v1/nodes", headers=ADMIN, content=parts()), 413, "request_too_large")


async def test_an_insane_request_id_is_replaced(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """Ids go into logs and headers; a client's own is kept when it is harmless."""
    assert (await http.get("/healthz", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    for insane in ("a b", "x" * 129, '"><script>'):
        answer = await http.get("/healthz", headers={"x-request-id": insane})
        assert answer.headers["x-request-id"].startswith("req_")
    assert gateway.seen[-1].route == "/healthz"


async def test_an_endpoint_without_declared_access_keeps_the_application_from_starting() -> None:
    """Denied by default: forgetting it must not open a route."""

    async def forgotten(_request: Request) -> Response:
        return Response()

    async def nothing(_what: Any) -> Any:
        return None

    operations = Operations(list, lambda: 0, lambda: (b"", "text/plain"), nothing, nothing, nothing)
    with pytest.raises(ValueError, match="who may use it"):
        application(operations, Pipeline(None), [Route("/x", forgotten)])
