"""The `groundswell` command in processes of its own, on a pipe, as scripts use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

GROUNDSWELL = [sys.executable, "-m", "groundswell"]
TAKES_S = 120.0


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Only this data folder: nothing of the user's settings reaches the command. COLUMNS must not matter."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GROUNDSWELL_")}
    return env | {"GROUNDSWELL_DATA": str(folder), "HOME": str(folder), "COLUMNS": "80"} | more


def run(
    folder: Path,
    *arguments: str,
    stdin: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """One command to its end, with the data in ``folder``."""
    return subprocess.run(
        [*GROUNDSWELL, *arguments], env=environment(folder, **(env or {})), input=stdin, cwd=cwd,
        capture_output=True, text=True, timeout=TAKES_S, check=False,
    )  # fmt: skip


def started(folder: Path, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """One command that is not waited for."""
    return subprocess.Popen(
        [*GROUNDSWELL, *arguments], env=environment(folder), cwd=cwd, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@dataclass
class Up:
    """A running `groundswell up`; ``lines`` are what it has said so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def read_until(self, start: str) -> str:
        """The next line that begins so. Blocks; the test's own time limit is the limit."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            self.lines.append(line)
            if line.startswith(start):
                return line
        raise AssertionError(f"it ended without saying {start!r}: {self.text}")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stdout is not None
        self.lines.append(self.process.stdout.read())
        return self.process.wait(timeout=60)


@contextmanager
def up(folder: Path, *options: str) -> Iterator[Up]:
    """`groundswell up` on a pipe until the block ends."""
    process = subprocess.Popen(
        [*GROUNDSWELL, "up", "--port", "0", *options], env=environment(folder),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield Up(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def gone_within(processes: list[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Those that still run after so many seconds. What has ended and waits to be collected counts as gone."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        left = [one for one in processes if _runs(one)]
        if not left:
            return []
        time.sleep(0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
