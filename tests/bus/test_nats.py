"""The wire against a real NATS server: cut off and back, and each node held to its own subjects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from tests.contract.nats_users import login, users

from groundswell.bus import subjects
from groundswell.bus.nats import NatsWire, gateway_wire, node_wire
from groundswell.bus.records import Part, encode
from groundswell.bus.server import NatsServer
from groundswell.model.messages import Accepted, Ended, Offer, Output, ToNode
from groundswell.model.work import Kind
from groundswell.ports import Payload

pytestmark = pytest.mark.e2e

NODES = ("n1", "n2", "a.b")
FOREIGN = [
    ">", "*", "job.>", "job.*.*", "job.*.g1", "node.>", "node.*.*", "node.*.all", "_INBOX.>", "$SYS.>",
    "$SYS.REQ.>", "$JS.>", "$SYS.REQ.USER.AUTH", "job", "job.{own}.g1.more", "{own}", "*.{own}.*",
    "node.{own}.*",
]  # fmt: skip


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats", users(*NODES))
    await server.start()
    yield server
    await server.stop()


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not done():
            await asyncio.sleep(0.005)


async def test_streams_go_on_when_the_server_was_killed_and_comes_back(server: NatsServer) -> None:
    """A bus that restarts costs a pause, not an answer."""
    heard: list[tuple[Any, bytes]] = []
    gateway, wire = gateway_wire(login(server, "gateway"), "g1")
    gateway.listen(
        lambda message, data, error: heard.append((message, data)), lambda _: None, lambda *_: None
    )
    offers: list[ToNode] = []
    node, other = node_wire(login(server, "n1"), "n1")
    node.listen(lambda message, payload: offers.append(message), lambda *_: None)
    for one in (wire, other):
        one.start()
        assert await one.up_within(10)
    for number in range(5):
        gateway.send("n1", Offer(f"w{number}", 1, "n1", "e", Kind.CHAT, "m"), Payload(Kind.CHAT, {}))
    await until(lambda: len(offers) == 5)
    for number in range(5):
        node.send(Accepted(f"w{number}", 1))
    for index in range(600):
        if index == 200:
            port = server.port
            await server.kill()
        if index == 400:
            await server.start(port)
        for number in range(5):
            node.send(Output(f"w{number}", 1, index, 1), data=b"%d " % index)
        await asyncio.sleep(0.002)
    for number in range(5):
        node.send(Ended(f"w{number}", 1, 600))
    await until(lambda: sum(type(message) is Ended for message, _ in heard) == 5)
    for number in range(5):
        text = b"".join(data for message, data in heard if message.work_id == f"w{number}")
        assert text == b"".join(b"%d " % index for index in range(600))
    for one in (wire, other):
        await one.close()


async def attempt_everything(client: Client, node_id: str, seen: list[Any]) -> tuple[int, int]:
    """Everything that a node has no business with. How much of it was tried, and refused."""
    refused: list[Exception] = []

    async def on_error(error: Exception) -> None:
        refused.append(error)

    async def on_message(message: Any) -> None:
        seen.append((node_id, message.subject))

    client._error_cb = on_error
    others = [other for other in NODES if other != node_id]
    listens = [subject.replace("{own}", subjects.token(node_id)) for subject in FOREIGN]
    listens += [subjects.to_node(other, who) for other in others for who in ("*", "g1", "all")]
    says = [subjects.from_node(other, who) for other in others for who in ("g1", "all")]
    says += [subjects.to_node(one, "g1") for one in NODES]
    says += ["$SYS.REQ.USER.AUTH", "$SYS.REQ.SERVER.PING", "_INBOX.x", "gateway", "node"]
    for subject in listens:
        await client.subscribe(subject, cb=on_message)
        await client.subscribe(subject, queue="thieves", cb=on_message)
    for subject in says:
        await client.publish(subject, encode(Part("w", 1, 0, False, b"forged")))
    tried = 2 * len(listens) + len(says)
    await until(lambda: len(refused) >= tried)
    assert all("permissions violation" in str(error).lower() for error in refused)
    return tried, len(refused)


async def test_no_node_reads_or_speaks_on_anothers_subjects(server: NatsServer) -> None:
    """Prompts of others pass over the same server: every node against every foreign subject."""
    seen: list[Any] = []
    clients = []
    for node_id in NODES:
        client = await nats.connect(f"nats://{node_id}:secret@127.0.0.1:{server.port}", allow_reconnect=False)
        clients.append(client)
        tried, refused = await attempt_everything(client, node_id, seen)
        assert refused == tried
    gateway, wire = gateway_wire(login(server, "gateway"), "g1")
    offers: list[ToNode] = []
    ends: list[NatsWire] = [wire]
    for node_id in NODES:
        node, other = node_wire(login(server, node_id), node_id)
        node.listen(lambda message, payload: offers.append(message), lambda *_: None)
        ends.append(other)
    for end in ends:
        end.start()
        assert await end.up_within(10)
    for node_id in NODES:
        gateway.send(node_id, Offer("w" + node_id, 1, node_id, "e", Kind.CHAT, "m"), Payload(Kind.CHAT, {}))
    await until(lambda: len(offers) == len(NODES))
    for client in clients:
        await client.flush()
        await client.close()
    for end in ends:
        await end.close()
    assert seen == []


async def test_a_server_that_cannot_carry_our_frames_is_not_used(tmp_path: Path) -> None:
    """Half of all requests would be lost on it; the log says what to set."""
    server = NatsServer(tmp_path / "nats", users())
    await server.start(max_payload=1000)
    _, wire = gateway_wire(login(server, "gateway"), "g1")
    wire.start()
    assert not await wire.up_within(1)
    await wire.close()
    await server.stop()
