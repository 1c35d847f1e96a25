"""How the command line speaks: rich on a terminal, plain unwrapped text on a pipe; errors say what to do."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# A pipe gets no colour, no cursor movement, and lines as long as they are: other programs read them.
out = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)


def say(text: str = "", style: str | None = None) -> None:
    """One line. Text is shown as it is: square brackets in it are no markup."""
    if out.is_terminal:
        out.print(text, style=style, markup=False)
    else:
        paste(text)


def paste(text: str) -> None:
    """Text to be copied or read by a program. A terminal may fold it on the screen, but no line break gets
    into it and no tab becomes spaces, as both would with rich."""
    print(text, flush=True)


def piece(text: str) -> None:
    """A piece of a model's answer, as it comes. Control characters do not reach a terminal: a model must not
    be able to move its cursor."""
    if out.is_terminal:
        text = "".join(one for one in text if one.isprintable() or one in "\n\t")
    print(text, end="", flush=True)


def table(headings: list[str], rows: list[list[Any]]) -> None:
    """A table on a terminal; tab-separated lines with a heading on a pipe."""
    if not out.is_terminal:
        for row in [headings, *rows]:
            paste("\t".join(str(cell) for cell in row))
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    out.print(grid)
