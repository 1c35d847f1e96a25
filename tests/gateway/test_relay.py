"""The relay between a scripted exchange and a node whose every message the test writes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from groundswell.bus.memory import MemoryLink, MemoryNodeLink
from groundswell.core.contract import Finish
from groundswell.core.dispatch import Dispatcher
from groundswell.gateway.relay import Relay
from groundswell.model.errors import BadRequest, GroundswellError, InternalError
from groundswell.model.messages import Accepted, Ended, Fault, Offer, Output, ToNode, Withdraw
from groundswell.model.money import Usage
from groundswell.model.node import Capability, Continuation, EngineReport, NodeReport
from groundswell.model.work import Kind, Work, WorkState
from groundswell.ports import Payload

MODEL = Capability("m", "m", frozenset({Kind.CHAT}), "print", Continuation.TEXT)


@dataclass
class Exchange:
    """Keeps what it is given; fails where a test says so."""

    fail_in: str = ""
    got: list[bytes] = field(default_factory=list)
    ends: list[tuple[Finish, GroundswellError | None]] = field(default_factory=list)

    def payload(self, offer: Offer) -> Payload:
        if self.fail_in == "payload":
            raise BadRequest("It cannot be built.", code="planted")
        return Payload(offer.kind, {"attempt": offer.attempt})

    def deliver(self, output: Output, data: bytes) -> None:
        if self.fail_in == "deliver":
            raise RuntimeError("planted")
        self.got.append(data)

    def finish(self, finish: Finish, error: GroundswellError | None) -> None:
        self.ends.append((finish, error))
        if self.fail_in == "finish":
            raise RuntimeError("planted")


class Node:
    """A node's end of the link, played by hand."""

    def __init__(self, link: MemoryNodeLink) -> None:
        self.link = link
        self.heard: list[ToNode] = []
        self.payloads: list[Payload | None] = []
        self.flow: list[tuple[str, int, bool]] = []
        link.listen(self._message, lambda *flow: self.flow.append(flow))
        self.report()

    def _message(self, message: ToNode, payload: Payload | None) -> None:
        self.heard.append(message)
        if isinstance(message, Offer):
            self.payloads.append(payload)

    def report(self, healthy: bool = True) -> None:
        engine = EngineReport("e", 1, 4, 0, healthy, (MODEL,))
        self.link.report(NodeReport(self.link.node_id, 1, len(self.heard) + 1, (engine,)))

    def send(self, work_id: str, index: int, data: bytes, attempt: int = 1) -> None:
        self.link.send(Output(work_id, attempt, index, tokens=1), data)

    def end(self, work_id: str, frames: int, fault: Fault | None = None, **more: GroundswellError) -> None:
        self.link.send(Ended(work_id, 1, frames, Usage(1, frames), fault), **more)


@dataclass
class Scene:
    relay: Relay
    node: Node
    link: MemoryLink
    settled: list[Finish]

    def submit(self, work_id: str = "w", fail_in: str = "") -> Exchange:
        exchange = Exchange(fail_in)
        deadline_s = asyncio.get_running_loop().time() + 30
        work = Work(work_id, Kind.CHAT, "m", "t", deadline_s, streaming=True, resumable=True)
        self.relay.submit(work, exchange)
        return exchange


@pytest.fixture
async def scene() -> Scene:
    link = MemoryLink()
    settled: list[Finish] = []
    relay = Relay(Dispatcher(), link.gateway, lambda: 5, lambda work, finish: settled.append(finish))
    return Scene(relay, Node(link.node("n")), link, settled)


async def test_frames_reach_the_client_in_order_and_the_end_comes_once(scene: Scene) -> None:
    """Also when the link delivers them out of order and more than once."""
    exchange = scene.submit()
    assert scene.node.heard == [Offer("w", 1, "n", "e", Kind.CHAT, "m")]
    assert scene.node.payloads == [Payload(Kind.CHAT, {"attempt": 1})]
    scene.node.link.send(Accepted("w", 1))
    for index in (0, 2, 2, 1, 0, 3):
        scene.node.send("w", index, b"%d" % index)
    scene.node.end("w", 4)
    scene.node.end("w", 4)
    assert exchange.got == [b"0", b"1", b"2", b"3"]
    ((finish, error),) = exchange.ends
    assert (finish.state, error, finish.usage) == (WorkState.DONE, None, Usage(1, 4))
    assert scene.settled == [finish]
    assert scene.relay.open_works == 0


