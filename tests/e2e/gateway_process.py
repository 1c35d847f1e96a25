"""A real gateway in a process of its own, as `groundswell gateway` starts it, for the end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

STARTS_S = 60.0


@dataclass
class GatewayProcess:
    """``url`` without a path; ``key`` has every scope."""

    process: subprocess.Popen[str]
    url: str
    key: str
    folder: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60, trust_env=False)

    def engines(self, name: str) -> list[psutil.Process]:
        """The processes of its engines of one kind, found among its children."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                if name in child.cmdline():
                    found.append(child)
            except psutil.Error:  # It ended in between.
                continue
        return found

    def wait_for_model(self, model: str, engines: int = 1) -> None:
        """Until so many healthy engines offer ``model``."""
        deadline = time.monotonic() + STARTS_S
        with self.client() as client:
            while time.monotonic() < deadline:
                nodes = client.get("/v1/nodes").json()["data"]
                offers = sum(
                    one["model"] == model
                    for node in nodes
                    for engine in node["engines"]
                    if engine["healthy"]
                    for one in engine["models"]
                )
                if offers >= engines:
                    return
                time.sleep(0.05)
        raise AssertionError(f"{model} did not appear on {engines} engines: {nodes}")

    def address(self, name: str) -> str:
        """The URL of its only engine of one kind."""
        (url,) = self.addresses(name)
        return url

    def addresses(self, name: str) -> list[str]:
        """The URLs of its engines of one kind."""
        return [
            f"http://127.0.0.1:{one.laddr.port}"
            for engine in self.engines(name)
            for one in engine.net_connections("tcp4")
            if one.status == psutil.CONN_LISTEN
        ]

    def streams_running(self) -> int:
        """How many the emulated engine itself has: the gateway hears of it each two seconds only."""
        load = httpx.get(f"{self.address('emulated')}/load", trust_env=False).json()
        return int(load["running"] + load["waiting"])

    def wait_until_idle(self, limit_s: float) -> None:
        """Until the emulated engine has no stream any more."""
        deadline = time.monotonic() + limit_s
        while running := self.streams_running():
            assert time.monotonic() < deadline, f"{running} streams run after {limit_s} s"
            time.sleep(0.02)

    def kill(self) -> None:
        """As a power cut for this process: SIGKILL, and its engines go with it."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)


def one_emulated(speed: int, more: str = "") -> str:
    """Settings for what strangers do to a gateway: one emulated engine of four slots offers ``m``, so many
    times faster than a real one, and nothing waits long for it."""
    return f"""
{more}
[queue]
wait_s = 3
[[nodes]]
id = "n0"
engines = [{{kind = "emulated", model = "m", slots = 4, speed = {speed}}}]
"""


@contextmanager
def gateway_process(
    folder: Path,
    settings: str = "",
    options: Sequence[str] = (),
    port: int = 0,
    start: Sequence[str] = ("-m", "groundswell"),
    env: Mapping[str, str] | None = None,
    apart: bool = False,
    under: Sequence[str] = (),
) -> Iterator[GatewayProcess]:
    """Run a gateway on ``folder`` until the block ends. ``settings`` is the text of its TOML file, ``start``
    what Python is to run, ``env`` what its environment has besides. ``apart``: Ctrl-C is not for it.
    ``under`` is the command line of a program that runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "groundswell.toml"
    file.write_text(settings)
    whole = {name: value for name, value in os.environ.items() if not name.startswith("GROUNDSWELL_")}
    whole |= {"GROUNDSWELL_DATA": str(folder / "data"), "GROUNDSWELL_CONFIG": str(file), **(env or {})}
    command = [*under, sys.executable, *start, "gateway", "--port", str(port), *options]
    log = (folder / "log.jsonl").open("a")
    process = subprocess.Popen(
        command, env=whole, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0 if apart else None
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening "), (line, (folder / "log.jsonl").read_text()[-2000:])
        profile = json.loads((folder / "data" / "profile.json").read_text())
        yield GatewayProcess(process, profile["base_url"], profile["api_key"], folder)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()
        log.close()
