"""What outlives the process: the store and what is kept in it, opened and closed in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from groundswell.config import Config
from groundswell.store.blobs import Blobs
from groundswell.store.jobs import Jobs
from groundswell.store.joined import JoinedNodes
from groundswell.store.keys import KeyRing, load_secret
from groundswell.store.ledger import Settler
from groundswell.store.nodes import AddedEngines
from groundswell.store.sql import Store


@dataclass(frozen=True, slots=True)
class State:
    """The durable side of a gateway."""

    store: Store
    keys: KeyRing
    jobs: Jobs
    blobs: Blobs
    settler: Settler
    engines: AddedEngines
    joined: JoinedNodes


@asynccontextmanager
async def open_state(config: Config) -> AsyncIterator[State]:
    """Open everything that a gateway keeps; it owns the database until the end.

    Raises ``Conflict`` (``store_in_use``) when another gateway does."""
    folder = config.folder
    store = Store.open(config.database_url)
    try:
        store.own()
        settler = Settler(store)
        yield State(
            store,
            KeyRing(store, load_secret(folder, "keys")),
            Jobs(store, open_jobs_max=config.queue.jobs),
            Blobs(folder / "blobs", config.limits.blobs_bytes),
            settler,
            AddedEngines(store, folder / "secrets"),
            JoinedNodes(store),
        )
        await settler.close()
    finally:
        store.close()


@asynccontextmanager
async def open_store(config: Config) -> AsyncIterator[Store]:
    """Only the store, beside a gateway that may be running."""
    store = Store.open(config.database_url)
    try:
        yield store
    finally:
        store.close()


@asynccontextmanager
async def open_keys(config: Config) -> AsyncIterator[KeyRing]:
    """Only the keys, beside a gateway that may be running."""
    async with open_store(config) as store:
        yield KeyRing(store, load_secret(config.folder, "keys"))
