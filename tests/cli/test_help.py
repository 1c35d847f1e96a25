"""What `--help` says, for every command there is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
import typer.main
from typer.testing import CliRunner

from groundswell.cli import application
from groundswell.engines.serve import ENGINES, run

# What each help text must teach besides the names of its options: an example, or what will happen.
TEACHES = {
    "": "Start with `groundswell up`",
    "up": "groundswell up --port 9000 --no-tour",
    "gateway": "logs on stderr",
    "serve": "groundswell serve emulated --model story --port 9001",
    "chat": 'echo "What is a gateway?" | groundswell chat',
    "transcode": "groundswell transcode holiday.mp4 --rungs 720p,360p",
    "status": "refreshes each second until Ctrl-C",
    "doctor": "Exit status 1 if anything is",
    "version": "of Groundswell and of Python",
    "jobs": "See and cancel durable work",
    "jobs list": "newest first",
    "jobs show": "as JSON",
    "jobs fetch": "is not fetched again",
    "jobs cancel": "What was done so far is charged",
    "keys": "Make, list and revoke",
    "keys create": "groundswell keys create laptop --scope inference --expires 30d",
    "usage": "groundswell usage --by model --days 1",
    "keys list": "The keys themselves are not kept",
    "keys revoke": "refuse it within a second",
    "nodes": "Add, test, list and remove",
    "nodes add": "groundswell nodes add http://box:8000 --key sk-... --alias chat=Qwen/Qwen3-8B",
    "nodes test": "nothing is added",
    "nodes list": "can go on with a broken stream",
    "nodes rm": "its running requests move elsewhere",
    "invite": "groundswell invite --name gpu-box --expires 1d",
    "join": "so it works behind NAT",
}


def commands() -> dict[str, click.Command]:
    """Every command and family by its words."""

    def walk(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{words} {name}".strip(), inner)

    return dict(walk("", typer.main.get_command(application())))


def test_every_command_is_listed_here() -> None:
    """A new command is not forgotten."""
    assert set(commands()) == set(TEACHES)


@pytest.mark.parametrize("words", TEACHES)
def test_the_help_teaches(words: str) -> None:
    """An example, or what will happen; the usage line alone is not enough."""
    done = CliRunner().invoke(application(), [*words.split(), "--help"], terminal_width=100)
    assert done.exit_code == 0
    said = " ".join(line for line in done.output.splitlines() if not line.startswith("Usage:"))
    assert TEACHES[words] in re.sub(r"\s+", " ", said)
    examples = [line.strip() for line in done.output.splitlines() if line.startswith("    groundswell")]
    assert all(len(line) < 96 for line in examples), "an example is one line"
    assert "\b" not in done.output
    assert "\\b" not in done.output


@pytest.mark.parametrize("name", ENGINES)
def test_every_option_of_every_engine_has_a_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Engines are started by hand too, and read their command line without the rest of it."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        run(name, ["--help"])
    assert ended.value.code == 0
    said, _, options = capsys.readouterr().out.partition("\noptions:\n")
    assert re.search(r"^\w.*\.$", said, re.M), "what it is"
    told = dict(re.findall(r"^  (?:-h, )?--(\w+)[^\n]*?(?:  +|\n {20,})(\S.*)$", options, re.M))
    assert {"help", "host", "port", "slots"} <= set(told)
    assert set(told) == set(re.findall(r"^  (?:-h, )?--(\w+)", options, re.M))


@pytest.mark.parametrize("words", TEACHES)
def test_every_option_and_argument_has_a_sentence(words: str) -> None:
    """A bare name tells nobody what it does."""
    for parameter in commands()[words].params:
        assert getattr(parameter, "help", ""), f"{words} {parameter.name}"
