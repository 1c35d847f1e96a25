"""Nodes of other machines: who was invited, and who came.

An invite is good once and for a while. Only its hash is kept. Whoever redeems it does so with a key of its
own, and from then on that key is the node; the invite is worth nothing to anybody else. A node that comes
back is known by its key from memory, so that a store that is away keeps nobody out.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa

from groundswell.model.errors import BadRequest, Conflict, NotFound, Unauthorized
from groundswell.model.node import NAME
from groundswell.store.schema import invites, joined_nodes
from groundswell.store.sql import Store

NODE_ID: Final = re.compile(NAME)
NODES_MAX: Final = 16_384  # As many as a dispatcher remembers.
INVITES_MAX: Final = 10_000
EXPIRES_MAX_S: Final = 30 * 86_400.0


class JoinedNodes:
    """Made by ``load``."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._by_key: dict[str, str] = {}
        self._banned_until_s: dict[str, float] = {}

    async def load(self) -> None:
        """Read who has joined before."""
        query = sa.select(joined_nodes.c.public_key, joined_nodes.c.node_id)
        rows = await self._store.read(lambda c: c.execute(query).all())
        self._by_key = {row.public_key: row.node_id for row in rows}

    def ids(self) -> list[str]:
        """The nodes that have joined."""
        return sorted(self._by_key.values())

    async def invite(self, node_id: str, expires_s: float) -> bytes:
        """The secret of a new invite for a node of this id.

        Raises ``BadRequest`` for an unfit id or time, ``Conflict`` for an id that has joined."""
        if not NODE_ID.fullmatch(node_id):
            raise BadRequest("A node's id is 1 to 64 of a-z, 0-9, '.', '_' and '-'.", param="node")
        if not 1.0 <= expires_s <= EXPIRES_MAX_S:
            raise BadRequest(f"expires_s must be from 1 to {EXPIRES_MAX_S:.0f}.", param="expires_s")
        if node_id in self._by_key.values():
            raise Conflict(f"There is a node {node_id!r} already.", code="node_exists", param="node")
        secret = secrets.token_bytes(16)
        now_ms = int(self._clock() * 1000)
        row = {
            "digest": _digest(secret), "node_id": node_id, "created_ms": now_ms,
            "expires_ms": now_ms + int(expires_s * 1000),
        }  # fmt: skip
        await self._store.write(lambda c: self._insert(c, row, now_ms))
        return secret

    async def admit(self, key: str, invite: str) -> str:
        """The id of the node that has this key, now or by its invite. Raises ``Unauthorized``."""
        node_id = self._by_key.get(key)
        if node_id is not None and self._clock() < self._banned_until_s.get(node_id, 0.0):
            raise Unauthorized("This node is shut out for a while.", code="node_banned")
        if node_id is None:
            try:
                digest = _digest(bytes.fromhex(invite))
            except ValueError:
                digest = ""
            node_id = await self._store.write(lambda c: self._redeem(c, key, digest))
            if node_id is None:
                raise Unauthorized("This invite is not valid, or no longer.", code="invalid_invite")
            self._by_key[key] = node_id
        return node_id

    async def remove(self, node_id: str) -> None:
        """Forget a node and its key. Raises ``NotFound``."""
        statement = joined_nodes.delete().where(joined_nodes.c.node_id == node_id)
        if not await self._store.write(lambda c: c.execute(statement).rowcount):
            raise NotFound(f"There is no node {node_id!r}.", code="engine_not_found", param="id")
        self._by_key = {key: one for key, one in self._by_key.items() if one != node_id}

    def ban(self, node_id: str, for_s: float) -> None:
        """Keep a node out for a while. A restart of the gateway forgets it."""
        now_s = self._clock()
        self._banned_until_s = {one: end for one, end in self._banned_until_s.items() if end > now_s}
        self._banned_until_s[node_id] = now_s + for_s

    def _insert(self, connection: sa.Connection, row: dict[str, object], now_ms: int) -> None:
        connection.execute(invites.delete().where(invites.c.expires_ms < now_ms))
        if (connection.scalar(sa.select(sa.func.count()).select_from(invites)) or 0) >= INVITES_MAX:
            raise Conflict(f"There are already {INVITES_MAX} invites.", code="too_many_invites")
        connection.execute(invites.insert().values(row))

    def _redeem(self, connection: sa.Connection, key: str, digest: str) -> str | None:
        """In one transaction with all others: of two that redeem the same invite, one finds it used."""
        now_ms = int(self._clock() * 1000)
        query = sa.select(invites.c.node_id).where(
            invites.c.digest == digest, invites.c.used_by.is_(None), invites.c.expires_ms >= now_ms
        )
        node_id = connection.scalar(query)
        known = sa.or_(joined_nodes.c.node_id == node_id, joined_nodes.c.public_key == key)
        if node_id is None or connection.execute(sa.select(joined_nodes.c.node_id).where(known)).first():
            return None
        count = connection.scalar(sa.select(sa.func.count()).select_from(joined_nodes)) or 0
        if count >= NODES_MAX:
            raise Conflict(f"There are already {NODES_MAX} nodes.", code="too_many_nodes")
        connection.execute(invites.update().where(invites.c.digest == digest).values(used_by=key))
        connection.execute(joined_nodes.insert().values(node_id=node_id, public_key=key, created_ms=now_ms))
        return str(node_id)


def _digest(secret: bytes) -> str:
    """It is 128 bits of chance, so a plain hash of it can be looked up and never guessed."""
    return hashlib.sha256(secret).hexdigest()
