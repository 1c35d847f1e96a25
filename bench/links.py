"""What the network costs: the same engines by their URL, and behind a node that has joined over NATS.

Both systems stand before the same two engines, and each answer is checked byte for byte (`bench.gateway`).
The gateway and its NATS server have one core; the node, the engines and the load the other.
Then a hundred nodes lose their server and come back. Ratios are within one run.

    python -m bench.links [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench.gateway.measures import QUICK, Lengths, ask, easy_streams, highest_rate, latency
from bench.gateway.peers import ENVIRONMENTS
from bench.gateway.systems import OURS, STARTS_S, Running, System, _end, _our_key, answers, running
from bench.gateway.tools import Cores, Rig, Unfit, build, pinned, rig
from groundswell.bus.nats import Login, node_wire
from groundswell.bus.server import NatsServer
from groundswell.bus.subjects import node_permissions

OPEN_RATE = 100
NODES = 100
WINDOW_S = 0.25
NODE_SETTINGS = """
data = "{folder}/node"
nodes = []
[telemetry]
log_level = "error"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.links", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, while changing the link")
    lengths = QUICK if parser.parse_args(argv).quick else Lengths()
    tools = ENVIRONMENTS / "tools"
    try:
        cores = Cores.of_this_machine()
        build(tools)
    except Unfit as unfit:
        print(f"bench: {unfit}", file=sys.stderr)
        return 2
    found = {}
    for name, start in (("url", _by_url), ("nats", _by_nats)):
        with (
            tempfile.TemporaryDirectory(prefix="groundswell-bench-") as folder,
            rig(tools, cores) as one,
            start(one, Path(folder)) as (system, others),
        ):
            found[name] = _measure(one, system, others, lengths)
    _print(found)
    logging.disable()  # A hundred nodes have much to say of a server that is gone.
    asyncio.run(_return_of_many(NODES))
    return 0


Others = dict[str, psutil.Process]


@contextmanager
def _by_url(rig: Rig, folder: Path) -> Iterator[tuple[Running, Others]]:
    with running(OURS, rig.ports, folder, rig.cores) as system:
        yield system, {}


@contextmanager
def _by_nats(rig: Rig, folder: Path) -> Iterator[tuple[Running, Others]]:
    """A gateway without engines, and a node that has them."""
    system = System("nats", "", _open_gateway)
    process: subprocess.Popen[bytes] | None = None
    folder.mkdir(parents=True, exist_ok=True)
    port = _free()
    command = pinned(rig.cores.gateway, _open_gateway(port, rig.ports, folder))
    with (folder / "log").open("wb") as log:
        gateway = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            key = _until(lambda: _our_key(folder))
            invite = _until(lambda: _invite(port, key))
            process = subprocess.Popen(
                pinned(rig.cores.load, _node(invite, rig.ports, folder)), stdout=log, stderr=log, cwd=folder
            )
            _until(
                lambda: answers(
                    port,
                    key,
                )
            )
            one = Running(system.name, port, key, psutil.Process(gateway.pid), folder)
            (server,) = (child for child in one.process.children() if "nats" in child.name())  # type: ignore[union-attr]
            yield one, {"nats-server": server, "node": psutil.Process(process.pid)}
        finally:
            if process is not None:
                _end(process)
            _end(gateway)


def _open_gateway(port: int, _engines: Sequence[int], folder: Path) -> list[str]:
    (folder / "groundswell.toml").write_text(f'data = "{folder}/data"\nnodes = []\n')
    settings = str(folder / "groundswell.toml")
    return [
        sys.executable, "-m", "groundswell", "--config", settings, "gateway", "--port", str(port),
        "--open", "127.0.0.1:0",
    ]  # fmt: skip


