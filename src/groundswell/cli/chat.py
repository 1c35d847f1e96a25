"""``groundswell chat``: one question, or a conversation, streamed."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from groundswell.cli.client import Client
from groundswell.cli.profile import need_profile
from groundswell.cli.screen import piece, say
from groundswell.cli.settings import settings
from groundswell.model.errors import BadRequest


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def chat(
        prompt: Annotated[
            str | None, typer.Argument(help="The question; without it a conversation starts.")
        ] = None,
        model: Annotated[str, typer.Option(help="Which model answers.")] = "builtin",
        system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
        max_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.", min=1)] = 512,
        temperature: Annotated[
            float, typer.Option(help="0 is always the likeliest word.", min=0, max=2)
        ] = 0.0,
    ) -> None:
        """Talk to a model and see the answer as it comes.

        \b
          groundswell chat "What is a gateway?"
          echo "What is a gateway?" | groundswell chat
        """
        client = Client(need_profile(settings.config.folder))
        messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        options = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        if prompt is None and not sys.stdin.isatty():
            prompt = sys.stdin.read().strip()
            if not prompt:
                raise BadRequest("There is no question: standard input is empty.", param="prompt")
        if prompt is not None:
            _turn(client, messages, prompt, options)
            return
        say(f"Talking to {model}; an empty line or Ctrl-D ends.", style="dim")
        while line := _ask():
            _turn(client, messages, line, options)


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _turn(client: Client, messages: list[dict[str, str]], prompt: str, options: dict[str, Any]) -> None:
    messages.append({"role": "user", "content": prompt})
    answer = ""
    for event in client.events("/v1/chat/completions", {"messages": messages, "stream": True, **options}):
        for choice in event["choices"]:
            text = choice["delta"].get("content") or ""
            answer += text
            piece(text)
    say()
    messages.append({"role": "assistant", "content": answer})
