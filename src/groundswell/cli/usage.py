"""``groundswell usage``: what was used and what it cost, from the store of this machine's gateway."""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from groundswell.cli.screen import say, table
from groundswell.cli.settings import settings
from groundswell.model.money import dollars

if TYPE_CHECKING:
    from groundswell.store.ledger import Total

DAY_MS = 86_400_000


class By(StrEnum):
    """What sums are made for."""

    TENANT = "tenant"
    KEY = "key"
    MODEL = "model"
    KIND = "kind"
    NODE = "node"


COLUMNS = {By.KEY: "key_id", By.NODE: "node_id"}  # Where the store's word is another one.


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def usage(
        by: Annotated[By, typer.Option(help="What the sums are for.")] = By.TENANT,
        days: Annotated[int, typer.Option(help="So many days back from now.", min=1, max=36_500)] = 30,
        tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    ) -> None:
        """Show what was used and what it cost, dearest first, with or without a running gateway.

        \b
          groundswell usage --by model --days 1
        """
        totals = asyncio.run(_totals(by, int(time.time() * 1000) - days * DAY_MS, tenant))
        if not totals:
            say(f"Nothing was used in the last {days} days.")
            return
        headings = [by.value, "works", "input tokens", "output tokens", "pixels", "cost"]
        table(headings, [_row(total) for total in totals])


async def _totals(by: By, since_ms: int, tenant: str | None) -> list[Total]:
    from groundswell.store.ledger import totals
    from groundswell.wiring import open_store

    async with open_store(settings.config) as store:
        return await totals(store, COLUMNS.get(by, by.value), tenant=tenant, since_ms=since_ms)


def _row(total: Total) -> list[object]:
    used = total.usage
    cost = dollars(total.cost_nano)
    return [total.group, total.works, used.input_tokens, used.output_tokens, used.pixels, cost]
