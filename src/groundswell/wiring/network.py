"""A gateway that is open to other machines: its NATS server, its door, its end of the link."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from groundswell import __version__
from groundswell.bus import certificate
from groundswell.bus.door import ACCOUNT, Door
from groundswell.bus.gateway_end import GatewayEnd
from groundswell.bus.invite import Invite
from groundswell.bus.links import Links
from groundswell.bus.memory import MemoryGatewayLink
from groundswell.bus.nats import Login, gateway_wire
from groundswell.bus.nkeys import ACCOUNT as ISSUER
from groundswell.bus.nkeys import Key, name_of
from groundswell.bus.server import NatsServer
from groundswell.bus.subjects import gateway_permissions
from groundswell.config import Config
from groundswell.model.errors import BadRequest, Conflict, InternalError
from groundswell.store.joined import JoinedNodes
from groundswell.store.keys import load_secret

_log = logging.getLogger(__name__)

AGAIN_S: Final = 1.0
BAN_S: Final = 300.0
UP_S: Final = 10.0
INVITE_S: Final = 3600.0
INVITE_FIELDS: Final = frozenset({"node", "expires_s"})


class Network:
    """Nodes on other machines. ``link`` reaches them and those of this process."""

    def __init__(self, config: Config, memory: MemoryGatewayLink, joined: JoinedNodes) -> None:
        self._config = config
        self._joined = joined
        self._folder = config.folder / "network"
        self._pem = ""
        self._server: NatsServer
        self._door: Door
        self._end: GatewayEnd
        self._memory = memory
        self.link: Links

    @classmethod
    @asynccontextmanager
    async def running(
        cls, config: Config, memory: MemoryGatewayLink, joined: JoinedNodes
    ) -> AsyncIterator[Network]:
        """Open it until the block ends. Raises ``InternalError`` when it cannot be."""
        network = cls(config, memory, joined)
        async with AsyncExitStack() as stack:
            await network._open(stack)
            yield network

    async def invite(self, request: dict[str, Any]) -> dict[str, Any]:
        """An invite, as ``POST /v1/invites`` asks. Raises ``BadRequest`` or ``Conflict``."""
        for name in request:
            if name not in INVITE_FIELDS:
                raise BadRequest(f"Unknown field {name!r}.", code="unknown_field", param=name)
        node_id = request.get("node", f"node-{secrets.token_hex(3)}")
        expires_s = request.get("expires_s", INVITE_S)
        if not isinstance(node_id, str):
            raise BadRequest("node must be a name.", param="node")
        if type(expires_s) not in (int, float):
            raise BadRequest("expires_s must be a number of seconds.", param="expires_s")
        if self._memory.has(node_id):
            raise Conflict(f"There is a node {node_id!r} already.", code="node_exists", param="node")
        secret = await self._joined.invite(node_id, float(expires_s))
        host, _ = _address(self._config)
        invite = Invite(host, self._server.port, node_id, secret, certificate.fingerprint(self._pem))
        return {"object": "invite", "node": node_id, "expires_s": expires_s, "invite": invite.text()}

    async def remove(self, node_id: str) -> bool:
        """Forget a node that joined and end its connection. False when there is none of this id."""
        if node_id not in self._joined.ids():
            return False
        await self._joined.remove(node_id)
        self._door.show_out(node_id)
        self._end.expel(node_id)
        return True

    async def _open(self, stack: AsyncExitStack) -> None:
        await self._joined.load()
        host, port = _address(self._config)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        paths = self._folder / "server.pem", self._folder / "server.key"
        if not all(path.exists() for path in paths):
            certificate.make(host, *paths)
        self._pem = paths[0].read_text()
        issuer = Key(load_secret(self._config.folder, "network"), ISSUER)
        passwords = {name: secrets.token_urlsafe(32) for name in ("gateway", "door", "system")}
        self._server = NatsServer(self._folder, _settings(issuer.name, passwords, *paths), host=_bind(host))
        await self._server.start(port)
        stack.push_async_callback(self._server.stop)
        keeping = asyncio.create_task(self._keep())
        stack.callback(keeping.cancel)

        def login(user: str) -> Login:
            options = {"user": user, "password": passwords[user], "tls_handshake_first": True}
            return Login((f"tls://127.0.0.1:{self._server.port}",), options, certificate.trusting(self._pem))

        # A new one each time: a gateway that was started anew holds nothing of its earlier life.
        gateway_id = f"g{secrets.token_hex(6)}"
        self._end, wire = gateway_wire(login("gateway"), gateway_id, __version__, self._flooded)
        self._door = Door(login("door"), login("system"), issuer, self._admit, self._end.lost)
        stack.push_async_callback(self._door.close)
        self.link = Links(self._memory, self._end)
        stack.push_async_callback(wire.close)
        wire.start()
        if not await self._door.open(UP_S) or not await wire.up_within(UP_S):
            raise InternalError("The network does not come up.", code="nats_server_failed")

    async def _admit(self, key: str, invite: str) -> str:
        node_id = await self._joined.admit(key, invite)
        self._end.welcome(node_id)
        return node_id

    def _flooded(self, node_id: str) -> None:
        """A node that floods us is out, and stays out for a while."""
        self._joined.ban(node_id, BAN_S)
        self._door.show_out(node_id)

    async def _keep(self) -> None:
        """Start the server again when it ends; all who were connected come back by themselves."""
        port = self._server.port
        while True:
            await self._server.ended()
            _log.error("nats-server has ended; starting it again")
            try:
                await self._server.start(port)
            except InternalError as error:
                _log.error("nats-server does not start", extra={"reason": error.message})
                await asyncio.sleep(AGAIN_S)


def _address(config: Config) -> tuple[str, int]:
    """Host and port under which other machines reach us."""
    host, _, port = config.network.open.rpartition(":") if _has_port(config.network.open) else (
        config.network.open, "", ""
    )  # fmt: skip
    return host.strip("[]"), int(port) if port else config.network.port


def _has_port(address: str) -> bool:
    """Whether it ends in a port; an IPv6 address has colons of its own."""
    return address.count(":") == 1 or "]:" in address


def _bind(host: str) -> str:
    return "::" if ":" in host else "0.0.0.0"  # noqa: S104  # To be open is what was asked for.


def _settings(issuer: str, passwords: dict[str, str], pem: Path, key: Path) -> dict[str, Any]:
    """The server's, in its own words."""

    def user(name: str, **more: Any) -> dict[str, Any]:
        return {"user": name, "password": passwords[name], **more}

    return {
        "accounts": {
            ACCOUNT: {"users": [user("gateway", permissions=gateway_permissions())]},
            # The key that nobody has makes the server send a nonce, which nodes sign.
            "DOOR": {"users": [user("door"), {"nkey": name_of(secrets.token_bytes(32))}]},
            "SYSTEM": {"users": [user("system")]},
        },
        "system_account": "SYSTEM",
        "authorization": {
            "timeout": 5,
            "auth_callout": {"issuer": issuer, "account": "DOOR", "auth_users": list(passwords)},
        },
        "tls": {"cert_file": str(pem), "key_file": str(key), "handshake_first": True, "timeout": 5},
    }
