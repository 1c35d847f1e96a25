"""Who comes in: the server asks about each connection, and a gateway answers (NATS calls it auth callout).

A node proves its key by signing the server's nonce, so that nothing which can be overheard lets anybody in.
What it shows besides, once, is its invite. Whether key and invite are good is the store's to say (``admit``);
the answer is a token that binds the connection to the subjects of that one node.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.msg import Msg

from groundswell.bus.nats import Login, NatsWire
from groundswell.bus.nkeys import Key, claims_of, signed_by
from groundswell.bus.records import Malformed
from groundswell.bus.subjects import node_permissions
from groundswell.model.errors import GroundswellError

_log = logging.getLogger(__name__)

ACCOUNT: Final = "NODES"  # Where nodes and gateways meet.
KNOCKS_MAX: Final = 256  # At a time; who is not answered comes again.
KICK_S: Final = 2.0
INSIDE_MAX: Final = 65_536
SUBSCRIPTIONS_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Knock:
    """A connection that wants in. ``key`` is proved."""

    server_id: str
    connection: int
    user: str
    key: str
    invite: str


def knock_of(data: bytes) -> Knock:
    """What the server asks. Raises ``Malformed`` also when the key was not proved."""
    claims = claims_of(data)
    try:
        asked = claims["nats"]
        shown = asked["connect_opts"]
        key, _, invite = str(shown["auth_token"]).partition(".")
        knock = Knock(asked["server_id"]["id"], asked["client_info"]["id"], asked["user_nkey"], key, invite)
        proved = signed_by(key, shown["sig"], asked["client_info"]["nonce"].encode())
    except (TypeError, LookupError, AttributeError):
        raise Malformed("a connection without a key") from None
    if not proved:
        raise Malformed("a connection whose key was not proved")
    return knock


def admission(knock: Knock, node_id: str, issuer: Key) -> bytes:
    """The answer that lets a node in, to its own subjects and no others."""
    allowed = node_permissions(node_id)
    user = issuer.token({
        "sub": knock.user, "aud": ACCOUNT, "name": node_id,
        "nats": {
            "type": "user", "version": 2, "pub": allowed["publish"], "sub": allowed["subscribe"],
            "subs": SUBSCRIPTIONS_MAX, "data": -1, "payload": -1,
        },
    })  # fmt: skip
    return _answer(knock, issuer, jwt=user.decode())


def refusal(knock: Knock, reason: str, issuer: Key) -> bytes:
    """The answer that keeps it out."""
    return _answer(knock, issuer, error=reason)


def _answer(knock: Knock, issuer: Key, **said: str) -> bytes:
    return issuer.token({
        "sub": knock.user, "aud": knock.server_id,
        "nats": {"type": "authorization_response", "version": 2, **said},
    })  # fmt: skip


class Door:
    """Answers the server, and shows out who is no longer welcome.

    ``admit(key, invite)`` gives the node's id or raises ``GroundswellError``; ``on_gone(node_id)`` hears of
    each node whose connection has ended. ``asked`` logs in where the server asks, ``system`` where it tells
    what happens and takes orders.
    """

    subjects = ("$SYS.REQ.USER.AUTH",)

    def __init__(
        self,
        asked: Login,
        system: Login,
        issuer: Key,
        admit: Callable[[str, str], Awaitable[str]],
        on_gone: Callable[[str], None],
    ) -> None:
        self._issuer = issuer
        self._admit = admit
        self._on_gone = on_gone
        self._doing: set[asyncio.Task[None]] = set()
        self._inside: OrderedDict[str, Knock] = OrderedDict()
        self._wire = _AskedWire(asked, self)
        self._system = NatsWire(system, lambda publish, now_s: _Ended(self.ended))

    async def open(self, timeout_s: float) -> bool:
        """Begin to answer; whether it does, in this time."""
        self._wire.start()
        self._system.start()
        return await self._wire.up_within(timeout_s) and await self._system.up_within(timeout_s)

    async def close(self) -> None:
        await asyncio.gather(self._wire.close(), self._system.close())

    def show_out(self, node_id: str) -> None:
        """End the node's connection. It can knock again, and is then answered anew."""
        knock = self._inside.pop(node_id, None)
        if knock is not None:
            self._do(self._kick(knock))

    def knocked(self, data: bytes, reply: str) -> None:
        """The server asks about a connection."""
        if len(self._doing) < KNOCKS_MAX:
            self._do(self._answer(data, reply))

    def ended(self, server_id: str, connection: int) -> None:
        """The server tells of a connection that has ended. A node may be back on another one already."""
        for node_id, knock in self._inside.items():
            if (knock.server_id, knock.connection) == (server_id, connection):
                del self._inside[node_id]
                self._on_gone(node_id)
                return

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _kick(self, knock: Knock) -> None:
        client = self._system.client
        order = json.dumps({"cid": knock.connection}).encode()
        try:
            if client is None:
                raise nats.errors.ConnectionClosedError
            # The server obeys only who wants an answer.
            await client.request(f"$SYS.REQ.SERVER.{knock.server_id}.KICK", order, timeout=KICK_S)
        except (nats.errors.Error, TimeoutError) as error:
            _log.warning("a connection could not be ended", extra={"reason": str(error) or "timeout"})

    async def _answer(self, data: bytes, reply: str) -> None:
        try:
            knock = knock_of(data)
        except Malformed as error:
            _log.warning("a connection was refused", extra={"reason": str(error)})
            return  # The server refuses it by itself.
        try:
            node_id = await self._admit(knock.key, knock.invite)
        except GroundswellError as error:
            _log.warning("a node was refused", extra={"key": knock.key, "reason": error.code})
            self._wire.publish(reply, refusal(knock, error.message, self._issuer))
            return
        before = self._inside.get(node_id)
        if before is not None and before.server_id == knock.server_id:
            self.show_out(node_id)  # One connection a node: of two, both would run what is offered to one.
        self._inside[node_id] = knock
        if len(self._inside) > INSIDE_MAX:
            self._inside.popitem(last=False)
        self._wire.publish(reply, admission(knock, node_id, self._issuer))


class _Silent:
    """An end that only speaks."""

    subjects: tuple[str, ...] = ()

    def received(self, subject: str, data: bytes) -> None:
        pass

    def connected(self) -> None:
        pass

    def beat(self) -> None:
        pass


class _Ended(_Silent):
    """Hears of connections that have ended: a killed process is known at once, not when it is missed."""

    subjects = (f"$SYS.ACCOUNT.{ACCOUNT}.DISCONNECT",)

    def __init__(self, ended: Callable[[str, int], None]) -> None:
        self._ended = ended

    def received(self, subject: str, data: bytes) -> None:
        told = msgspec.json.decode(data)
        self._ended(told["server"]["id"], told["client"]["id"])


class _AskedWire(NatsWire):
    """A wire whose messages want an answer."""

    def __init__(self, login: Login, door: Door) -> None:
        super().__init__(login, lambda publish, now_s: _Silent())
        self._door = door
        self.end.subjects = door.subjects

    async def _received(self, message: Msg) -> None:
        self._door.knocked(message.data, message.reply)


def token_of(key: Key, invite: str = "") -> dict[str, Any]:
    """How a node logs in: options of nats-py's ``connect``. The invite is needed the first time only."""
    return {
        "token": f"{key.name}.{invite}" if invite else key.name,
        "signature_cb": lambda nonce: base64.b64encode(key.sign(nonce.encode())),
    }
