"""Usage: one row for each work that ended, settled once, in whole units and whole nano-dollars."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from groundswell.model.errors import GroundswellError
from groundswell.model.money import Price, Usage, cost_nano
from groundswell.model.value import value
from groundswell.model.work import ENDED, WorkState
from groundswell.store.schema import usage as usage_table
from groundswell.store.sql import Store

_LENGTHS = {
    column.name: column.type.length
    for column in usage_table.columns
    if isinstance(column.type, sa.String) and column.type.length is not None
}
_LENGTH_MIN = min(_LENGTHS.values())  # What is no longer than this fits everywhere.
_INTEGERS = frozenset({int})
AMOUNT_MAX = 2**63 - 1  # What the database's integers hold.
FLUSH_S = 0.25  # A kill may cost the usage rows of this long; well inside the promised second.
GROUP_ROWS_MAX = 500
STATEMENT_ROWS = 50  # In one statement; 999 values is the least that a build of SQLite may be limited to.
WAITING_ROWS_MAX = 100_000  # About 50 MB while the disk is full; beyond it the oldest are given up.


@value
class UsageRow:
    """What one work used and cost. ``cost_nano`` is computed at settlement from the frozen price."""

    work_id: str
    tenant: str
    key_id: str
    kind: str
    model: str
    created_ms: int
    node_id: str = ""
    engine_id: str = ""
    usage: Usage = Usage()
    price: Price = Price()
    state: WorkState = WorkState.DONE
    attempts: int = 1
    continued: int = 0
    cost_nano: int = field(init=False)

    def __post_init__(self) -> None:
        usage, price = self.usage, self.price
        cost = cost_nano(usage, price)
        object.__setattr__(self, "cost_nano", cost)
        amounts = (
            usage.input_tokens, usage.output_tokens, usage.pixels, usage.media_ms, price.input_nano,
            price.output_nano, price.pixel_nano, cost, self.attempts, self.continued,
        )  # fmt: skip
        if not _INTEGERS.issuperset(map(type, amounts)):
            raise ValueError("amounts are whole numbers")
        if min(amounts) < 0 or max(amounts) > AMOUNT_MAX:
            raise ValueError("an amount is negative or beyond 2^63")
        if self.state not in ENDED:
            raise ValueError("only a work that has ended is settled")
        names = (self.work_id, self.tenant, self.key_id, self.model, self.node_id, self.engine_id, self.kind)
        if max(map(len, names)) > _LENGTH_MIN:
            self._check_lengths()

    def _check_lengths(self) -> None:
        for name, length in _LENGTHS.items():
            if len(getattr(self, name)) > length:
                raise ValueError(f"{name} is longer than {length} characters")


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over settled works. ``group`` is the value that was grouped by, such as a key's id."""

    group: str
    works: int
    usage: Usage
    cost_nano: int


def settle(connection: Connection, row: UsageRow) -> bool:
    """Write the row unless the work was settled before; False then, and nothing is changed."""
    try:
        with connection.begin_nested():
            connection.execute(_insert, _values(row))
    except sa.exc.IntegrityError:
        if _is_settled(connection, row.work_id):
            return False
        raise
    return True


def settle_all(connection: Connection, rows: Sequence[UsageRow]) -> int:
    """Settle many; returns how many were new. One statement when, as usual, none was settled before."""
    try:
        with connection.begin_nested():
            # Straight to the driver: what SQLAlchemy does for each row costs more than the database.
            for at in range(0, len(rows), STATEMENT_ROWS):
                connection.exec_driver_sql(*_insertion(connection.dialect, rows[at : at + STATEMENT_ROWS]))
    except sa.exc.IntegrityError:
        return sum(settle(connection, row) for row in rows)
    return len(rows)


async def totals(
    store: Store,
    by: str,
    *,
    tenant: str | None = None,
    since_ms: int = 0,
    until_ms: int = AMOUNT_MAX,
    limit: int = 1000,
) -> list[Total]:
    """Sums by ``tenant``, ``key_id``, ``model``, ``kind`` or ``node_id``, dearest first.

    The period is since <= created < until, in milliseconds since 1970.
    """
    if by not in ("tenant", "key_id", "model", "kind", "node_id"):
        raise ValueError(f"usage is not summed by {by}")
    columns = usage_table.c
    sums = [
        sa.func.sum(columns[name])
        for name in ("input_tokens", "output_tokens", "pixels", "media_ms", "cost_nano")
    ]
    query = (
        sa.select(columns[by], sa.func.count(), *sums)
        .where(columns.created_ms >= since_ms, columns.created_ms < until_ms)
        .group_by(columns[by])
        .order_by(sums[-1].desc(), columns[by])
        .limit(limit)
    )
    if tenant is not None:
        query = query.where(columns.tenant == tenant)
    rows = await store.read(lambda c: c.execute(query).all())
    return [
        Total(group, works, Usage(*map(int, amounts[:4])), int(amounts[4])) for group, works, *amounts in rows
    ]


