"""Usage is settled once, in whole numbers, and the sums are exact."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from groundswell.model.money import Price, Usage, cost_nano
from groundswell.model.work import WorkState
from groundswell.store import ledger
from groundswell.store.ledger import (
    AMOUNT_MAX,
    STATEMENT_ROWS,
    Settler,
    Total,
    UsageRow,
    settle,
    settle_all,
    totals,
)
from groundswell.store.sql import Store


def row(work_id: str, tokens: int = 10, **change: Any) -> UsageRow:
    values: dict[str, Any] = {
        "work_id": work_id, "tenant": "acme", "key_id": "key_1", "kind": "chat", "model": "m",
        "created_ms": 1000, "usage": Usage(tokens, 2 * tokens), "price": Price(1_000_000, 2_000_000),
    }  # fmt: skip
    return UsageRow(**{**values, **change})


async def count(store: Store) -> int:
    return await store.read(lambda c: c.scalar(sa.text("SELECT count(*) FROM usage")) or 0)


async def test_a_work_is_settled_once_however_many_try(store: Store) -> None:
    """Two settlements of one work would be a double charge."""
    attempts = [store.write(lambda c: settle(c, row("w"))) for _ in range(64)]
    assert sum(await asyncio.gather(*attempts)) == 1
    assert await count(store) == 1


async def test_a_group_with_one_that_was_settled_keeps_the_others(store: Store) -> None:
    """After a crash the same rows may come again, together with new ones."""
    await store.write(lambda c: settle(c, row("a")))
    assert await store.write(lambda c: settle_all(c, [row("a"), row("b"), row("c")])) == 2
    assert await count(store) == 3


@pytest.mark.parametrize("size", [1, STATEMENT_ROWS, STATEMENT_ROWS + 1, 3 * STATEMENT_ROWS - 1])
async def test_each_row_of_a_group_is_written_as_it_is_whatever_its_size(store: Store, size: int) -> None:
    """A group is cut into statements of many rows each; none may be lost or mixed with another there."""
    rows = [row(f"w{i}", tokens=i, model=f"m{i}", attempts=i + 1) for i in range(size)]
    assert await store.write(lambda c: settle_all(c, rows)) == size
    query = sa.text(
        "SELECT work_id, model, input_tokens, output_tokens, cost_nano, attempts, state FROM usage"
    )
    written = {tuple(one) for one in await store.read(lambda c: c.execute(query).all())}
    assert written == {
        (f"w{i}", f"m{i}", i, 2 * i, cost_nano(one.usage, one.price), i + 1, "done")
        for i, one in enumerate(rows)
    }


async def test_the_database_itself_refuses_negative_money(store: Store) -> None:
    """A defect above must not be able to pay somebody for using the service."""
    await store.write(lambda c: settle(c, row("w")))
    for column in ("cost_nano", "input_tokens", "price_pixel_nano"):
        statement = sa.text(f"UPDATE usage SET {column} = -1")
        with pytest.raises(sa.exc.IntegrityError):
            await store.write(lambda c, s=statement: c.execute(s))


@pytest.mark.parametrize(
    "change",
    [
        {"usage": Usage(-1)},
        {"usage": Usage(1.5)},  # type: ignore[arg-type]
        {"usage": Usage(AMOUNT_MAX + 1)},
        {"usage": Usage(AMOUNT_MAX), "price": Price(AMOUNT_MAX)},
        {"attempts": True},
        {"state": WorkState.RUNNING},
        {"model": "m" * 300},
    ],
)
def test_amounts_that_no_work_can_have_are_refused(change: dict[str, Any]) -> None:
    """Negative, broken, overflowing or unfinished: none of it may reach the ledger."""
    with pytest.raises(ValueError):
        row("w", **change)


async def test_sums_are_by_what_was_asked_for(store: Store) -> None:
    """A tenant's bill shows its own works, of its period only."""
    rows = [
        row("1"), row("2", tokens=30), row("3", model="other"), row("4", tenant="else"),
        row("5", created_ms=5000),
    ]  # fmt: skip
    await store.write(lambda c: settle_all(c, rows))
    by_model = await totals(store, "model", tenant="acme", until_ms=5000)
    assert by_model == [Total("m", 2, Usage(40, 80), 200), Total("other", 1, Usage(10, 20), 50)]
    assert [total.group for total in await totals(store, "tenant", since_ms=5000)] == ["acme"]
    with pytest.raises(ValueError):
        await totals(store, "work_id; DROP TABLE usage")


async def test_the_settler_writes_in_groups_and_all_of_it_before_it_closes(store: Store) -> None:
    """A stream must not wait for the disk, and a clean stop must not lose what was used."""
    commits: list[int] = []
    store.on_commit = lambda _seconds, operations: commits.append(operations)
    settler = Settler(store)
    for i in range(1200):
        settler.add(row(f"w{i}"))
    await settler.close()
    assert await count(store) == 1200
    assert len(commits) <= 4


async def test_the_settler_writes_without_being_asked(store: Store) -> None:
    """At most a second of usage may be lost in a kill."""
    committed = asyncio.Event()
    loop = asyncio.get_running_loop()
    store.on_commit = lambda _seconds, _operations: loop.call_soon_threadsafe(committed.set)
    settler = Settler(store)
    settler.add(row("w"))
    await asyncio.wait_for(committed.wait(), timeout=5)
    assert await count(store) == 1
    await settler.close()


async def test_usage_outlives_a_disk_that_cannot_be_written_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not give work away, nor fill the memory."""
    monkeypatch.setattr(ledger, "WAITING_ROWS_MAX", 5)
    raw = store._engine.raw_connection()
    assert raw.driver_connection is not None
    raw.driver_connection.execute("PRAGMA query_only=ON")
    raw.close()
    settler = Settler(store)
    for i in range(7):
        settler.add(row(f"w{i}"))
    with pytest.raises(Exception, match="read-only"):
        await settler.close()
    raw = store._engine.raw_connection()
    assert raw.driver_connection is not None
    raw.driver_connection.execute("PRAGMA query_only=OFF")
    raw.close()
    await settler.close()
    assert (await count(store), settler.lost) == (5, 2)


amounts = st.integers(0, 10**12)
usages = st.builds(Usage, amounts, amounts, amounts, amounts)
prices = st.builds(Price, st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**6))
works = st.lists(st.tuples(st.integers(0, 5), usages, prices), max_size=12)


@settings(max_examples=15, deadline=None)
@given(works)
def test_any_order_of_settlements_gives_the_sum_of_the_first_of_each(
    order: list[tuple[int, Usage, Price]],
) -> None:
    """Repeats and races change nothing: the first settlement counts, to the nano-dollar."""
    first: dict[int, int] = {}
    for number, usage, price in order:
        first.setdefault(number, cost_nano(usage, price))

    async def play(store: Store) -> int:
        for number, usage, price in order:
            wanted = row(str(number), usage=usage, price=price)
            await store.write(lambda c, wanted=wanted: settle(c, wanted))
        return sum(total.cost_nano for total in await totals(store, "tenant"))

    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(f"sqlite:///{folder}/groundswell.db")
        try:
            assert asyncio.run(play(store)) == sum(first.values())
        finally:
            store.close()
