"""``groundswell invite`` and ``groundswell join``: machines that become nodes."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from typing import Annotated

import typer

from groundswell.cli.client import Client
from groundswell.cli.profile import need_profile
from groundswell.cli.screen import say
from groundswell.cli.settings import settings
from groundswell.model.errors import BadRequest

UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command()
    def invite(
        name: Annotated[
            str | None, typer.Option(help="What the node shall be called; default: a name by chance.")
        ] = None,
        expires: Annotated[str, typer.Option(help="How long it is good: 90s, 30m, 12h, 7d.")] = "1h",
    ) -> None:
        """Print an invite for one machine; it works once. The gateway must run with `--open`.

        \b
          groundswell invite
          groundswell invite --name gpu-box --expires 1d
        """
        body: dict[str, str | float] = {"expires_s": seconds(expires)}
        if name:
            body["node"] = name
        answer = Client(need_profile(settings.config.folder)).call("POST", "/v1/invites", json=body)
        say(f"groundswell join {answer['invite']}")

    @app.command()
    def join(
        invite: Annotated[
            str | None, typer.Argument(help="From `groundswell invite`; not needed again once joined.")
        ] = None,
        url: Annotated[
            list[str] | None, typer.Option(help="An OpenAI-compatible server to offer; may be repeated.")
        ] = None,
        local: Annotated[
            bool, typer.Option(help="Offer the engines of the settings, too.", show_default=True)
        ] = True,
        find: Annotated[
            bool,
            typer.Option(help="Look for Ollama, vLLM, llama.cpp, SGLang, LM Studio and TGI on this machine."),
        ] = True,
    ) -> None:
        """Make this machine a node of somebody's gateway, and stay one until Ctrl-C.

        It offers what it finds running here, and the engines of its settings. Only outgoing connections are
        made, so it works behind NAT. SIGTERM lets open works end first. Without
        an invite it comes back to the gateway that it has joined.

        \b
          groundswell join gsw_join_...
          groundswell join --no-local --url http://127.0.0.1:11434
        """
        from groundswell.telemetry.logs import configure_logging
        from groundswell.wiring import found
        from groundswell.wiring.join import Membership

        config = settings.config
        configure_logging(config.telemetry.log_level, config.telemetry.log_format, sys.stderr)

        async def stay() -> None:
            stop = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            membership = await Membership.enter(config, invite)
            urls = list(url or [])
            for place, info in await found.find() if find else []:
                models = ", ".join(one.model for one in info.capabilities)
                say(f"found {info.flavour or 'an engine'} at {place}: {models}")
                urls += [place] if place not in urls else []
            async with membership.node(config, urls, local=local):
                say(f"joined as {membership.node_id}")
                await stop.wait()

        asyncio.run(stay())


def seconds(text: str) -> float:
    """``12h`` as seconds. Raises ``BadRequest``."""
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if match is None:
        raise BadRequest(f"A time is 90s, 30m, 12h or 7d, not {text!r}.", param="expires")
    return float(int(match[1]) * UNITS_S[match[2]])