class Settler:
    """Settles the hot path's usage in groups, without making a stream wait for the disk.

    While the store cannot write (disk full), rows wait, up to ``WAITING_ROWS_MAX``; ``lost`` counts what had
    to be given up after that.
    """

    def __init__(self, store: Store) -> None:
        self.lost = 0
        self._store = store
        self._waiting: list[UsageRow] = []
        self._writing: list[UsageRow] = []
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._failed: BaseException | None = None

    def add(self, row: UsageRow) -> None:
        """Take a row; it is on the disk within about ``FLUSH_S`` (call on the event loop)."""
        if len(self._waiting) >= WAITING_ROWS_MAX:
            self._waiting.pop(0)
            self.lost += 1
        self._waiting.append(row)
        if len(self._waiting) >= GROUP_ROWS_MAX and self._failed is None:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Hand what is waiting to the writer now, unless a group is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing or not self._waiting:
            return
        rows, self._waiting = self._waiting[:GROUP_ROWS_MAX], self._waiting[GROUP_ROWS_MAX:]
        self._writing = rows
        self._idle.clear()
        loop = asyncio.get_running_loop()
        try:
            self._store.write_soon(
                lambda connection: settle_all(connection, rows),
                lambda error, _: loop.call_soon_threadsafe(self._written, error),
            )
        except Exception as error:
            self._written(error)

    def _written(self, error: BaseException | None) -> None:
        """The group is on the disk, or goes back to the head of the queue for another try."""
        self._failed = error
        if isinstance(error, GroundswellError):
            self._waiting[:0] = self._writing
        elif error is not None:  # A defect: trying again would hold up all that comes after.
            self.lost += len(self._writing)
        self._writing = []
        self._idle.set()
        if self._waiting and self._timer is None:
            delay_s = FLUSH_S if error is not None else 0.0
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.flush)

    async def close(self) -> None:
        """Write everything that waits. Raises the store's error when that is not possible."""
        while self._waiting or self._writing:
            self.flush()
            await self._idle.wait()
            if self._failed is not None:
                raise self._failed
        if self._timer is not None:
            self._timer.cancel()


_insert = usage_table.insert()  # Made once, so that its compiled form is found again.


def _insertion(dialect: sa.Dialect, rows: Sequence[UsageRow]) -> tuple[str, Any]:
    """A statement that writes these rows, as the driver wants it, and its values.

    All rows in one statement where the driver takes values in order: SQLite's lets go of the interpreter at
    each one and gets it back only when the event loop pauses."""
    statement, one, order = _compiled(dialect)
    if not order:
        return statement + one, [_values(row) for row in rows]
    in_order = itemgetter(*order)
    values = tuple(chain.from_iterable([in_order(_values(row)) for row in rows]))
    return statement + ", ".join([one] * len(rows)), values


@lru_cache(2)
def _compiled(dialect: sa.Dialect) -> tuple[str, str, Sequence[str]]:
    """The insertion up to its values, one row of placeholders, and the order of those without names."""
    compiled = _insert.compile(dialect=dialect)
    head, values, one = str(compiled).partition("VALUES ")
    return head + values, one, getattr(compiled, "positiontup", None) or ()


def _is_settled(connection: Connection, work_id: str) -> bool:
    query = sa.select(usage_table.c.work_id).where(usage_table.c.work_id == work_id)
    return connection.execute(query).one_or_none() is not None


def _values(row: UsageRow) -> dict[str, Any]:
    return {
        "work_id": row.work_id, "tenant": row.tenant, "key_id": row.key_id, "kind": row.kind,
        "model": row.model, "node_id": row.node_id, "engine_id": row.engine_id,
        "input_tokens": row.usage.input_tokens, "output_tokens": row.usage.output_tokens,
        "pixels": row.usage.pixels, "media_ms": row.usage.media_ms,
        "price_input_nano": row.price.input_nano, "price_output_nano": row.price.output_nano,
        "price_pixel_nano": row.price.pixel_nano, "cost_nano": row.cost_nano, "state": str(row.state),
        "attempts": row.attempts, "continued": row.continued, "created_ms": row.created_ms,
    }  # fmt: skip
