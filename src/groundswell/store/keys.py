"""API keys: shown once, kept as an HMAC, looked up by it; scopes, expiry, revocation.

A key reads ``gsw_`` + 32 characters of chance + 8 of a keyed check. The check is what makes guessing cheap to
refuse: a string that this deployment did not mint is turned away without asking the store. What is stored is
HMAC-SHA-256 of the whole key under a secret that lies in a file beside the database, so that neither the
database nor the secret alone lets anyone in, and the time that a look-up takes says nothing about the key.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import hmac
import os
import secrets
import string
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from groundswell.model.errors import BadRequest, Forbidden, NotFound
from groundswell.store.schema import api_keys
from groundswell.store.sql import Store

PREFIX = "gsw_"
CHANCE_CHARACTERS = 32  # 190 bits.
CHECK_CHARACTERS = 8
KEY_CHARACTERS = len(PREFIX) + CHANCE_CHARACTERS + CHECK_CHARACTERS
ALPHABET = string.ascii_letters + string.digits
STALE_S = 1.0  # How long a key revoked by another process may still be let in.
REFRESH_S = (
    0.5  # From then on the store is asked again, beside the requests, so that none has to wait for it.
)
CACHED_KEYS_MAX = 10_000
NAME_CHARACTERS_MAX = 128


class Scope(enum.StrEnum):
    """What a key may be used for."""

    INFERENCE = "inference"
    VIDEO = "video"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a valid key speaks for."""

    key_id: str
    tenant: str
    scopes: frozenset[Scope]
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is listed; the key itself is not known any more."""

    id: str
    tenant: str
    name: str
    scopes: frozenset[Scope]
    last4: str
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    parent_id: str | None = None


class Miss(enum.Enum):
    """``find_cached`` does not know; ask ``find``."""

    MISS = 0


MISS = Miss.MISS


class KeyRing:
    """Mints, finds, lists and revokes keys. ``find_cached`` is for the hot path: no waiting, ~2 µs.

    Both what is found and what is known to be invalid are remembered for ``STALE_S``, at most
    ``CACHED_KEYS_MAX`` keys; what this process revokes is forgotten at once. A key in constant use is asked
    for again before that time is over: under load an answer of the store takes many times what a request
    takes, and all the key's requests would wait for it every second.
    """

    def __init__(
        self,
        store: Store,
        secret: bytes,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._secret = hmac.digest(secret, b"api-key", "sha256")
        self._check_secret = hmac.digest(secret, b"api-key-check", "sha256")
        self._clock = clock
        self._monotonic = monotonic
        # By a digest under a key of this process alone, quicker than the stored one; no key lies in memory.
        self._mark_secret = secrets.token_bytes(32)
        self._cache: OrderedDict[bytes, tuple[float, Principal | None]] = OrderedDict()
        self._asked: dict[bytes, asyncio.Future[Principal | None]] = {}

    def find_cached(self, token: str) -> Principal | Literal[Miss.MISS] | None:
        """The principal of a valid key, None for an invalid one, MISS when the store must be asked."""
        mark = self._mark(token)
        entry = self._cache.get(mark)
        age_s = STALE_S if entry is None else self._monotonic() - entry[0]
        if entry is None or age_s >= STALE_S:
            return MISS if self._is_ours(token) else None
        principal = entry[1]
        if principal is None or (principal.expires_ms is not None and principal.expires_ms <= self._now_ms()):
            return None
        if age_s >= REFRESH_S:
            self._asking(token, mark)
        return principal

    async def find(self, token: str) -> Principal | None:
        """The principal of a valid key; None when it is wrong, expired or revoked.

        Of many that ask for one key at once, one asks the store."""
        known = self.find_cached(token)
        if known is not MISS:
            return known
        # Who gives up does not take the answer from the others.
        return await asyncio.shield(self._asking(token, self._mark(token)))

    def _asking(self, token: str, mark: bytes) -> asyncio.Future[Principal | None]:
        """The one question to the store about this key that is under way."""
        asked = self._asked.get(mark)
        if asked is None:
            asked = self._asked[mark] = asyncio.ensure_future(self._ask(token, mark))
            asked.add_done_callback(lambda done: self._answered(mark, done))
        return asked

    async def _ask(self, token: str, mark: bytes) -> Principal | None:
        digest, asked_s = self._digest(token), self._monotonic()
        row = await self._store.read(lambda c: c.execute(_by_digest, {"digest": digest}).one_or_none())
        principal = self._valid(row) if row is not None else None
        if mark not in self._asked:
            return principal  # Something was revoked meanwhile: not to be remembered.
        self._cache[mark] = (asked_s, principal)
        self._cache.move_to_end(mark)
        while len(self._cache) > CACHED_KEYS_MAX:
            self._cache.popitem(last=False)
        return principal

    def _answered(self, mark: bytes, done: asyncio.Future[Principal | None]) -> None:
        if self._asked.get(mark) is done:
            del self._asked[mark]
        if not done.cancelled():
            done.exception()  # Each who asked has it; without any it is not worth a warning.

    async def create(
        self,
        tenant: str,
        name: str,
        scopes: Iterable[Scope | str],
        expires_s: float | None = None,
        minter: Principal | None = None,
    ) -> tuple[str, ApiKey]:
        """Mint a key; the token is returned this once. ``expires_s`` counts from now.

        With a ``minter`` the new key has no scope, tenant or life that the minter has not: ``Forbidden``.
        Without one (the command line on the gateway's own machine) anything goes.
        """
        wanted = _checked(tenant, name, scopes, expires_s)
        now_ms = self._now_ms()
        expires_ms = None if expires_s is None else now_ms + int(expires_s * 1000)
        if minter is not None:
            expires_ms = _within(minter, tenant, wanted, expires_ms)
        token = self._mint()
        key = ApiKey(
            f"key_{secrets.token_hex(8)}", tenant, name, wanted, token[-4:], now_ms, expires_ms,
            parent_id=minter.key_id if minter is not None else None,
        )  # fmt: skip
        digest = self._digest(token)
        await self._store.write(lambda c: _insert(c, key, digest))
        return token, key

    async def list(self, tenant: str | None = None, limit: int = 100) -> list[ApiKey]:
        """Newest first; all tenants when none is named."""
        query = sa.select(api_keys).order_by(api_keys.c.created_ms.desc(), api_keys.c.id).limit(limit)
        if tenant is not None:
            query = query.where(api_keys.c.tenant == tenant)
        rows = await self._store.read(lambda c: c.execute(query).all())
        return [_api_key(row) for row in rows]

    async def revoke(self, key_id: str, tenant: str | None = None) -> int:
        """Revoke a key and every key minted with it, at once here and within ``STALE_S`` elsewhere.

        Returns how many were revoked now. Raises ``NotFound`` for an id that (this tenant) does not have.
        """
        revoked = await self._store.write(lambda c: _revoke(c, key_id, tenant, self._now_ms()))
        self._cache.clear()
        self._asked.clear()
        return revoked

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _digest(self, token: str) -> str:
        return hmac.digest(self._secret, token.encode(), "sha256").hex()

    def _mark(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode(), key=self._mark_secret, digest_size=16).digest()

    def _check(self, body: str) -> str:
        return hmac.digest(self._check_secret, body.encode(), "sha256").hex()[:CHECK_CHARACTERS]

    def _mint(self) -> str:
        body = PREFIX + "".join(secrets.choice(ALPHABET) for _ in range(CHANCE_CHARACTERS))
        return body + self._check(body)

    def _is_ours(self, token: str) -> bool:
        """Whether this deployment minted the token, as far as its check tells."""
        if len(token) != KEY_CHARACTERS or not token.isascii() or not token.startswith(PREFIX):
            return False
        return hmac.compare_digest(self._check(token[:-CHECK_CHARACTERS]), token[-CHECK_CHARACTERS:])

    def _valid(self, row: sa.Row[Any]) -> Principal | None:
        key = _api_key(row)
        if key.revoked_ms is not None or (key.expires_ms is not None and key.expires_ms <= self._now_ms()):
            return None
        return Principal(key.id, key.tenant, key.scopes, key.expires_ms)


def load_secret(folder: Path, purpose: str) -> bytes:
    """The 32-byte secret for one purpose, made at first use: ``folder/purpose.secret``, mode 0600.

    Of two processes that make it at once, both get the first one's.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{purpose}.secret"
    if not path.exists():
        draft = folder / f".{purpose}.{secrets.token_hex(8)}"
        write_private(draft, secrets.token_bytes(32))
        try:
            os.link(draft, path)  # Fails when another was first, and never shows a half-written file.
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    secret = path.read_bytes()
    if len(secret) != 32:
        raise ValueError(f"the secret for {purpose} is damaged: {len(secret)} bytes instead of 32")
    return secret


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read, and bring it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


_by_digest = sa.select(api_keys).where(api_keys.c.digest == sa.bindparam("digest"))


def _checked(
    tenant: str, name: str, scopes: Iterable[Scope | str], expires_s: float | None
) -> frozenset[Scope]:
    for value, param in ((tenant, "tenant"), (name, "name")):
        if not 0 < len(value) <= NAME_CHARACTERS_MAX or not value.isprintable():
            raise BadRequest(f"{param} must be 1 to {NAME_CHARACTERS_MAX} printable characters.", param=param)
    try:
        wanted = frozenset(Scope(scope) for scope in scopes)
    except ValueError:
        raise BadRequest(f"scopes must be of: {', '.join(Scope)}.", param="scopes") from None
    if not wanted:
        raise BadRequest("A key needs at least one scope.", param="scopes")
    if expires_s is not None and not 0 < expires_s <= 100 * 365 * 86_400:
        raise BadRequest("The expiry must lie in the future, within 100 years.", param="expires")
    return wanted


def _within(minter: Principal, tenant: str, scopes: frozenset[Scope], expires_ms: int | None) -> int | None:
    """The new key's expiry, when all that it asks for is the minter's to give."""
    if not scopes <= minter.scopes:
        raise Forbidden("A key cannot have scopes that the key which mints it lacks.", param="scopes")
    if tenant != minter.tenant and Scope.ADMIN not in minter.scopes:
        raise Forbidden("A key for another tenant needs the admin scope.", param="tenant")
    if minter.expires_ms is None:
        return expires_ms
    if expires_ms is not None and expires_ms > minter.expires_ms:
        raise Forbidden("A key cannot outlive the key which mints it.", param="expires")
    return expires_ms or minter.expires_ms


def _insert(connection: Connection, key: ApiKey, digest: str) -> None:
    if key.parent_id is not None:
        # Asked again here: the parent may have been revoked since it was found.
        parent = connection.execute(sa.select(api_keys).where(api_keys.c.id == key.parent_id)).one_or_none()
        if parent is None or parent.revoked_ms is not None:
            raise Forbidden("The key which mints this one is no longer valid.")
    connection.execute(
        api_keys.insert().values(
            id=key.id, digest=digest, tenant=key.tenant, name=key.name, scopes=" ".join(sorted(key.scopes)),
            last4=key.last4, parent_id=key.parent_id, created_ms=key.created_ms, expires_ms=key.expires_ms,
        )
    )  # fmt: skip


def _revoke(connection: Connection, key_id: str, tenant: str | None, now_ms: int) -> int:
    query = sa.select(api_keys.c.id).where(api_keys.c.id == key_id)
    if tenant is not None:
        query = query.where(api_keys.c.tenant == tenant)
    if connection.execute(query).one_or_none() is None:
        raise NotFound("No such key.", code="key_not_found")
    family = sa.select(api_keys.c.id).where(api_keys.c.id == key_id).cte(recursive=True)
    family = family.union(sa.select(api_keys.c.id).where(api_keys.c.parent_id == family.c.id))
    open_keys = (
        api_keys.c.id.in_(list(connection.scalars(sa.select(family)))),
        api_keys.c.revoked_ms.is_(None),
    )
    return connection.execute(api_keys.update().where(*open_keys).values(revoked_ms=now_ms)).rowcount


def _api_key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(
        row.id, row.tenant, row.name, frozenset(Scope(scope) for scope in row.scopes.split()), row.last4,
        row.created_ms, row.expires_ms, row.revoked_ms, row.parent_id,
    )  # fmt: skip
