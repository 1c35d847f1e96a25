"""What every link must do. One suite, run on each pair of adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.contract.nats_users import login, users

from groundswell.bus.memory import MemoryLink
from groundswell.bus.nats import NatsWire, gateway_wire, node_wire
from groundswell.bus.server import NatsServer
from groundswell.model.errors import BadRequest, GroundswellError
from groundswell.model.messages import (
    Accepted,
    Ended,
    Fault,
    FromNode,
    Offer,
    Output,
    Refusal,
    Refused,
    ToNode,
    Withdraw,
)
from groundswell.model.node import NodeReport
from groundswell.model.work import Kind
from groundswell.ports import Emitted, GatewayLink, NodeLink, Payload

OFFER = Offer("w1", 1, "n1", "e1", Kind.CHAT, "m")
PAYLOAD = Payload(Kind.CHAT, {"messages": [{"role": "user", "content": "é"}]})

OnMessage = Callable[[ToNode, Payload | None], None]
OnFlow = Callable[[str, int, bool], None]


@dataclass
class Network:
    """A gateway's end and a way to make nodes' ends, joined. A node can be reached once ``node`` returns."""

    gateway: GatewayLink
    node: Callable[[str, OnMessage, OnFlow], Awaitable[NodeLink]]


@dataclass
class Heard:
    """Everything one end was told, in order."""

    items: list[Any] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> None:
        self.items.append(arguments if len(arguments) > 1 else arguments[0])


@dataclass
class GatewayEnd:
    messages: list[tuple[FromNode, bytes, GroundswellError | None]] = field(default_factory=list)
    reports: list[NodeReport] = field(default_factory=list)
    left: list[tuple[str, int]] = field(default_factory=list)


@pytest.fixture(params=["memory", "nats"])
async def network(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Network]:
    if request.param == "memory":
        yield memory_network()
        return
    server = NatsServer(tmp_path / "nats", users("n1", "n2", "nobody"))
    await server.start()
    wires: list[NatsWire] = []
    try:
        yield await nats_network(server, wires)
    finally:
        for wire in wires:
            await wire.close()
        await server.stop()


def memory_network() -> Network:
    link = MemoryLink()

    async def node(node_id: str, on_message: OnMessage, on_flow: OnFlow) -> NodeLink:
        end = link.node(node_id)
        end.listen(on_message, on_flow)
        return end

    return Network(link.gateway, node)


async def nats_network(server: NatsServer, wires: list[NatsWire]) -> Network:
    gateway, wire = gateway_wire(login(server, "gateway"), "g1")
    wires.append(wire)
    wire.start()
    assert await wire.up_within(5)

    async def node(node_id: str, on_message: OnMessage, on_flow: OnFlow) -> NodeLink:
        end, wire = node_wire(login(server, node_id), node_id)
        wires.append(wire)
        end.listen(on_message, on_flow)
        wire.start()
        assert await wire.up_within(5)
        return end

    return Network(gateway, node)


def listen(network: Network) -> GatewayEnd:
    end = GatewayEnd()
    network.gateway.listen(
        lambda message, data, error: end.messages.append((message, data, error)),
        end.reports.append,
        lambda node_id, generation: end.left.append((node_id, generation)),
    )
    return end


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not done():
            await asyncio.sleep(0.001)


async def offered(network: Network, node_id: str = "n1", flow: OnFlow | None = None) -> NodeLink:
    """A node that holds the attempt of ``OFFER``."""
    heard = Heard()
    node = await network.node(node_id, heard, flow or Heard())
    network.gateway.send(node_id, OFFER, PAYLOAD)
    await until(lambda: bool(heard.items))
    return node


async def test_an_offer_brings_its_payload_and_a_withdrawal_follows_it(network: Network) -> None:
    """A node that saw the withdrawal first would run the work for nobody."""
    listen(network)
    heard: list[tuple[ToNode, Payload | None]] = []
    await network.node("n1", lambda message, payload: heard.append((message, payload)), Heard())
    payload = Payload(Kind.CHAT, {"messages": [{"role": "user", "content": "é"}]}, emitted=Emitted("so", 1))
    network.gateway.send("n1", OFFER, payload)
    network.gateway.send("n1", Withdraw("w1", 1))
    await until(lambda: len(heard) == 2)
    assert heard == [(OFFER, payload), (Withdraw("w1", 1), None)]


async def test_a_segment_arrives_whole_in_both_directions(network: Network) -> None:
    """Video is larger than any message; whoever carries it in parts puts them together again."""
    end = listen(network)
    heard: list[tuple[ToNode, Payload | None]] = []
    node = await network.node("n1", lambda message, payload: heard.append((message, payload)), Heard())
    segment = bytes(range(256)) * 20_000
    network.gateway.send("n1", OFFER, Payload(Kind.TRANSCODE, {"rungs": [360]}, segment))
    await until(lambda: bool(heard))
    payload = heard[0][1]
    assert payload is not None
    assert payload.data == segment
    node.send(Accepted("w1", 1))
    node.send(Output("w1", 1, 0), data=segment)
    node.send(Ended("w1", 1, 1))
    await until(lambda: bool(end.messages) and isinstance(end.messages[-1][0], Ended))
    assert [data for _, data, _ in end.messages[-2:]] == [segment, b""]
    # A link may say itself that a large offer is being taken in, lest it be thought lost.
    assert {type(message) for message, _, _ in end.messages[:-2]} == {Accepted}


async def test_output_arrives_in_order_with_its_bytes(network: Network) -> None:
    """The text that a client reads is these frames, one after the other."""
    end = listen(network)
    node = await offered(network)
    node.send(Accepted("w1", 1))
    for index in range(100):
        node.send(Output("w1", 1, index, tokens=1), data=b"frame %d" % index)
    await until(lambda: len(end.messages) == 101)
    assert end.messages[0][0] == Accepted("w1", 1)
    assert [message for message, _, _ in end.messages[1:]] == [
        Output("w1", 1, i, tokens=1) for i in range(100)
    ]
    assert [data for _, data, _ in end.messages[1:]] == [b"frame %d" % index for index in range(100)]


async def test_a_refusal_says_why(network: Network) -> None:
    """A node that is full is asked again; one without the engine is not."""
    end = listen(network)
    node = await offered(network)
    node.send(Refused("w1", 1, Refusal.FULL))
    await until(lambda: bool(end.messages))
    assert end.messages == [(Refused("w1", 1, Refusal.FULL), b"", None)]


async def test_an_end_with_a_fault_brings_its_error(network: Network) -> None:
    """The client must be told what its engine said, code and field included."""
    end = listen(network)
    node = await offered(network)
    error = BadRequest("Too long.", code="context_length_exceeded", param="messages")
    node.send(Ended("w1", 1, 0, fault=Fault.REJECTED), error=error)
    await until(lambda: bool(end.messages))
    message, data, got = end.messages[0]
    assert (message, data) == (Ended("w1", 1, 0, fault=Fault.REJECTED), b"")
    assert got is not None
    assert (type(got), got.message, got.code, got.param) == (
        BadRequest, "Too long.", "context_length_exceeded", "messages",
    )  # fmt: skip


async def test_back_pressure_reaches_the_node(network: Network) -> None:
    """Without it a slow client would fill memory with what its engine makes."""
    listen(network)
    flow = Heard()
    await offered(network, flow=flow)
    network.gateway.pause("n1", "w1", 1)
    network.gateway.resume("n1", "w1", 1)
    await until(lambda: len(flow.items) == 2)
    assert flow.items == [("w1", 1, True), ("w1", 1, False)]


async def test_messages_go_to_the_node_they_name_and_to_no_other(network: Network) -> None:
    """Prompts are private: a node sees only what it serves."""
    listen(network)
    first, second = Heard(), Heard()
    await network.node("n1", first, Heard())
    await network.node("n2", second, Heard())
    network.gateway.send("n2", Withdraw("w9", 1))
    await until(lambda: bool(second.items))
    assert first.items == []


async def test_a_message_to_nobody_is_lost_and_harms_nothing(network: Network) -> None:
    """Nodes vanish at any moment; sending to one that did is no error."""
    listen(network)
    network.gateway.send("nobody", Withdraw("w1", 1))
    network.gateway.pause("nobody", "w1", 1)
    heard = Heard()
    await network.node("n1", heard, Heard())
    network.gateway.send("n1", Withdraw("w1", 1))
    await until(lambda: bool(heard.items))


async def test_goodbye_names_the_generation_that_left(network: Network) -> None:
    """A node that has already come back must not be taken out by its ghost's goodbye."""
    end = listen(network)
    node = await network.node("n1", Heard(), Heard())
    node.report(NodeReport("n1", generation=7, sequence=0))
    node.leave()
    await until(lambda: bool(end.left))
    assert end.reports[0].generation == 7
    assert end.left[0] == ("n1", 7)


async def test_a_node_that_left_is_heard_no_more(network: Network) -> None:
    """What still trickles out of it belongs to attempts that have moved on."""
    end = listen(network)
    node = await offered(network)
    node.leave()
    node.send(Accepted("w1", 1))
    node.report(NodeReport("n1", generation=1, sequence=1))
    other = await network.node("n2", Heard(), Heard())
    other.report(NodeReport("n2", generation=1, sequence=1))
    await until(lambda: bool(end.reports))
    assert end.messages == []
    assert [report.node_id for report in end.reports] == ["n2"]


async def test_a_listener_that_fails_does_not_break_the_other_side(network: Network) -> None:
    """A defect at one end must stay there."""
    end = listen(network)
    failed: list[ToNode] = []

    def fail(message: ToNode, payload: Payload | None) -> None:
        failed.append(message)
        raise RuntimeError("planted")

    node = await network.node("n1", fail, Heard())
    network.gateway.send("n1", OFFER, PAYLOAD)
    await until(lambda: bool(failed))
    node.send(Accepted("w1", 1))
    await until(lambda: bool(end.messages))
