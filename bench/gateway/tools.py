"""The backend and the load generator: compiled when needed, run on the core that is not the gateway's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
ENGINES = 2  # Enough that there is something to route, few enough that peers open no more connections.


class Unfit(Exception):
    """This machine lacks something; the message says what."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the system under test runs, and where backend and load do."""

    gateway: int
    load: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The first two that we may use. Raises ``Unfit``."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise Unfit("two CPU cores are needed: one for the gateway, one for backend and load")
        return cls(allowed[0], allowed[1])


def pinned(core: int, command: list[str]) -> list[str]:
    """The command, held on one core."""
    return ["taskset", "-c", str(core), *command]


def build(folder: Path) -> None:
    """Compile both programs into ``folder``. Raises ``Unfit`` without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unfit("a C compiler is needed (apt-get install gcc)")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("backend", "load"):
        source, target = HERE / f"{name}.c", folder / name
        newest = max(source.stat().st_mtime, (HERE / "wire.h").stat().st_mtime)
        if not target.exists() or target.stat().st_mtime < newest:
            command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(target), str(source)]
            subprocess.run(command, check=True)


@contextmanager
def rig(folder: Path, cores: Cores) -> Iterator[Rig]:
    """Engines until the block ends, and what puts load on whoever is in front of them."""
    command = pinned(cores.load, [str(folder / "backend"), str(ENGINES)])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ports = [int(process.stdout.readline()) for _ in range(ENGINES)]
        yield Rig(folder, cores, ports, psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass(frozen=True, slots=True)
class Rig:
    """The running engines' ports, and the load generator."""

    folder: Path
    cores: Cores
    ports: list[int]
    backend: psutil.Process

    def backend_cpu_s(self) -> float:
        """User and system seconds of all engines so far."""
        return float(sum(self.backend.cpu_times()[:2]))

    def load(self, mode: str, port: int, key: str, seconds: float, warmup: float, *more: float) -> Load:
        """Start the load generator; ``load.c`` says what ``more`` is for each mode."""
        words = [mode, str(port), key, *(f"{number:g}" for number in (seconds, warmup)), *map(str, more)]
        command = pinned(self.cores.load, [str(self.folder / "load"), *words])
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return Load(process, seconds + warmup + 30)

    def stats(self) -> dict[str, Any]:
        """What the backend counted since its start."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[0]}/bench/stats", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


class Load:
    """A run of the load generator."""

    def __init__(self, process: subprocess.Popen[str], patience_s: float) -> None:
        self._process = process
        self._patience_s = patience_s

    def result(self) -> dict[str, Any]:
        """What it printed, at its end."""
        output, _ = self._process.communicate(timeout=self._patience_s)
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with {self._process.returncode}")
        found: dict[str, Any] = json.loads(output)
        return found
