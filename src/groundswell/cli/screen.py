"""How the command line speaks: rich on a terminal, plain unwrapped text on a pipe; errors say what to do."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

# A pipe gets no colour, no cursor movement, and lines as long as they are: other programs read them.
out = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
err = Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)


def say(text: str = "", style: str | None = None) -> None:
    """One line. Text is shown as it is: square brackets in it are no markup."""
    out.print(text, style=style, markup=False)


def table(headings: list[str], rows: list[list[Any]]) -> None:
    """A table on a terminal; tab-separated lines with a heading on a pipe."""
    if not out.is_terminal:
        for row in [headings, *rows]:
            say("\t".join(str(cell) for cell in row))
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(*(_escape(str(cell)) for cell in row))
    out.print(grid)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
