"""Engines that were added are remembered with their keys, and the keys stay out of sight."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundswell.model.errors import BadRequest, Conflict, NotFound
from groundswell.model.money import Price
from groundswell.store.nodes import AddedEngine, AddedEngines
from groundswell.store.sql import Store

BOX = AddedEngine(
    "box", "http://box:11434", key="sk-canary-0123456789", aliases={"small": "llama3.2:1b"},
    price=Price(1, 2, 3), slots=4, fingerprint="f",
)  # fmt: skip


@pytest.fixture
def engines(store: Store, tmp_path: Path) -> AddedEngines:
    return AddedEngines(store, tmp_path / "secrets")


async def test_an_engine_is_remembered_as_it_was_given(engines: AddedEngines, store: Store) -> None:
    """What the operator typed once must work again after a restart."""
    added = await engines.add(BOX)
    assert [added] == await engines.list()
    assert (added.url, added.key, added.aliases) == (BOX.url, BOX.key, BOX.aliases)
    assert (added.price, added.slots, added.fingerprint) == (BOX.price, BOX.slots, BOX.fingerprint)
    await engines.remove("box")
    assert await engines.list() == []
    with pytest.raises(NotFound):
        await engines.remove("box")


async def test_its_key_is_in_one_private_file_only(
    engines: AddedEngines, store: Store, tmp_path: Path
) -> None:
    """Other people's keys must not turn up in logs, backups of the database, or after removal."""
    added = await engines.add(BOX)
    assert "canary" not in repr(added)
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]
    assert len(holding) == 1
    assert holding[0].stat().st_mode & 0o777 == 0o600
    await engines.remove("box")
    assert not holding[0].exists()
    await engines.add(AddedEngine("box", "http://box:11434"))
    assert (await engines.get("box")).key is None


async def test_an_id_or_url_is_there_once(engines: AddedEngines) -> None:
    """The same engine twice would be counted as twice the capacity."""
    await engines.add(BOX)
    for twin in (AddedEngine("box", "http://else", key="other"), AddedEngine("box2", BOX.url)):
        with pytest.raises(Conflict):
            await engines.add(twin)
    assert (await engines.get("box")).key == BOX.key


@pytest.mark.parametrize("engine_id", ["", "../x", "A", "a/b", "a" * 65, "-a"])
async def test_an_id_is_fit_for_a_file_name(engines: AddedEngines, engine_id: str) -> None:
    """The id names the file of the key."""
    with pytest.raises(BadRequest):
        await engines.add(AddedEngine(engine_id, "http://box"))
