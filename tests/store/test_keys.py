"""Keys are shown once, found quickly, die when revoked, and never give more than their maker had."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hand_clock import HandClock

from groundswell.model.errors import BadRequest, Forbidden, NotFound
from groundswell.store import keys
from groundswell.store.keys import MISS, REFRESH_S, STALE_S, KeyRing, Principal, Scope, load_secret
from groundswell.store.sql import Store

SECRET = b"s" * 32
ALL = (Scope.INFERENCE, Scope.VIDEO, Scope.ADMIN)


@pytest.fixture
def ring(store: Store, clock: HandClock) -> KeyRing:
    return KeyRing(store, SECRET, clock, clock)


async def test_a_key_speaks_for_its_tenant_with_its_scopes(ring: KeyRing) -> None:
    """The first use asks the store, the next ones do not."""
    token, key = await ring.create("acme", "laptop", ["inference", "video"])
    assert ring.find_cached(token) is MISS
    principal = await ring.find(token)
    assert principal == Principal(key.id, "acme", frozenset({Scope.INFERENCE, Scope.VIDEO}))
    assert ring.find_cached(token) == principal
    [listed] = await ring.list("acme")
    assert (listed.name, listed.last4) == ("laptop", token[-4:])


async def test_many_that_ask_for_one_key_at_once_ask_the_store_once(
    ring: KeyRing, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each second a busy key is looked up again; that must be one query and not one for each open request."""
    token, key = await ring.create("acme", "laptop", ALL)
    asked = 0
    read = store.read

    async def counted(function: Any) -> Any:
        nonlocal asked
        asked += 1
        return await read(function)

    monkeypatch.setattr(store, "read", counted)
    found = await asyncio.gather(*(ring.find(token) for _ in range(50)))
    assert {one.key_id if one else None for one in found} == {key.id}
    assert asked == 1


async def test_a_key_revoked_while_it_is_looked_up_is_not_remembered(ring: KeyRing, store: Store) -> None:
    """The answer was true when the store gave it; a second later it must not let anyone in."""
    token, key = await ring.create("acme", "laptop", ALL)
    asking = asyncio.ensure_future(ring.find(token))
    await asyncio.sleep(0)
    await ring.revoke(key.id)
    await asking
    assert await ring.find(token) is None


async def test_the_key_itself_is_nowhere_in_the_files(ring: KeyRing, store: Store, tmp_path: Path) -> None:
    """Whoever steals the database or a backup must not be able to use the keys in it."""
    token, _ = await ring.create("acme", "laptop", ALL)
    store.close()
    files = list((tmp_path / "data").iterdir())
    assert any(b"laptop" in path.read_bytes() for path in files), "this is where keys are kept"
    for path in files:
        assert token.encode() not in path.read_bytes()
        assert token[4:20].encode() not in path.read_bytes()


@pytest.mark.parametrize("place", [3, 4, 20, -9, -8, -1])
async def test_a_guess_is_refused_without_asking_the_store(ring: KeyRing, store: Store, place: int) -> None:
    """A million guesses must not become a million queries, and a near miss is as wrong as any other."""
    token, _ = await ring.create("acme", "laptop", ALL)
    store.close()
    other = "a" if token[place] != "a" else "b"
    guess = token[:place] + other + token[place + 1 :] if place != -1 else token[:-1] + other
    for wrong in (guess, "", "gsw_", token + "x", "gsw_" + "é" * 40, "sk-" + token):
        assert ring.find_cached(wrong) is None
        assert await ring.find(wrong) is None


async def test_a_key_of_another_deployment_is_refused(ring: KeyRing, store: Store) -> None:
    """The secret beside the database is part of every key."""
    token, _ = await KeyRing(store, b"t" * 32).create("acme", "laptop", ALL)
    assert await ring.find(token) is None


async def test_a_revoked_key_is_dead_at_once_here_and_within_a_second_elsewhere(
    ring: KeyRing, store: Store, clock: HandClock
) -> None:
    """Revoking is for emergencies: the bound is a promise."""
    other = KeyRing(store, SECRET, clock, clock)
    token, key = await ring.create("acme", "laptop", ALL)
    assert await other.find(token) is not None
    assert await ring.revoke(key.id) == 1
    assert await ring.find(token) is None
    clock.now_s += STALE_S
    assert other.find_cached(token) is MISS
    assert await other.find(token) is None
    assert await ring.revoke(key.id) == 0
    with pytest.raises(NotFound):
        await ring.revoke("key_unknown")
    with pytest.raises(NotFound):
        await ring.revoke(key.id, tenant="other")


