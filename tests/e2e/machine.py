"""Another machine, as far as that can be had: a node in a process with a data folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway_process import GatewayProcess

JOINS_S = 60.0
EMULATED = '[[nodes]]\nid = "x"\n[[nodes.engines]]\nkind = "emulated"\nspeed = {speed}\n'


@dataclass
class Machine:
    """A node's process. ``log`` is what it wrote on stderr."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "log.jsonl").read_text()

    def kill(self) -> None:
        """As a power cut: its engines go with it."""
        self.process.kill()
        self.process.wait()

    def leave(self) -> int:
        """SIGTERM; the exit status once it has drained."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def wait_for(self, text: str) -> None:
        """Until the log holds this."""
        deadline = time.monotonic() + JOINS_S
        while text not in self.log:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.log[-2000:]}"
            time.sleep(0.02)


def invite(gateway: GatewayProcess, node_id: str, **more: object) -> str:
    """A new invite for a node of this id."""
    with gateway.client() as client:
        answer = client.post("/v1/invites", json={"node": node_id, **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["invite"])


@contextmanager
def machine(
    folder: Path,
    text: str | None,
    settings: str = EMULATED.format(speed=1.0),
    options: Sequence[str] = (),
    before: Sequence[str] = (),
) -> Iterator[Machine]:
    """``groundswell join`` until the block ends. ``text`` is its invite, if it has not joined before;
    ``before`` comes in front of the command."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "groundswell.toml"
    file.write_text(settings)
    env = {name: value for name, value in os.environ.items() if not name.startswith("GROUNDSWELL_")}
    env |= {"GROUNDSWELL_DATA": str(folder / "data"), "GROUNDSWELL_CONFIG": str(file), "COLUMNS": "80"}
    command = [*before, sys.executable, "-m", "groundswell", "join", "--no-find", *([text] if text else [])]
    command += options
    with (folder / "log.jsonl").open("a") as log:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("joined as "), (line, (folder / "log.jsonl").read_text()[-2000:])
        yield Machine(process, folder)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()
