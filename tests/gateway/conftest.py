"""A gateway on a real socket before scripted works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from scripted_works import Gateway, Ring, Script, node_views

from groundswell.gateway.app import Operations, application
from groundswell.gateway.openai import TextPaths
from groundswell.gateway.origins import Origins
from groundswell.gateway.pipeline import Pipeline
from groundswell.gateway.protocol import Limits
from groundswell.gateway.server import Server


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
def hold_s() -> float:
    return 10.0


@pytest.fixture
async def gateway(limits: Limits, hold_s: float) -> AsyncIterator[Gateway]:
    script, seen, ring = Script(), [], Ring()
    pipeline = Pipeline(ring, Origins(["https://app.example"]))
    text = TextPaths(script, pipeline, body_bytes_max=64 << 10, hold_s=hold_s, observe=seen.append)
    views = node_views()

    async def add(body: dict[str, Any]) -> dict[str, Any]:
        return {"id": "node-2", **body}

    async def remove(_node_id: str) -> None:
        return None

    operations = Operations(lambda: views, lambda: 3, lambda: (b"metric 1\n", "text/plain"), add, remove, add)
    app = application(operations, pipeline, observe=seen.append)
    server = Server(app, text.paths, limits=limits, drain_s=2)
    gateway = Gateway(server, await server.start(), script, seen, ring)
    gateway.views, gateway.text = views, text
    yield gateway
    await server.stop()


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """The gateway runs on uvloop; flow control and disconnects differ, so the protocol is tried on both."""
    factories = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    if item.path.name != "test_protocol.py":
        del factories["asyncio"]
    return factories