async def test_frames_of_an_attempt_that_was_given_up_are_not_delivered(scene: Scene) -> None:
    """A node that was only slow may still talk when its work has moved on; the client must not hear twice."""
    exchange = scene.submit()
    scene.node.link.send(Accepted("w", 1))
    scene.node.send("w", 0, b"one ")
    second = Node(scene.link.node("n2"))
    scene.link.gateway.detach(scene.node.link, 1)
    (offer,) = second.heard
    assert isinstance(offer, Offer)
    assert (offer.attempt, offer.emitted_tokens) == (2, 1)
    second.send("w", 1, b"ghost ")  # Of attempt 1, as a network could still bring it.
    second.send("w", 0, b"two", attempt=2)
    assert exchange.got == [b"one ", b"two"]


async def test_what_an_engine_said_of_a_wrong_request_reaches_the_exchange(scene: Scene) -> None:
    """The client must learn what was wrong with its request."""
    exchange = scene.submit()
    scene.node.end("w", 0, Fault.REJECTED, error=BadRequest("Too long.", code="context_length_exceeded"))
    ((finish, error),) = exchange.ends
    assert finish.state is WorkState.FAILED
    assert error is not None
    assert error.code == "context_length_exceeded"


@pytest.mark.parametrize("place", ["payload", "deliver", "finish"])
async def test_an_exchange_that_fails_ends_its_own_work_only(scene: Scene, place: str) -> None:
    """One broken connection must not take the other clients with it."""
    broken, sound = scene.submit("w1", place), scene.submit("w2")
    for work_id in ("w1", "w2"):
        scene.node.link.send(Accepted(work_id, 1))
        scene.node.send(work_id, 0, b"x")
        scene.node.end(work_id, 1)
    # An end that could not be written is told again, as failed: no client waits for ever.
    assert len(broken.ends) == (2 if place == "finish" else 1)
    assert place == "payload" or broken.ends[-1][0].state is WorkState.FAILED
    assert sound.got == [b"x"]
    assert sound.ends[0][0].state is WorkState.DONE
    assert sorted(finish.work_id for finish in scene.settled) == ["w1", "w2"]
    assert scene.relay.open_works == 0
    if place == "payload":
        assert broken.ends[0][1].code == "planted"  # type: ignore[union-attr]
    if place == "deliver":
        assert isinstance(broken.ends[0][1], InternalError)
        assert Withdraw("w1", 1) in scene.node.heard


async def test_cancel_withdraws_the_attempt_and_ends_the_work(scene: Scene) -> None:
    """A client that left must not keep an engine busy."""
    exchange = scene.submit()
    scene.relay.cancel("w")
    scene.relay.cancel("w")
    assert scene.node.heard[-1] == Withdraw("w", 1)
    assert [finish.state for finish, _ in exchange.ends] == [WorkState.CANCELLED]


async def test_back_pressure_follows_the_work_to_its_node(scene: Scene) -> None:
    """A client that does not read must be felt by the engine that serves it now, not by an earlier one."""
    scene.submit()
    scene.relay.pause("w")
    scene.relay.pause("w")
    assert scene.node.flow == [("w", 1, True)]
    second = Node(scene.link.node("n2"))
    scene.link.gateway.detach(scene.node.link, 1)
    assert second.flow == [("w", 2, True)]
    scene.relay.resume("w")
    assert second.flow[-1] == ("w", 2, False)


async def test_a_refusal_finishes_before_submit_returns(scene: Scene) -> None:
    """An honest no costs the client no wait."""
    exchange = Exchange()
    work = Work("w", Kind.CHAT, "unknown", "t", asyncio.get_running_loop().time() + 30)
    scene.relay.submit(work, exchange)
    assert [finish.state for finish, _ in exchange.ends] == [WorkState.REFUSED]


async def test_the_same_work_twice_is_a_defect_that_is_said(scene: Scene) -> None:
    """Two clients on one id would read each other's text."""
    scene.submit()
    with pytest.raises(ValueError):
        scene.submit()


async def test_nodes_are_shown_until_they_leave(scene: Scene) -> None:
    """The status page shows who is there."""
    (view,) = scene.relay.nodes()
    assert view.report.node_id == "n"
    assert view.age_s < 5
    scene.node.link.leave()
    assert scene.relay.nodes() == []


async def test_drain_waits_for_the_last_work_and_close_fails_what_is_left(scene: Scene) -> None:
    """A gateway that ends lets its clients finish, and leaves none waiting for ever."""
    exchange = scene.submit()
    assert not await scene.relay.drain(0.01)
    asyncio.get_running_loop().call_later(0.02, scene.node.end, "w", 0)
    assert await scene.relay.drain(5)
    assert exchange.ends[0][0].state is WorkState.DONE
    left = scene.submit("w2")
    scene.relay.close()
    assert [finish.state for finish, _ in left.ends] == [WorkState.FAILED]
