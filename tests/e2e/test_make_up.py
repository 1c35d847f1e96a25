"""`make up` on a terminal, as README tells a stranger to type it."""

from __future__ import annotations

import os
import pty
import select
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
LIMIT_S = 240.0  # A stranger's first start may install what is missing.


def test_make_up_stays_until_ctrl_c_and_ends_with_status_0(tmp_path: Path) -> None:
    """make counts a Ctrl-C as its own failure: it must reach Groundswell alone, which drains and ends."""
    if not (ROOT / ".venv").exists():
        pytest.skip("no .venv in the checkout: make has not set this one up")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.environ["GROUNDSWELL_DATA"] = str(tmp_path / "data")
        os.execvp("make", ["make", "up", "ARGS=--port 0"])
    shown = _until(terminal, b"Up. Ctrl-C", LIMIT_S)
    os.write(terminal, b"\x03")
    shown += _until(terminal, None, 60.0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown[-3000:].decode(errors="replace")
    for proof in (b"ran on node-", b"segments:", b"/v1/transcodes/", b"curl ", b"from openai import OpenAI"):
        assert proof in shown


def _until(terminal: int, mark: bytes | None, limit_s: float) -> bytes:
    """What the terminal shows until ``mark``, or until the program has ended."""
    shown = b""
    deadline = time.monotonic() + limit_s
    while mark is None or mark not in shown:
        assert time.monotonic() < deadline, shown[-3000:].decode(errors="replace")
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other side is closed.
            break
        if not data:
            break
        shown += data
    return shown
