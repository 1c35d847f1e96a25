"""What every link must do. One suite, run on each pair of adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from groundswell.bus.memory import MemoryLink
from groundswell.model.errors import BadRequest, GroundswellError
from groundswell.model.messages import Accepted, Ended, Fault, FromNode, Offer, Output, ToNode, Withdraw
from groundswell.model.node import NodeReport
from groundswell.model.work import Kind
from groundswell.ports import Emitted, GatewayLink, NodeLink, Payload

OFFER = Offer("w1", 1, "n1", "e1", Kind.CHAT, "m")


@dataclass
class Network:
    """A gateway's end and a way to make nodes' ends, joined."""

    gateway: GatewayLink
    node: Callable[[str], NodeLink]


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


@pytest.fixture(params=["memory"])
def network(request: pytest.FixtureRequest) -> Network:
    link = MemoryLink()
    return Network(link.gateway, link.node)


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


async def test_an_offer_brings_its_payload_and_a_withdrawal_follows_it(network: Network) -> None:
    """A node that saw the withdrawal first would run the work for nobody."""
    listen(network)
    heard: list[tuple[ToNode, Payload | None]] = []
    network.node("n1").listen(lambda message, payload: heard.append((message, payload)), Heard())
    payload = Payload(Kind.CHAT, {"messages": [{"role": "user", "content": "é"}]}, emitted=Emitted("so", 1))
    network.gateway.send("n1", OFFER, payload)
    network.gateway.send("n1", Withdraw("w1", 1))
    await until(lambda: len(heard) == 2)
    assert heard == [(OFFER, payload), (Withdraw("w1", 1), None)]


async def test_output_arrives_in_order_with_its_bytes(network: Network) -> None:
    """The text that a client reads is these frames, one after the other."""
    end = listen(network)
    node = network.node("n1")
    node.listen(Heard(), Heard())
    node.send(Accepted("w1", 1))
    for index in range(100):
        node.send(Output("w1", 1, index, tokens=1), data=b"frame %d" % index)
    await until(lambda: len(end.messages) == 101)
    assert end.messages[0][0] == Accepted("w1", 1)
    assert [data for _, data, _ in end.messages[1:]] == [b"frame %d" % index for index in range(100)]


async def test_an_end_with_a_fault_brings_its_error(network: Network) -> None:
    """The client must be told what its engine said, code and field included."""
    end = listen(network)
    node = network.node("n1")
    node.listen(Heard(), Heard())
    error = BadRequest("Too long.", code="context_length_exceeded", param="messages")
    node.send(Ended("w1", 1, 0, fault=Fault.REJECTED), error=error)
    await until(lambda: bool(end.messages))
    _, data, got = end.messages[0]
    assert data == b""
    assert got is not None
    assert (type(got), got.message, got.code, got.param) == (
        BadRequest, "Too long.", "context_length_exceeded", "messages",
    )  # fmt: skip


async def test_back_pressure_reaches_the_node(network: Network) -> None:
    """Without it a slow client would fill memory with what its engine makes."""
    listen(network)
    flow = Heard()
    network.node("n1").listen(Heard(), flow)
    network.gateway.pause("n1", "w1", 1)
    network.gateway.resume("n1", "w1", 1)
    await until(lambda: len(flow.items) == 2)
    assert flow.items == [("w1", 1, True), ("w1", 1, False)]


async def test_messages_go_to_the_node_they_name_and_to_no_other(network: Network) -> None:
    """Prompts are private: a node sees only what it serves."""
    listen(network)
    first, second = Heard(), Heard()
    network.node("n1").listen(first, Heard())
    network.node("n2").listen(second, Heard())
    network.gateway.send("n2", Withdraw("w9", 1))
    await until(lambda: bool(second.items))
    assert first.items == []


async def test_a_message_to_nobody_is_lost_and_harms_nothing(network: Network) -> None:
    """Nodes vanish at any moment; sending to one that did is no error."""
    listen(network)
    network.gateway.send("nobody", Withdraw("w1", 1))
    network.gateway.pause("nobody", "w1", 1)
    heard = Heard()
    network.node("n1").listen(heard, Heard())
    network.gateway.send("n1", Withdraw("w1", 1))
    await until(lambda: bool(heard.items))


async def test_goodbye_names_the_generation_that_left(network: Network) -> None:
    """A node that has already come back must not be taken out by its ghost's goodbye."""
    end = listen(network)
    node = network.node("n1")
    node.listen(Heard(), Heard())
    node.report(NodeReport("n1", generation=7, sequence=0))
    node.leave()
    await until(lambda: bool(end.left))
    assert end.reports[0].generation == 7
    assert end.left == [("n1", 7)]


async def test_a_node_that_left_is_heard_no_more(network: Network) -> None:
    """What still trickles out of it belongs to attempts that have moved on."""
    end = listen(network)
    node = network.node("n1")
    node.listen(Heard(), Heard())
    node.leave()
    node.send(Accepted("w1", 1))
    other = network.node("n2")
    other.listen(Heard(), Heard())
    other.send(Accepted("w2", 1))
    await until(lambda: bool(end.messages))
    assert [message for message, _, _ in end.messages] == [Accepted("w2", 1)]


async def test_a_listener_that_fails_does_not_break_the_other_side(network: Network) -> None:
    """A defect at one end must stay there."""
    end = listen(network)
    node = network.node("n1")

    def fail(message: ToNode, payload: Payload | None) -> None:
        raise RuntimeError("planted")

    node.listen(fail, Heard())
    network.gateway.send("n1", Withdraw("w1", 1))
    node.send(Accepted("w1", 1))
    await until(lambda: bool(end.messages))
