"""What `join` finds on a machine."""

from __future__ import annotations

import asyncio
import re
import sys

from groundswell.wiring.found import find


async def test_engines_are_found_by_their_answers_and_nothing_else_is(unused_tcp_port: int) -> None:
    """An owner need not know any port; a web server on one of them is no engine."""
    engine = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "groundswell",
        "serve",
        "emulated",
        "--port",
        "0",
        stdout=asyncio.subprocess.PIPE,
    )
    web = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ports = [await port_of(one) for one in (engine, web)]
        found = await find([*ports, unused_tcp_port])
    finally:
        for one in (engine, web):
            one.terminate()
            await one.wait()
    assert [url for url, _ in found] == [f"http://127.0.0.1:{ports[0]}"]
    assert [one.model for one in found[0][1].capabilities] == ["emulated"]


async def port_of(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if match := re.search(rb"(?:127\.0\.0\.1:|port )(\d+)", line):
            return int(match[1])
    raise AssertionError("it did not say its port")
