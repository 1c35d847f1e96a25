"""Machines that join over the network: real processes, a real server, real accidents."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import nats.errors
import psutil
import pytest
from gateway_process import GatewayProcess, gateway_process
from machine import EMULATED, Machine, invite, machine
from nats.aio.client import Client

from groundswell.bus import certificate, subjects
from groundswell.bus.door import token_of
from groundswell.bus.invite import read
from groundswell.bus.nkeys import Key

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

NO_NODES = "nodes = []\n"
OPEN = ("--open", "127.0.0.1:0")
BODY = {
    "model": "emulated",
    "messages": [{"role": "user", "content": "Tell me."}],
    "seed": 7,
    "max_tokens": 300,
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One for all tests that do it no harm; each leaves it without nodes."""
    with gateway_process(tmp_path_factory.mktemp("join") / "gateway", NO_NODES, OPEN) as process:
        yield process


async def stream(client: httpx.AsyncClient, body: dict[str, Any], gaps: list[float] | None = None) -> str:
    """The text of one streamed answer; raises for anything but a whole one. ``gaps`` gets all pauses."""
    text, done, last_s = "", False, 0.0
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            now_s = time.monotonic()
            if gaps is not None and last_s:
                gaps.append(now_s - last_s)
            last_s = now_s
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
    assert done, "the stream ended without its end"
    return text


def async_client(gateway: GatewayProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url, headers=gateway.headers, timeout=120, trust_env=False)


def bus_of(gateway: GatewayProcess) -> psutil.Process:
    """The NATS server that the gateway runs."""
    (server,) = (one for one in psutil.Process(gateway.process.pid).children() if "nats-server" in one.name())
    return server


async def test_streams_go_on_when_nodes_and_the_bus_are_killed(tmp_path: Path) -> None:
    """The promise of the project, over a network: whatever dies, the client sees a pause and no seam."""
    slow = EMULATED.format(speed=0.5)
    with (
        gateway_process(tmp_path / "gateway", NO_NODES, OPEN) as gateway,
        machine(tmp_path / "a", invite(gateway, "t0-a"), slow) as first,
        machine(tmp_path / "b", invite(gateway, "t0-b"), slow),
    ):
        gateway.wait_for_model("emulated", 2)
        async with async_client(gateway) as client:
            bodies = [{**BODY, "seed": seed} for seed in range(8)]
            undisturbed = await asyncio.gather(*(stream(client, body) for body in bodies))
            again = [asyncio.create_task(stream(client, body)) for body in bodies]
            await asyncio.sleep(0.8)
            bus_of(gateway).kill()
            await asyncio.sleep(2.0)
            first.kill()
            assert await asyncio.gather(*again) == undisturbed
    assert len(set(undisturbed)) == len(bodies)


