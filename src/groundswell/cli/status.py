"""``groundswell status``: what the nodes are doing, live."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from groundswell.cli.client import Client
from groundswell.cli.nodes import HEADINGS, rows
from groundswell.cli.profile import need_profile
from groundswell.cli.screen import out, say, table
from groundswell.cli.settings import settings

REFRESH_S = 1.0


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def status(
        once: Annotated[
            bool, typer.Option("--once", help="Print one picture and end; so on a pipe in any case.")
        ] = False,
    ) -> None:
        """Show nodes, engines and load; refreshes each second until Ctrl-C."""
        client = Client(need_profile(settings.config.folder))
        answer = client.call("GET", "/v1/nodes")
        if once or not out.is_terminal:
            say(_summary(answer))
            table(HEADINGS, [row for node in answer["data"] for row in rows(node)])
            return
        try:
            with Live(_picture(answer), console=out, auto_refresh=False) as live:
                while True:
                    time.sleep(REFRESH_S)
                    live.update(_picture(client.call("GET", "/v1/nodes")), refresh=True)
        except KeyboardInterrupt:
            return


def _summary(answer: dict[str, Any]) -> str:
    running = sum(engine["running"] for node in answer["data"] for engine in node["engines"])
    return f"{len(answer['data'])} nodes, {answer['queued']} queued, {running} running"


def _picture(answer: dict[str, Any]) -> Table:
    grid = Table(title=_summary(answer), box=None, pad_edge=False, title_justify="left", header_style="bold")
    for heading in HEADINGS:
        grid.add_column(heading)
    for node in answer["data"]:
        for row in rows(node):
            grid.add_row(*(Text(str(cell)) for cell in row))
    return grid
