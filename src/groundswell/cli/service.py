"""``groundswell up``, ``gateway`` and ``serve``: the commands that stay up."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import msgspec
import typer

from groundswell.cli.profile import Profile, load_profile, save_profile
from groundswell.cli.screen import say
from groundswell.cli.settings import settings
from groundswell.engines.serve import ENGINES
from groundswell.model.errors import GroundswellError

if TYPE_CHECKING:
    from groundswell.config import Config
    from groundswell.wiring import Service

HOST = Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")]
READY_S = 15.0  # Engines need two or three; what is not up by then has a reason, and the rest works.
PORT = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]

OPEN = Annotated[
    str | None,
    typer.Option(
        "--open", help="Let nodes of other machines join; the address under which they reach this one.",
        metavar="HOST[:PORT]",
    ),
]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command()
    def up(
        host: HOST = None,
        port: PORT = None,
        open_: OPEN = None,
        tour: Annotated[bool, typer.Option(help="Do the main job before your eyes after the start.")] = True,
    ) -> None:
        """Start a gateway with three local nodes, show what it can do, and stay up until Ctrl-C.

        The second start on the same data is ready in seconds and keeps its keys, jobs and added engines.

        \b
          groundswell up
          groundswell up --port 9000 --no-tour
          groundswell up --open 192.168.1.10
        """
        from groundswell.cli.tour import banner, give_tour

        async def show(service: Service, profile: Profile) -> None:
            banner(service, profile)
            if tour:
                await give_tour(service, profile)
            if service.network is not None:
                invite = await service.network.invite({})
                say("\nAnother machine joins with this, once and within an hour:\n")
                say(f"  groundswell join {invite['invite']}")
            say("\nUp. Ctrl-C ends it; open requests are finished first.")

        config = _config(host, port, open_)
        with _log_file(config) as log:
            _run(config, log, show)

    @app.command()
    def gateway(host: HOST = None, port: PORT = None, open_: OPEN = None) -> None:
        """Start the gateway and the nodes of the settings, quietly: logs on stderr, for a service manager."""

        async def show(service: Service, profile: Profile) -> None:
            say(f"listening {service.base_url}")

        _run(_config(host, port, open_), sys.stderr, show)

    @app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def serve(context: typer.Context, name: Annotated[str, typer.Argument(help=", ".join(ENGINES))]) -> None:
        """Run one local engine in the foreground, as nodes do; `serve NAME --help` lists its options.

        \b
          groundswell serve emulated --model story --port 9001
        """
        # `serve` with a known name never comes here: __main__ starts the engine without the command line.
        raise typer.BadParameter(f"{name} is no engine; there are {', '.join(ENGINES)}.", ctx=context)


def _config(host: str | None, port: int | None, open_: str | None) -> Config:
    config = settings.config
    gateway = config.gateway
    if host is not None:
        gateway = msgspec.structs.replace(gateway, host=host)
    if port is not None:
        gateway = msgspec.structs.replace(gateway, port=port)
    network = config.network
    if open_ is not None:
        network = msgspec.structs.replace(network, open=open_)
    return msgspec.structs.replace(config, gateway=gateway, network=network)


def _log_file(config: Config) -> TextIO:
    """Where ``up`` logs, so that the screen stays readable; the last run's log is kept as ``.1``."""
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "groundswell.log"
    log = _locked(path)
    if log is not None and path.stat().st_size:
        path.replace(folder / "groundswell.log.1")
        log.close()
        log = _locked(path)
    # Another run is writing it: nothing is moved away under its hands, and the store will refuse this one.
    return log or open(os.devnull, "w")


def _locked(path: Path) -> TextIO | None:
    """A file to append to, readable by its owner only and held by this process; None if another holds it."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", buffering=1)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _run(config: Config, log: TextIO, show: Callable[[Service, Profile], Awaitable[None]]) -> None:
    """Start, show, wait for a signal, drain, end. A second signal ends at once."""
    from groundswell.telemetry.logs import configure_logging

    configure_logging(config.telemetry.log_level, config.telemetry.log_format, log)
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:  # No uvloop on Windows.
        runner = asyncio.Runner()
    with runner:
        runner.run(_serve(config, show))


async def _serve(config: Config, show: Callable[[Service, Profile], Awaitable[None]]) -> None:
    from groundswell.wiring import Service

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():  # Asked twice: whoever asks does not want to wait. Children end with us.
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    async with Service.running(config) as service:
        profile = await _profile(config.folder, service)
        work = asyncio.ensure_future(_show_when_ready(service, profile, show))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()  # A defect ends the service, visibly.
            await stopped
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        if sys.stdout.isatty():
            say("\nending: no new requests, open ones are finished ...")


async def _show_when_ready(
    service: Service,
    profile: Profile,
    show: Callable[[Service, Profile], Awaitable[None]],
) -> None:
    missing = await service.ready(READY_S)
    _spare_the_collector()
    service.started_in_s = time.monotonic() - settings.started_s
    if missing:
        say(f"These engines are not up yet: {', '.join(missing)}. `groundswell doctor` may know why.")
    try:
        await show(service, profile)
    except GroundswellError as error:  # The service itself is up and stays up.
        say(f"groundswell: {error.message}")


def _spare_the_collector() -> None:
    """What is here after the start stays to the end. The garbage collector would walk it again and again, and
    hold up every stream for 70 ms or more each time."""
    gc.collect()
    gc.freeze()


async def _profile(folder: Path, service: Service) -> Profile:
    """The saved key if it is still good, else a new one; the address is always this run's."""
    saved = load_profile(folder)
    if saved is not None and await service.keys.find(saved.api_key) is not None:
        token = saved.api_key
    else:
        token, _ = await service.keys.create("default", "first key", ["inference", "video", "admin"])
    profile = Profile(service.base_url, token)
    if profile != saved:
        save_profile(folder, profile)
    return profile
