"""``groundswell version``."""

from __future__ import annotations

import platform

import typer

import groundswell
from groundswell.cli.screen import say


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def version() -> None:
        """Print the version, of Groundswell and of Python."""
        python = f"Python {platform.python_version()}, {platform.machine()}"
        say(f"groundswell {groundswell.__version__} ({python})")
