"""Child processes with real programs: what is started, noticed, ended and left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from groundswell.model.errors import UpstreamError
from groundswell.node.processes import EngineProcess

LISTEN = "print('listening 127.0.0.1:4711', flush=True)\n"
SLEEP = "import time; time.sleep(60)\n"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_its_port_is_read_and_its_exit_noticed() -> None:
    """A dead engine's works must move on at once, not at the next probe."""
    exits: list[int] = []
    process = EngineProcess("e", python(LISTEN + SLEEP), exits.append)
    assert await process.start(20) == 4711
    assert process.alive
    os.kill(process.pid, signal.SIGKILL)
    assert await process.ends_within(5)
    assert exits == [-signal.SIGKILL]


async def test_one_that_fails_to_start_says_why() -> None:
    """The operator reads the engine's own last words."""
    exits: list[int] = []
    process = EngineProcess("e", python("import sys; sys.exit('no such model')"), exits.append)
    with pytest.raises(UpstreamError, match=r"ended with status 1 before it listened: no such model"):
        await process.start(20)
    assert exits == []
    with pytest.raises(UpstreamError, match="cannot be started: No such file"):
        await EngineProcess("e", ["/nowhere/engine"], exits.append).start(20)


async def test_one_that_never_listens_is_ended() -> None:
    """An engine that hangs at its start must not hold memory for ever."""
    process = EngineProcess("e", python(SLEEP), lambda status: None)
    with pytest.raises(UpstreamError, match="did not listen within"):
        await process.start(0.2)
    assert not process.alive


@pytest.mark.parametrize("state", ["deaf", "stopped"])
async def test_stop_ends_also_one_that_does_not_listen_to_signals(state: str) -> None:
    """A stop that waits for a hung engine would hang the whole node."""
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    process = EngineProcess("e", python(deaf + LISTEN + SLEEP), lambda status: None)
    await process.start(20)
    if state == "stopped":
        os.kill(process.pid, signal.SIGSTOP)
    began_s = time.monotonic()
    await process.stop(0.2)
    assert time.monotonic() - began_s < 5
    assert not process.alive
    await process.stop()


async def test_what_it_started_ends_with_it() -> None:
    """An engine's workers left behind would keep the GPU."""
    grandchild = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)\n"
    process = EngineProcess("e", python(grandchild + LISTEN + SLEEP), lambda status: None)
    await process.start(20)
    pid = int(process.log_tail.splitlines()[0])
    os.kill(process.pid, signal.SIGKILL)
    assert await process.ends_within(5)
    await asyncio.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_flood_of_output_is_read_and_only_its_end_kept() -> None:
    """An engine whose pipe is full stops; one whose log is kept whole fills the node's memory."""
    flood = "import sys; sys.stderr.write('x' * 3_000_000 + '\\n' + 'line\\n' * 5000)\n"
    process = EngineProcess("e", python(flood + LISTEN + SLEEP), lambda status: None)
    await process.start(20)
    lines = process.log_tail.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 8192
    await process.stop(0.5)


@pytest.mark.e2e
def test_a_killed_node_leaves_no_engine(tmp_path: Path) -> None:
    """After kill -9 of everything's parent the machine must be free for the next start."""
    node = tmp_path / "node.py"
    node.write_text(
        "import asyncio, sys\n"
        "from groundswell.node.processes import EngineProcess\n"
        "argv = [sys.executable, '-m', 'groundswell.engines.emulated', '--model', 'em']\n"
        "async def main():\n"
        "    process = EngineProcess('e', argv, print)\n"
        "    await process.start(30)\n"
        "    print(process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, str(node)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline_s = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s, "the engine outlived its node"
        time.sleep(0.02)
