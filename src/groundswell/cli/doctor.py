"""``groundswell doctor``: what is wrong here, and how to mend it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from groundswell.cli.client import Client
from groundswell.cli.profile import need_profile, profile_path
from groundswell.cli.screen import say
from groundswell.cli.settings import settings
from groundswell.model.errors import GroundswellError, NotFound

FREE_BYTES_MIN = 1 << 30
WHERE_TO_LOOK = "The gateway's log says why; of a server that you added, its own does."
SQLITE_MIN = (3, 35)  # RETURNING, which the store's claims use.


@dataclass(frozen=True, slots=True)
class Finding:
    """``mend`` is empty when all is well."""

    what: str
    mend: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def doctor() -> None:
        """Check this machine and the gateway, and say how to mend what is wrong.

        Exit status 1 if anything is.
        """
        findings = [check() for check in CHECKS]
        for finding in findings:
            say(
                f"{'ok  ' if not finding.mend else 'MEND'}  {finding.what}",
                style=None if not finding.mend else "bold",
            )
            if finding.mend:
                say(f"      {finding.mend}")
        if any(finding.mend for finding in findings):
            raise typer.Exit(1)


def check_python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding(
        f"Python {version}", "" if sys.version_info >= (3, 11) else "Install Python 3.11 or later."
    )


def check_settings() -> Finding:
    try:
        config = settings.config
    except GroundswellError as error:
        return Finding("settings", error.message)
    return Finding(f"settings, data in {config.folder}")


def check_folder() -> Finding:
    try:
        folder = settings.config.folder
    except GroundswellError:
        return Finding("data folder: unknown until the settings are mended")
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Finding(
            f"data folder {folder}", f"{existing} cannot be written. Set GROUNDSWELL_DATA to one that can."
        )
    free = shutil.disk_usage(existing).free
    if free < FREE_BYTES_MIN:
        return Finding(f"{free >> 20} MiB free", f"Free space on the disk of {existing}: 1 GiB at least.")
    return Finding(f"data folder can be written, {free >> 30} GiB free")


def check_sqlite() -> Finding:
    old = sqlite3.sqlite_version_info < SQLITE_MIN
    return Finding(
        f"SQLite {sqlite3.sqlite_version}", "Use a Python with SQLite 3.35 or later." if old else ""
    )


def check_ffmpeg() -> Finding:
    from groundswell.engines.transcode import ffmpeg_path

    try:
        path = ffmpeg_path(settings.config.video.ffmpeg)
        answer = subprocess.run(
            [path, "-hide_banner", "-version"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError, GroundswellError) as error:
        return Finding("ffmpeg", f"It does not start ({error}). Set video.ffmpeg to one that does.")
    first = answer.stdout.partition(" Copyright")[0]
    return Finding(
        first or "ffmpeg", "" if answer.returncode == 0 else "Set video.ffmpeg to a working ffmpeg."
    )


def check_builtin() -> Finding:
    import groundswell.engines

    found = list((Path(groundswell.engines.__file__).parent / "builtin_model").glob("*.onnx"))
    mend = "" if found else "The package is incomplete: install it again."
    return Finding("built-in language model", mend)


def check_embeddings() -> Finding:
    from groundswell.engines.embeddings import model_folder

    try:
        model_folder()
    except GroundswellError as error:
        return Finding("embedding model", error.message)
    return Finding("embedding model")


def check_gateway() -> Finding:
    try:
        try:
            profile = need_profile(settings.config.folder)
        except NotFound:
            return Finding("no gateway was started here yet; `groundswell up` does")
        client = Client(profile)
        try:
            nodes = client.call("GET", "/v1/nodes")["data"]
        finally:
            client.close()
    except GroundswellError as error:
        return Finding("gateway", error.message)
    down = [
        f"{node['id']}/{engine['id']}"
        for node in nodes
        for engine in node["engines"]
        if not engine["healthy"]
    ]
    if down:
        return Finding(f"gateway {profile.base_url}", f"Engines down: {', '.join(down)}. {WHERE_TO_LOOK}")
    return Finding(f"gateway {profile.base_url}, {len(nodes)} nodes, all engines healthy")


def check_profile() -> Finding:
    try:
        path = profile_path(settings.config.folder)
    except GroundswellError:
        return Finding("profile: unknown until the settings are mended")
    if path.exists() and path.stat().st_mode & 0o077:
        return Finding(f"profile {path}", f"Others can read the key in it: chmod 600 {path}")
    return Finding("profile is private")


def check_port() -> Finding:
    """The port of the gateway that runs, whichever it was given; else the one that `up` would take."""
    try:
        config = settings.config
    except GroundswellError:
        return Finding("port: unknown until the settings are mended")
    with contextlib.suppress(GroundswellError):  # None is known, or it does not answer.
        client = Client(need_profile(config.folder))
        try:
            client.call("GET", "/healthz")
        finally:
            client.close()
        return Finding(f"a gateway answers at {client.base_url}")
    host, port = config.gateway.host, config.gateway.port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(1.0)
        try:
            taken = port and probe.connect_ex((host, port)) == 0
        except OSError as error:
            return Finding(f"gateway.host {host}", f"It is no address of this machine ({error.strerror}).")
    mend = "Something else listens there. Start the gateway on another port: groundswell up --port 9000."
    return Finding(f"port {port} is taken", mend) if taken else Finding(f"port {port} is free")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python, check_settings, check_folder, check_sqlite, check_ffmpeg, check_builtin, check_embeddings,
    check_profile, check_port, check_gateway,
)  # fmt: skip
