"""A real NATS server's users for tests: a gateway, and nodes with the permissions that nodes get."""

from __future__ import annotations

from typing import Any

from groundswell.bus.nats import Login
from groundswell.bus.server import NatsServer
from groundswell.bus.subjects import gateway_permissions, node_permissions


def users(*node_ids: str) -> dict[str, Any]:
    """The server's settings."""
    nodes = [
        {"user": node_id, "password": "secret", "permissions": node_permissions(node_id)}
        for node_id in node_ids
    ]
    gateway = {"user": "gateway", "password": "secret", "permissions": gateway_permissions()}
    return {"authorization": {"users": [gateway, *nodes]}}


def login(server: NatsServer, user: str) -> Login:
    """How one of them logs in."""
    return Login((f"nats://127.0.0.1:{server.port}",), {"user": user, "password": "secret"})
