"""Engines that were added by their URL, and the keys to them, which lie in files of mode 0600."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from groundswell.model.errors import BadRequest, Conflict, NotFound
from groundswell.model.money import Price
from groundswell.model.node import NAME
from groundswell.store.keys import write_private
from groundswell.store.schema import engines as engine_table
from groundswell.store.sql import Store

ADDED_ENGINES_MAX = 10_000
ENGINE_ID = re.compile(NAME)


@dataclass(frozen=True, slots=True)
class AddedEngine:
    """An engine given by its URL. ``aliases`` maps public model names to the engine's own; ``slots`` None
    means: as the probe finds; so does an empty ``fingerprint``. The key stays out of ``repr``, so that no log
    shows it."""

    id: str
    url: str
    key: str | None = field(default=None, repr=False)
    aliases: Mapping[str, str] = field(default_factory=dict)
    price: Price = Price()
    slots: int | None = None
    fingerprint: str = ""
    created_ms: int = 0


class AddedEngines:
    """The list of added engines. ``secrets_folder`` holds their keys."""

    def __init__(self, store: Store, secrets_folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._folder = secrets_folder
        self._clock = clock

    async def add(self, engine: AddedEngine) -> AddedEngine:
        """Keep an engine. Raises ``BadRequest`` for an unfit id, ``Conflict`` for an id or URL in use."""
        if not ENGINE_ID.fullmatch(engine.id):
            raise BadRequest("An engine's id is 1 to 64 of a-z, 0-9, '.', '_' and '-'.", param="id")
        row = {
            "id": engine.id, "url": engine.url, "aliases": dict(engine.aliases), "slots": engine.slots,
            "fingerprint": engine.fingerprint,
            "price_input_nano": engine.price.input_nano, "price_output_nano": engine.price.output_nano,
            "price_pixel_nano": engine.price.pixel_nano, "created_ms": int(self._clock() * 1000),
        }  # fmt: skip
        await self._store.write(lambda c: self._insert(c, row, engine.key))
        return await self.get(engine.id)

    async def list(self) -> list[AddedEngine]:
        """All of them with their keys, oldest first."""
        query = sa.select(engine_table).order_by(engine_table.c.created_ms, engine_table.c.id)
        return [self._engine(row) for row in await self._store.read(lambda c: c.execute(query).all())]

    async def get(self, engine_id: str) -> AddedEngine:
        """Raises ``NotFound`` (``engine_not_found``)."""
        query = sa.select(engine_table).where(engine_table.c.id == engine_id)
        row = await self._store.read(lambda c: c.execute(query).one_or_none())
        if row is None:
            raise NotFound("No such engine.", code="engine_not_found")
        return self._engine(row)

    async def remove(self, engine_id: str) -> None:
        """Forget an engine and its key. Raises ``NotFound`` (``engine_not_found``)."""
        statement = engine_table.delete().where(engine_table.c.id == engine_id)
        if await self._store.write(lambda c: c.execute(statement).rowcount) == 0:
            raise NotFound("No such engine.", code="engine_not_found")
        self._key_path(engine_id).unlink(missing_ok=True)

    def _insert(self, connection: sa.Connection, row: dict[str, Any], key: str | None) -> None:
        same = sa.or_(engine_table.c.id == row["id"], engine_table.c.url == row["url"])
        if connection.execute(sa.select(engine_table.c.id).where(same)).first() is not None:
            raise Conflict("An engine with this id or URL is already there.", code="engine_exists")
        if (
            connection.scalar(sa.select(sa.func.count()).select_from(engine_table)) or 0
        ) >= ADDED_ENGINES_MAX:
            raise Conflict(f"There are already {ADDED_ENGINES_MAX} engines.", code="too_many_engines")
        connection.execute(engine_table.insert().values(row))
        # The file comes before the commit: an engine is never there without its key, while a key that is
        # left over from a failed commit harms nobody and is replaced by the next.
        self._key_path(row["id"]).unlink(missing_ok=True)
        if key is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self._folder / f".engine.{secrets.token_hex(8)}"
            write_private(draft, key.encode())
            draft.replace(self._key_path(row["id"]))

    def _key_path(self, engine_id: str) -> Path:
        return self._folder / f"engine-{engine_id}.key"

    def _engine(self, row: sa.Row[Any]) -> AddedEngine:
        key = None
        with contextlib.suppress(FileNotFoundError):
            key = self._key_path(row.id).read_text()
        price = Price(row.price_input_nano, row.price_output_nano, row.price_pixel_nano)
        return AddedEngine(
            row.id, row.url, key, row.aliases, price, row.slots, row.fingerprint, row.created_ms
        )
