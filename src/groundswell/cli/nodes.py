"""``groundswell nodes``: engines that run already, added by their URL."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from groundswell.cli.client import Client
from groundswell.cli.profile import need_profile
from groundswell.cli.screen import say, table
from groundswell.cli.settings import settings
from groundswell.model.errors import BadRequest

KEY = Annotated[
    str | None, typer.Option(help="The engine's own API key, if it wants one.", envvar="ENGINE_API_KEY")
]
ALIAS = Annotated[
    list[str] | None, typer.Option(help="PUBLIC=ENGINE_MODEL: the name clients use for one of its models.")
]


def register(app: typer.Typer) -> None:
    """Add the family."""
    nodes = typer.Typer(help="Add, test, list and remove engines.", no_args_is_help=True)
    app.add_typer(nodes, name="nodes")

    @nodes.command()
    def add(
        url: Annotated[str, typer.Argument(help="Such as http://box:11434, with or without /v1.")],
        key: KEY = None,
        alias: ALIAS = None,
        slots: Annotated[
            int | None,
            typer.Option(
                help="Requests at once; default: what it says, else 64 for vLLM and SGLang, 8 for others.",
                min=1,
            ),
        ] = None,
        fingerprint: Annotated[
            str | None, typer.Option(help="Engines with the same fingerprint continue each other's streams.")
        ] = None,
    ) -> None:
        """Add an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, LM Studio, TGI and others.

        It is probed first; the next request can land there. It stays added over restarts.

        \b
          groundswell nodes add http://box:11434
          groundswell nodes add http://box:8000 --key sk-... --alias chat=Qwen/Qwen3-8B
        """
        body = {"url": url, "key": key, "aliases": aliases(alias), "slots": slots, "fingerprint": fingerprint}
        client = Client(need_profile(settings.config.folder))
        node = client.call("POST", "/v1/nodes", json={k: v for k, v in body.items() if v})
        say(f"added {node['id']}")
        show(node)

    @nodes.command()
    def test(
        url: Annotated[str, typer.Argument(help="The server to look at; nothing is added.")],
        key: KEY = None,
        alias: ALIAS = None,
    ) -> None:
        """Probe a server from this machine and print what it can do.

        \b
          groundswell nodes test http://box:11434
        """
        from groundswell.wiring import probe_url

        show(asyncio.run(probe_url(url, key, aliases(alias))))

    @nodes.command("list")
    def list_() -> None:
        """All nodes, their engines and models, and which of them can go on with a broken stream."""
        answer = Client(need_profile(settings.config.folder)).call("GET", "/v1/nodes")
        table(HEADINGS, [row for node in answer["data"] for row in rows(node)])

    @nodes.command("rm")
    def remove(node_id: Annotated[str, typer.Argument(help="The id as `nodes list` shows it.")]) -> None:
        """Remove an engine that was added by URL; its running requests move elsewhere.

        The server itself goes on running. A node that has joined is shown out at once. Nodes of the settings
        are removed there.
        """
        Client(need_profile(settings.config.folder)).call("DELETE", f"/v1/nodes/{node_id}")
        say(f"removed {node_id}")


HEADINGS = ["node", "state", "engine", "model", "continues", "running", "slots"]


def rows(node: dict[str, Any]) -> list[list[Any]]:
    """One row for each model on each engine of a node."""
    return [
        [
            node["id"], node["state"] if engine["healthy"] else "engine down", engine["id"], model["model"],
            model["continuation"], engine["running"], engine["slots"],
        ]
        for engine in node["engines"]
        for model in engine["models"] or [{"model": "-", "continuation": "-"}]
    ]  # fmt: skip


def show(node: dict[str, Any]) -> None:
    """What a probe found, a line for each model."""
    for engine in node["engines"]:
        say(f"{engine['flavour'] or 'OpenAI-compatible'} server, {engine['slots']} requests at once")
        if not engine["models"]:
            say("it has no models yet; those that it gets appear here by themselves")
            return
    headings = ["model", "engine's name", "does", "context", "a broken stream"]
    meanings = {"exact": "continues exactly", "text": "continues", "none": "cannot be continued here"}
    table(
        headings,
        [
            [
                m["model"],
                m["engine_model"],
                ", ".join(m["kinds"]),
                m["context_tokens"],
                meanings[m["continuation"]],
            ]
            for engine in node["engines"]
            for m in engine["models"]
        ],
    )


def aliases(options: list[str] | None) -> dict[str, str]:
    """``NAME=ENGINE_MODEL`` options as a mapping."""
    pairs: dict[str, str] = {}
    for option in options or []:
        public, equals, engine_model = option.partition("=")
        if not (equals and public and engine_model):
            raise BadRequest(f"An alias is NAME=ENGINE_MODEL, not {option!r}.", param="alias")
        pairs[public] = engine_model
    return pairs
