"""The command line. Each file is one family of commands; this one joins them and turns errors into words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from groundswell.cli.settings import settings
from groundswell.model.errors import GroundswellError

HELP = """Turn any set of computers into one elastic service for generative AI and video.

Start with `groundswell up`: a gateway, three nodes, a real chat answer and a real transcode on this machine.
Then add your own engines with `groundswell nodes add http://box:11434`.
"""


def application() -> typer.Typer:
    """All commands."""
    # Here and not at the top of the file: whoever imports one family does not pay for the others.
    from groundswell.cli import chat, doctor, jobs, join, keys, nodes, service, status, usage, version

    app = typer.Typer(
        help=HELP,
        callback=_options,
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
    )
    for family in (service, join, chat, jobs, nodes, keys, usage, status, doctor, version):
        family.register(app)
    return app


def _options(
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with settings; also GROUNDSWELL_CONFIG.", envvar="GROUNDSWELL_CONFIG"),
    ] = None,
) -> None:
    settings.path = config


def main(started_s: float) -> int:
    """Run the command line; the exit status. Errors are one sentence on stderr, never a stack.

    ``started_s`` is when the process began, by ``time.monotonic``."""
    settings.started_s = started_s
    try:
        result: Any = application()(standalone_mode=False, prog_name="groundswell")
    except GroundswellError as error:
        print(f"groundswell: {error.message}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("", file=sys.stderr)
        return 130
    except Exception as error:
        # typer's own errors know how to show themselves (usage, suggestions); others are defects.
        show = getattr(error, "show", None)
        if type(error).__name__ == "Abort":
            return 130
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 1))
    return result if isinstance(result, int) else 0