async def test_a_node_that_is_killed_or_stopped_costs_a_pause(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    """The server tells of the killed one's connection; the stopped one is missed. Others go on."""
    with (
        machine(tmp_path / "a", invite(gateway, "t1-a")) as first,
        machine(tmp_path / "b", invite(gateway, "t1-b")) as second,
        machine(tmp_path / "c", invite(gateway, "t1-c")),
    ):
        gateway.wait_for_model("emulated", 3)
        async with async_client(gateway) as client:
            bodies = [{**BODY, "seed": seed} for seed in range(9)]
            undisturbed = [await stream(client, body) for body in bodies]
            for accident in (first.kill, lambda: second.process.send_signal(signal.SIGSTOP)):
                gaps: list[float] = []
                again = [asyncio.create_task(stream(client, body, gaps)) for body in bodies]
                await asyncio.sleep(1.0)
                accident()
                assert await asyncio.gather(*again) == undisturbed
                print(f"longest pause {max(gaps):.2f} s")
            second.process.send_signal(signal.SIGCONT)


def test_a_node_that_leaves_in_good_order_breaks_nothing(gateway: GatewayProcess, tmp_path: Path) -> None:
    """An owner who wants the machine back lets open works end first."""
    with machine(tmp_path / "a", invite(gateway, "t2-a")) as node, gateway.client() as client:
        gateway.wait_for_model("emulated")
        with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            node.process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" in rest
        assert node.process.wait(timeout=60) == 0
        assert client.get("/v1/nodes").json()["data"] == []


def test_a_machine_comes_back_without_an_invite(gateway: GatewayProcess, tmp_path: Path) -> None:
    """After a reboot nobody has to copy anything."""
    with machine(tmp_path / "a", invite(gateway, "t3-a")) as node:
        gateway.wait_for_model("emulated")
        node.kill()
    with machine(tmp_path / "a", None), gateway.client() as client:
        gateway.wait_for_model("emulated")
        assert client.post("/v1/chat/completions", json=BODY).status_code == 200
    assert (tmp_path / "a" / "data" / "node.json").stat().st_mode & 0o077 == 0


def join(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A ``join`` that is expected to fail."""
    env = {**os.environ, "GROUNDSWELL_DATA": str(folder), "GROUNDSWELL_CONFIG": os.devnull}
    command = [sys.executable, "-m", "groundswell", "join", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_an_invite_works_once_for_a_while_and_for_this_gateway(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    """Whoever finds it later, or reads it along, gets nothing; a false server gets nothing either."""
    text = invite(gateway, "t4-a")
    with machine(tmp_path / "a", text):
        gateway.wait_for_model("emulated")
    second = join(tmp_path / "b", text)
    assert second.returncode == 1
    assert "works once" in second.stderr
    short = invite(gateway, "t4-c", expires_s=1)
    time.sleep(1.1)
    assert join(tmp_path / "c", short).returncode == 1
    false = read(invite(gateway, "t4-d"))
    other = type(false)(false.host, false.port, false.node_id, false.secret, bytes(32))
    refused = join(tmp_path / "d", other.text())
    assert refused.returncode == 1
    assert "not the one" in refused.stderr
    assert join(tmp_path / "e", "gsw_join_nonsense").returncode == 1
    assert "not joined" in join(tmp_path / "f").stderr


async def test_a_node_that_is_removed_is_out_at_once(gateway: GatewayProcess, tmp_path: Path) -> None:
    """A machine that misbehaves must not finish the evening."""
    with machine(tmp_path / "a", invite(gateway, "t5-a"), EMULATED.format(speed=0.2)) as node:
        gateway.wait_for_model("emulated")
        async with async_client(gateway) as client:
            running = asyncio.create_task(stream(client, BODY))
            await asyncio.sleep(1.0)
            began_s = time.monotonic()
            assert (await client.delete("/v1/nodes/t5-a")).status_code == 204
            await asyncio.to_thread(node.wait_for, "the connection to the network broke")
            print(f"out after {time.monotonic() - began_s:.2f} s")
            assert (await client.get("/v1/nodes")).json()["data"] == []
            await asyncio.to_thread(node.wait_for, "Authorization Violation")
            assert (await client.get("/v1/nodes")).json()["data"] == []
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_the_door_opens_to_proved_keys_only_and_each_sees_its_own(gateway: GatewayProcess) -> None:
    """The server of a real gateway, tried with everything that a node has no business with."""
    one, two = read(invite(gateway, "t6-one")), read(invite(gateway, "t6-two"))
    pem = await certificate.fetch(one.host, one.port, one.fingerprint)
    server, keys = f"tls://{one.host}:{one.port}", (Key(os.urandom(32)), Key(os.urandom(32)))
    quiet: dict[str, Any] = {
        "tls": certificate.trusting(pem), "tls_handshake_first": True, "allow_reconnect": False,
        "error_cb": ignore,
    }  # fmt: skip
    forged = base64.b64encode(keys[1].sign(b"another nonce"))
    for options in (
        {},
        {"user": "gateway", "password": "gateway"},
        {"token": f"{keys[0].name}.{one.secret.hex()}"},
        {"token": f"{keys[0].name}.{one.secret.hex()}", "signature_cb": lambda nonce: forged},
        {"token": f"{keys[0].name}.{'00' * 16}", "signature_cb": token_of(keys[0])["signature_cb"]},
        token_of(keys[0]),
    ):
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await connected(server, **quiet, **options)
    seen: list[Any] = []
    for node, key in ((one, keys[0]), (two, keys[1])):
        client = await connected(server, **quiet, **token_of(key, node.secret.hex()))
        refused: list[str] = []
        own: list[Any] = []
        client._error_cb = partial(note, refused)
        other = two.node_id if node is one else one.node_id
        listens = [
            ">", "job.>", "job.*.*", "node.*.*", "_INBOX.>", "$SYS.>", "$SYS.REQ.USER.AUTH",
            subjects.to_node(other, "*"), subjects.from_node(other, "*"),
        ]  # fmt: skip
        says = [
            subjects.from_node(other, subjects.ALL), subjects.to_node(other, "g"), "$SYS.REQ.USER.AUTH",
            "$SYS.REQ.SERVER.PING", f"$SYS.REQ.SERVER.{client._server_info['server_id']}.KICK", "_INBOX.x",
        ]  # fmt: skip
        for subject in listens:
            await client.subscribe(subject, cb=partial(note, seen))
        for subject in says:
            await client.publish(subject, b"forged")
        async with asyncio.timeout(20):
            while len(refused) < len(listens) + len(says):
                await asyncio.sleep(0.01)
        await client.subscribe(subjects.to_node(node.node_id, "*"), cb=partial(note, own))
        await client.publish(subjects.from_node(node.node_id, subjects.ALL), b"its own")
        await client.flush()
        assert len(refused) == len(listens) + len(says)
        await client.close()
    assert seen == []


async def test_a_node_that_floods_is_shut_out(gateway: GatewayProcess, tmp_path: Path) -> None:
    """Others are served as before, and it is not let in again for a while."""
    node, key = read(invite(gateway, "t7-bad")), Key(os.urandom(32))
    pem = await certificate.fetch(node.host, node.port, node.fingerprint)
    options: dict[str, Any] = {
        "tls": certificate.trusting(pem), "tls_handshake_first": True, "allow_reconnect": False,
        "error_cb": ignore,
    }  # fmt: skip
    server = f"tls://{node.host}:{node.port}"
    with machine(tmp_path / "good", invite(gateway, "t7-good")):
        gateway.wait_for_model("emulated")
        client = await connected(server, **options, **token_of(key, node.secret.hex()))
        async with async_client(gateway) as http:
            running = asyncio.create_task(stream(http, BODY))
            with contextlib.suppress(nats.errors.Error):
                for _ in range(100_000):
                    await client.publish(subjects.from_node(node.node_id, subjects.ALL), b"nonsense")
            async with asyncio.timeout(20):
                while client.is_connected:
                    await asyncio.sleep(0.05)
            with contextlib.suppress(OSError, nats.errors.Error):
                await client.close()
            with pytest.raises((nats.errors.Error, TimeoutError)):
                await connected(server, **options, **token_of(key))
            assert len(await running) > 100


async def connected(server: str, **options: Any) -> Client:
    client = Client()
    try:
        await client.connect(server, **options)
    except BaseException:
        await client.close()
        raise
    return client


async def ignore(error: Exception) -> None:
    pass


async def note(into: list[Any], what: Any) -> None:
    into.append(what)


def test_a_gateway_that_was_killed_finds_its_nodes_again(tmp_path: Path) -> None:
    """Its server outlives it and holds the port; the next gateway must get it, and the nodes must come."""
    with gateway_process(tmp_path / "gateway", NO_NODES, OPEN) as gateway:
        text = invite(gateway, "t8-a")
        with machine(tmp_path / "a", text) as node:
            gateway.wait_for_model("emulated")
            gateway.kill()
            again = ("--open", f"127.0.0.1:{read(text).port}")
            with gateway_process(tmp_path / "gateway", NO_NODES, again) as next_gateway:
                next_gateway.wait_for_model("emulated")
                with next_gateway.client() as client:
                    assert client.post("/v1/chat/completions", json=BODY).status_code == 200
            assert isinstance(node, Machine)


def test_a_gateway_that_is_not_open_says_how_to_open_it(tmp_path: Path) -> None:
    """Who asks for an invite there is told what to do."""
    with gateway_process(tmp_path / "gateway", NO_NODES) as gateway, gateway.client() as client:
        answer = client.post("/v1/invites", json={})
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "network_closed"
    assert "--open" in answer.json()["error"]["message"]
