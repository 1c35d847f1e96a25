"""A machine that is a node of somebody else's gateway: its credentials, its engines, its wire."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from groundswell import __version__
from groundswell.bus import certificate
from groundswell.bus.door import token_of
from groundswell.bus.invite import read
from groundswell.bus.nats import Login, NatsWire, node_wire
from groundswell.bus.nkeys import Key
from groundswell.config import Config, Node
from groundswell.core.agent import Agent
from groundswell.model.errors import BadRequest, UpstreamError
from groundswell.node.runtime import EngineSpec, NodeRuntime
from groundswell.store.keys import write_private
from groundswell.store.nodes import AddedEngine
from groundswell.wiring import fleet

_log = logging.getLogger(__name__)

CONNECT_S: Final = 15.0
DRAIN_S: Final = 30.0


class Membership(msgspec.Struct, frozen=True):
    """What makes this machine a certain node. It lies in one file that only its owner can read."""

    host: str
    port: int
    node_id: str
    seed: bytes
    certificate: str
    invite: str = ""

    @classmethod
    async def enter(cls, config: Config, text: str | None) -> Membership:
        """By an invite, or as the node that this machine is already.

        Raises ``BadRequest`` for no or a wrong invite, ``UpstreamError`` when the gateway cannot be reached
        or is another one than the invite's."""
        path = _path(config)
        if text is None:
            if not path.exists():
                raise BadRequest(
                    "This machine has not joined yet; `groundswell invite` on the gateway's machine prints "
                    "an invite.", code="not_joined",
                )  # fmt: skip
            return msgspec.json.decode(path.read_bytes(), type=cls)
        invite = read(text)
        pem = await certificate.fetch(invite.host, invite.port, invite.fingerprint)
        membership = cls(
            invite.host, invite.port, invite.node_id, secrets.token_bytes(32), pem, invite.secret.hex()
        )
        membership._save(path)  # First, so that no key is lost that the gateway knows already.
        await membership._redeem()
        membership = msgspec.structs.replace(membership, invite="")
        membership._save(path)
        return membership

    @asynccontextmanager
    async def node(self, config: Config, urls: Sequence[str], *, local: bool) -> AsyncIterator[NodeRuntime]:
        """Run the node until the block ends; then drain. Connections that break are made again, for ever."""
        specs, slots = _engines(config, urls, local=local)
        end, wire = node_wire(self._login(), self.node_id, __version__)
        agent = Agent(self.node_id, int(time.time() * 1000), slots)
        runtime = NodeRuntime(agent, specs, end)
        wire.start()
        runtime.start()
        if not await wire.up_within(CONNECT_S):
            _log.warning("the gateway cannot be reached yet; trying on", extra={"host": self.host})
        try:
            yield runtime
        finally:
            await runtime.stop(DRAIN_S)
            await wire.close()

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".node.{secrets.token_hex(8)}")
        write_private(draft, msgspec.json.encode(self))
        draft.replace(path)

    async def _redeem(self) -> None:
        """Come in once with the invite: from then on the key is enough."""
        end_wire = _visit(self._login())
        end_wire.start()
        try:
            if not await end_wire.up_within(CONNECT_S):
                raise UpstreamError(
                    "The gateway does not let this machine in. An invite works once, and not for long: ask "
                    "for another.", code="invalid_invite",
                )  # fmt: skip
        finally:
            await end_wire.close()

    def _login(self) -> Login:
        options = {**token_of(Key(self.seed), self.invite), "tls_handshake_first": True}
        return Login(
            (f"tls://{_literal(self.host)}:{self.port}",), options, certificate.trusting(self.certificate)
        )


def _visit(login: Login) -> NatsWire:
    """A connection that says nothing."""
    _, wire = node_wire(login, "visitor")
    wire.end.subjects = ()
    return wire


def _path(config: Config) -> Path:
    return config.folder / "node.json"


def _literal(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _engines(config: Config, urls: Sequence[str], *, local: bool) -> tuple[list[EngineSpec], dict[str, int]]:
    """What this machine offers: engines of the settings as one node's, and servers that run already."""
    ours = tuple({one.kind: one for node in config.nodes for one in node.engines}.values()) if local else ()
    node = Node(id="local", engines=ours)
    specs, slots = fleet.local_specs(node, config), fleet.slots(node)
    servers = [fleet.configured(engine, config) for engine in config.engines]
    servers += [AddedEngine(_name(url), fleet.checked_url(url), price=config.prices.price()) for url in urls]
    for server in servers:
        specs.append(EngineSpec(server.id, partial(fleet.adapter_of, server), url=server.url))
        slots[server.id] = server.slots or 0
    if not specs:
        raise BadRequest("There is no engine to offer; name one with --url.", code="no_engine", param="url")
    return specs, slots


def _name(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}-{parts.port or parts.scheme}"