def _node(invite: str, engines: Sequence[int], folder: Path) -> list[str]:
    settings = folder / "node.toml"
    text = NODE_SETTINGS.format(folder=folder)
    for number, engine in enumerate(engines):
        text += f'[[engines]]\nid = "e{number}"\nurl = "http://127.0.0.1:{engine}"\nslots = 8192\n'
    settings.write_text(text)
    return [
        sys.executable,
        "-m",
        "groundswell",
        "--config",
        str(settings),
        "join",
        invite,
        "--no-local",
        "--no-find",
    ]


def _invite(port: int, key: str) -> str:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/invites", b"{}", headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(json.load(answer)["invite"])
    except OSError:
        return ""


def _until(found: Any) -> Any:
    deadline = time.monotonic() + STARTS_S
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    raise RuntimeError("the network did not come up")


def _free() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _measure(rig: Rig, system: Running, others: Others, lengths: Lengths) -> dict[str, float]:
    """Figures of one system; CPU by process, for requests that are not streamed."""
    figures = {
        f"answer {name}, ms": value for name, value in latency(rig, system, lengths, OPEN_RATE).items()
    }
    easy = easy_streams(rig, system, lengths)
    figures |= {
        "first token beyond the engine's, ms": easy["ttft_ms"],
        "token p99 at 2,000/s, ms": easy["p99_ms"],
    }
    before = {name: sum(one.cpu_times()[:2]) for name, one in others.items()}
    ours = system.cpu_s()
    done = ask(rig, system, "closed", lengths.closed_s, lengths.warmup_s, 64)
    figures["requests/s"] = done["requests_per_s"]
    spent = {name: sum(one.cpu_times()[:2]) - before[name] for name, one in others.items()}
    figures["CPU of the gateway a request, ms"] = (
        (system.cpu_s() - ours - spent.get("nats-server", 0.0)) * 1e3 / done["sent"]
    )
    for name, cpu_s in spent.items():
        figures[f"CPU of the {name} a request, ms"] = cpu_s * 1e3 / done["sent"]
    figures["tokens/s with p99 <= 10 ms"] = highest_rate(rig, system, lengths)["value"]
    return figures


def _print(found: dict[str, dict[str, float]]) -> None:
    print(f"{'':42}{'by URL':>10}{'by NATS':>10}{'ratio':>8}")
    for name, there in found["nats"].items():
        here = found["url"].get(name)
        ratio = f"{there / here:8.2f}" if here else ""
        print(f"{name:42}{here if here is None else round(here, 2)!s:>10}{there:10.2f}{ratio}")


async def _return_of_many(count: int) -> None:
    """A server is killed and started again; when each of many nodes is back."""
    names = [f"n{number}" for number in range(count)]
    users = [{"user": one, "password": "bench", "permissions": node_permissions(one)} for one in names]
    with tempfile.TemporaryDirectory(prefix="groundswell-bench-") as folder:
        server = NatsServer(Path(folder), {"authorization": {"users": users}})
        await server.start()
        address = (f"nats://127.0.0.1:{server.port}",)
        wires = [node_wire(Login(address, {"user": one, "password": "bench"}), one)[1] for one in names]
        for wire in wires:
            wire.start()
        assert all(await asyncio.gather(*(wire.up_within(30) for wire in wires)))
        port = server.port
        await server.kill()
        await asyncio.sleep(2.0)
        await server.start(port)
        began_s = time.monotonic()

        async def back(wire: Any) -> float:
            assert await wire.up_within(60)
            return time.monotonic() - began_s

        times = sorted(await asyncio.gather(*(back(wire) for wire in wires)))
        crowd = max(sum(begin <= one < begin + WINDOW_S for one in times) for begin in times)
        print(
            f"{count} nodes after the server was killed: back {times[len(times) // 2]:.2f} s p50, "
            f"{times[int(len(times) * 0.99) - 1]:.2f} s p99; most in any {WINDOW_S * 1e3:.0f} ms: "
            f"{100 * crowd / count:.0f} %"
        )
        for wire in wires:
            await wire.close()
        await server.stop()


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"
    raise SystemExit(main())