async def test_requests_with_a_key_in_use_never_wait_for_the_store(
    ring: KeyRing, store: Store, clock: HandClock
) -> None:
    """Under load its answer takes long; that the key was revoked elsewhere is found out all the same."""
    other = KeyRing(store, SECRET, clock, clock)
    token, key = await ring.create("acme", "laptop", ALL)
    principal = await other.find(token)
    for _ in range(5):
        clock.now_s += REFRESH_S
        assert other.find_cached(token) == principal
        await _questions_to_the_store()
    await ring.revoke(key.id)
    clock.now_s += REFRESH_S
    assert other.find_cached(token) == principal
    await _questions_to_the_store()
    assert other.find_cached(token) is None


async def _questions_to_the_store() -> None:
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))


async def test_a_key_minted_with_a_key_dies_with_it(ring: KeyRing) -> None:
    """Otherwise a stolen key could outlive its own revocation through its children."""
    token, _ = await ring.create("acme", "root", ALL)
    root = await ring.find(token)
    child_token, _ = await ring.create("acme", "child", ALL, minter=root)
    child = await ring.find(child_token)
    grandchild_token, _ = await ring.create("acme", "grandchild", ["video"], minter=child)
    assert root is not None
    assert await ring.revoke(root.key_id) == 3
    assert await ring.find(child_token) is None
    assert await ring.find(grandchild_token) is None
    with pytest.raises(Forbidden):
        await ring.create("acme", "too late", ["video"], minter=child)


async def test_a_key_expires_also_while_it_is_remembered(ring: KeyRing, clock: HandClock) -> None:
    """The cache must not prolong a life."""
    token, _ = await ring.create("acme", "short", ALL, expires_s=0.5)
    assert await ring.find(token) is not None
    clock.now_s += 0.5
    assert ring.find_cached(token) is None
    clock.now_s += STALE_S
    assert await ring.find(token) is None


async def test_a_key_never_gives_more_than_its_maker_has(ring: KeyRing) -> None:
    """Scope, tenant and life: the three ways to climb."""
    token, _ = await ring.create("acme", "limited", ["inference"], expires_s=100)
    minter = await ring.find(token)
    with pytest.raises(Forbidden):
        await ring.create("acme", "wider", ["inference", "video"], minter=minter)
    with pytest.raises(Forbidden):
        await ring.create("other", "elsewhere", ["inference"], minter=minter)
    with pytest.raises(Forbidden):
        await ring.create("acme", "longer", ["inference"], expires_s=101, minter=minter)
    _, child = await ring.create("acme", "same", ["inference"], minter=minter)
    assert minter is not None
    assert (child.expires_ms, child.parent_id) == (minter.expires_ms, minter.key_id)


@pytest.mark.parametrize(
    ("tenant", "name", "scopes", "expires_s", "param"),
    [
        ("", "n", ["video"], None, "tenant"),
        ("t" * 129, "n", ["video"], None, "tenant"),
        ("t", "a\r\nb", ["video"], None, "name"),
        ("t", "n", [], None, "scopes"),
        ("t", "n", ["root"], None, "scopes"),
        ("t", "n", ["video"], 0, "expires"),
        ("t", "n", ["video"], float("nan"), "expires"),
    ],
)
async def test_unfit_wishes_are_named(
    ring: KeyRing, tenant: str, name: str, scopes: list[str], expires_s: float | None, param: str
) -> None:
    """The client hears which field is wrong."""
    with pytest.raises(BadRequest) as caught:
        await ring.create(tenant, name, scopes, expires_s)
    assert caught.value.param == param


async def test_what_is_remembered_is_bounded(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant with many keys must not fill the memory."""
    monkeypatch.setattr(keys, "CACHED_KEYS_MAX", 3)
    tokens = [(await ring.create("acme", f"key {i}", ALL))[0] for i in range(5)]
    for token in tokens:
        await ring.find(token)
    assert [ring.find_cached(token) is MISS for token in tokens] == [True, True, False, False, False]


async def test_sql_in_a_name_is_only_a_name(ring: KeyRing, store: Store) -> None:
    """Everything that a client says is a parameter, never a part of a statement."""
    name = "x'); DROP TABLE api_keys; --"
    await ring.create(name, name, ALL)
    assert [key.name for key in await ring.list(name)] == [name]
    assert await store.read(lambda c: c.scalar(sa.text("SELECT count(*) FROM api_keys"))) == 1


def test_each_purpose_has_a_secret_of_its_own_that_only_the_owner_can_read(tmp_path: Path) -> None:
    """A secret that leaks from one use must not open another."""
    folder = tmp_path / "secrets"
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: load_secret(folder, "keys"), range(8)))
    assert len(made) == 1
    assert load_secret(folder, "urls") not in made
    assert sorted(path.name for path in folder.iterdir()) == ["keys.secret", "urls.secret"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_damaged_secret_is_not_taken_for_one(tmp_path: Path) -> None:
    """A short secret would be a weak one, and a new one would lock everybody out without a word."""
    load_secret(tmp_path, "keys")
    (tmp_path / "keys.secret").write_bytes(b"short")
    with pytest.raises(ValueError, match="damaged"):
        load_secret(tmp_path, "keys")
