"""Both ends of a network link in made-up weather: what they promise when the wire keeps no promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundswell.bus import subjects
from groundswell.bus.gateway_end import FORGET_S, GatewayEnd
from groundswell.bus.node_end import SILENCE_S, NodeEnd
from groundswell.bus.records import Hello, Part, Report, answer_record, encode
from groundswell.bus.streams import PART_COST, WINDOW_BYTES
from groundswell.model.messages import Accepted, Ended, Fault, Offer, Output, Refusal, Refused, Withdraw
from groundswell.model.node import NodeReport
from groundswell.model.work import Kind
from groundswell.ports import Payload
from groundswell.sim.clock import Clock
from groundswell.sim.links import Cut, Link, Weather

PAYLOAD = Payload(Kind.CHAT, {"prompt": "hi"}, data=b"seg")


def offer(work_id: str = "w", node_id: str = "n1") -> Offer:
    return Offer(work_id, 1, node_id, "e", Kind.CHAT, "m")


@dataclass
class Side:
    """An end, and all that its listeners heard."""

    heard: list[Any] = field(default_factory=list)
    flow: list[tuple[str, int, bool]] = field(default_factory=list)
    reports: list[NodeReport] = field(default_factory=list)
    left: list[tuple[str, int]] = field(default_factory=list)
    on_offer: Callable[[Offer], None] = lambda offer: None


class World:
    """A gateway and two nodes on one wire. It routes by subject, as the server does."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = Clock()
        self.up, self.down = Weather(0.01, 0.0), Weather(0.01, 0.0)
        chance = Random(seed)
        self.bytes: list[tuple[str, bytes]] = []
        to_gateway = Link(self.clock, chance, self.up, self._to_gateway)
        to_nodes = Link(self.clock, chance, self.down, self._to_node)
        self.gateway = GatewayEnd("g1", lambda *sent: self._sent(to_nodes, *sent), self._now_s)
        self.at_gateway = Side()
        self.gateway.listen(
            lambda message, data, error: self.at_gateway.heard.append((message, data)),
            self.at_gateway.reports.append,
            lambda *who: self.at_gateway.left.append(who),
        )
        self.nodes: dict[str, NodeEnd] = {}
        self.at_node: dict[str, Side] = {}
        for node_id in ("n1", "n2"):
            self._add(node_id, to_gateway)
        self.beating = {"g1", "n1", "n2"}
        self._beat()

    def run(self, seconds: float) -> None:
        until_s = self.clock.now_s + seconds
        while self.clock.advance(until_s):
            pass
        self.clock.now_s = until_s

    def _add(self, node_id: str, wire: Link) -> None:
        side = self.at_node[node_id] = Side()
        node = self.nodes[node_id] = NodeEnd(node_id, lambda *sent: self._sent(wire, *sent), self._now_s)

        def on_message(message: Any, payload: Payload | None) -> None:
            side.heard.append(message)
            if isinstance(message, Offer):
                assert payload == PAYLOAD
                side.on_offer(message)
            else:
                node.send(Ended(message.work_id, message.attempt, 0, fault=Fault.CANCELLED))

        node.listen(on_message, lambda *flow: side.flow.append(flow))

    def _now_s(self) -> float:
        return self.clock.now_s

    def _sent(self, wire: Link, subject: str, data: bytes) -> None:
        self.bytes.append((subject, data))
        wire.send(subject, data)

    def _to_gateway(self, subject: str, data: bytes) -> None:
        if subject.rpartition(".")[2] in (subjects.ALL, "g1"):
            self.gateway.received(subject, data)

    def _to_node(self, subject: str, data: bytes) -> None:
        self.nodes[subjects.parts(subject)[0]].received(subject, data)

    def _beat(self) -> None:
        if "g1" in self.beating:
            self.gateway.beat()
        for node_id, node in self.nodes.items():
            if node_id in self.beating:
                node.beat()
        self.clock.after(1.0, self._beat)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.data())
def test_every_answer_arrives_once_and_in_order_when_the_weather_clears(
    seed: int, data: st.DataObject
) -> None:
    """A stream goes on over lost connections: the client sees a pause and no seam."""
    world = World(seed)
    made: dict[str, list[bytes]] = {}

    def serve(node: NodeEnd, one: Offer) -> None:
        if one.work_id in made:  # A late copy: the agent answers it from memory.
            node.send(Ended(one.work_id, 1, len(made[one.work_id])))
            return
        rate_s = data.draw(st.sampled_from([0.001, 0.05, 0.3]))
        sizes = data.draw(st.lists(st.sampled_from([0, 7, 900, 70_000, 300_000]), max_size=25))
        outputs = made[one.work_id] = [bytes([index]) * size for index, size in enumerate(sizes)]
        world.clock.after(0.0, node.send, Accepted(one.work_id, 1))
        for index, output in enumerate(outputs):
            world.clock.after(rate_s * (index + 1), node.send, Output(one.work_id, 1, index, 1), output)
        end = Ended(one.work_id, 1, len(outputs))
        world.clock.after(rate_s * (len(outputs) + 1), node.send, end)

    works = {f"w{number}": data.draw(st.sampled_from(["n1", "n2"])) for number in range(3)}
    for node_id, node in world.nodes.items():
        world.at_node[node_id].on_offer = lambda one, node=node: serve(node, one)
    for work_id, node_id in works.items():
        world.clock.after(data.draw(st.floats(0, 4)), world.gateway.send, node_id, offer(work_id), PAYLOAD)
    for weather in (world.up, world.down):
        weather.drop = data.draw(st.sampled_from([0.0, 0.0, 0.2]))
        weather.duplicate = data.draw(st.sampled_from([0.0, 0.2]))
        weather.reorder = data.draw(st.sampled_from([0.0, 0.2]))
        weather.spread_s = 0.3
        cut_s = data.draw(st.floats(0, 4))
        world.clock.after(cut_s, setattr, weather, "cut", data.draw(st.sampled_from([Cut.DROPS, Cut.HOLDS])))
        world.clock.after(cut_s + data.draw(st.floats(0, 4)), weather.heal)
    world.run(8.0)
    for weather in (world.up, world.down):
        weather.heal()
    world.run(30.0)
    for work_id in works:
        heard = [(message, data) for message, data in world.at_gateway.heard if message.work_id == work_id]
        outputs = made[work_id]
        assert heard[0] == (Accepted(work_id, 1), b"")
        assert [data for _, data in heard[1:-1]] == outputs
        assert [message.index for message, _ in heard[1:-1]] == list(range(len(outputs)))
        assert heard[-1] == (Ended(work_id, 1, len(outputs)), b"")
    assert not len(world.gateway._channels)
    assert not any(len(node._channels) for node in world.nodes.values())


def accepted(world: World, work_id: str = "w", node_id: str = "n1") -> NodeEnd:
    """A node that runs an attempt."""
    world.gateway.send(node_id, offer(work_id, node_id), PAYLOAD)
    world.run(0.1)
    world.nodes[node_id].send(Accepted(work_id, 1))
    world.run(0.1)
    return world.nodes[node_id]


def test_a_node_ends_attempts_whose_gateway_fell_silent() -> None:
    """A gateway that died would hold its slots for ever."""
    world = World()
    accepted(world)
    world.beating.discard("g1")
    world.run(SILENCE_S - 1)
    assert world.at_node["n1"].heard == [offer()]
    world.run(3)
    assert world.at_node["n1"].heard == [offer(), Withdraw("w", 1)]
    assert not len(world.nodes["n1"]._channels)


def test_a_node_that_stood_still_hears_before_it_judges() -> None:
    """A laptop that slept finds old messages in its sockets; its gateway was not silent, it was."""
    world = World()
    accepted(world)
    world.beating.discard("n1")
    world.down.cut = Cut.HOLDS
    world.run(30)
    world.nodes["n1"].beat()
    world.down.heal()
    world.beating.add("n1")
    world.run(3)
    assert world.at_node["n1"].heard == [offer()]


def test_an_attempt_that_only_the_node_knows_is_stopped() -> None:
    """What the gateway gave up must not go on burning somebody's power."""
    world = World()
    accepted(world)
    world.up.cut = Cut.DROPS
    world.run(FORGET_S + 3)
    world.up.heal()
    world.run(3)
    assert world.at_node["n1"].heard == [offer(), Withdraw("w", 1)]


def test_output_of_a_withdrawn_attempt_is_dropped_and_its_end_is_heard() -> None:
    """Late parts must not reach a client, and the slot must be known to be free."""
    world = World()
    node = accepted(world)
    world.gateway.send("n1", Withdraw("w", 1))
    node.send(Output("w", 1, 0, 1), b"late")
    world.run(0.1)
    assert world.at_gateway.heard == [(Accepted("w", 1), b""), (Ended("w", 1, 0, fault=Fault.CANCELLED), b"")]


def test_the_end_of_a_withdrawn_attempt_does_not_wait_for_a_slow_client() -> None:
    """A client that left while it was paused frees its slot at once."""
    world = World()
    node = accepted(world)
    world.gateway.pause("n1", "w", 1)
    world.run(0.1)
    for index in range(10):
        node.send(Output("w", 1, index, 1), bytes(WINDOW_BYTES))
    world.gateway.send("n1", Withdraw("w", 1))
    world.run(0.1)
    assert [type(message) for message, _ in world.at_gateway.heard] == [Accepted, Ended]


def test_a_slow_client_stops_its_engine_and_nobody_elses() -> None:
    """Credit is each stream's own."""
    world = World()
    node = accepted(world)
    accepted(world, "v")
    world.gateway.pause("n1", "w", 1)
    world.run(0.1)
    assert world.at_node["n1"].flow == [("w", 1, True)]
    for index in range(10):
        node.send(Output("w", 1, index, 1), bytes(50_000))
        node.send(Output("v", 1, index, 1), bytes(50_000))
        world.run(0.05)
    got = [(message.work_id, len(data)) for message, data in world.at_gateway.heard if data]
    assert got == [("v", 50_000)] * 10
    world.gateway.resume("n1", "w", 1)
    world.run(0.2)
    assert sum(len(data) for message, data in world.at_gateway.heard if message.work_id == "w") == 500_000
    assert world.at_node["n1"].flow[-1] == ("w", 1, False)


def test_an_engine_that_ignores_its_pause_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's memory has a bound."""
    world = World()
    node = accepted(world)
    world.gateway.pause("n1", "w", 1)
    world.run(0.1)
    for index in range(70):
        node.send(Output("w", 1, index, 1), bytes(1 << 20))
    assert world.at_node["n1"].heard == [offer(), Withdraw("w", 1)]


def test_a_large_offer_that_comes_in_slowly_is_not_taken_as_lost() -> None:
    """Tens of megabytes of video over a line of somebody's home take longer than any answer may."""
    world = World()
    world.down.delay_s = 3.0
    large = Payload(Kind.TRANSCODE, {}, bytes(3 * WINDOW_BYTES))
    got: list[Any] = []
    world.nodes["n1"].listen(lambda message, payload: got.append(payload), lambda *flow: None)
    world.gateway.send("n1", offer(), large)
    world.run(4)
    assert [message for message, _ in world.at_gateway.heard] == [Accepted("w", 1)]
    assert got == []
    world.nodes["n1"].report(NodeReport("n1", 1, 1, attempts=(("v", 1),)))
    world.run(0.1)
    assert world.at_gateway.reports[0].attempts == (("v", 1), ("w", 1))
    world.run(30)
    assert got == [large]
    world.nodes["n1"].report(NodeReport("n1", 1, 2))
    world.run(0.1)
    assert world.at_gateway.reports[1].attempts == ()


def test_a_node_speaks_of_its_own_attempts_only() -> None:
    """Knowing another's work does not let a node answer for it, end it or learn where it stands."""
    world = World()
    accepted(world)
    before = len(world.bytes)
    record = bytes((2,))
    for said in (Part("w", 1, 1, False, record),):
        world.gateway.received(subjects.from_node("n2", "g1"), encode(said))
    world.nodes["n2"].send(Ended("w", 1, 0))
    assert [message for message, _ in world.at_gateway.heard] == [Accepted("w", 1)]
    assert not [subject for subject, _ in world.bytes[before:] if "n2" in subject]


def test_a_node_reports_in_its_own_name_only_and_cannot_vouch_for_itself() -> None:
    """Trust is the operator's to give; the subject says who speaks."""
    world = World()
    world.nodes["n2"].report(NodeReport("n1", 1, 1))
    world.nodes["n2"].report(NodeReport("n2", 1, 1, trust=9))
    world.run(0.1)
    assert world.at_gateway.reports == [NodeReport("n2", 1, 1, trust=1)]


def test_a_node_that_was_started_anew_has_nothing_of_its_earlier_life() -> None:
    """Frames of a ghost must not be spliced into a new attempt."""
    world = World()
    node = accepted(world)
    node.report(NodeReport("n1", 1, 1))
    accepted(world, "v")
    node.report(NodeReport("n1", 2, 1))
    world.run(0.05)
    node.send(Output("v", 1, 0, 1), b"ghost")
    world.run(0.1)
    assert b"ghost" not in [data for _, data in world.at_gateway.heard]
    assert world.at_node["n1"].heard[-1] == Withdraw("v", 1)


def test_a_node_whose_connection_ended_has_lost_its_works_and_may_come_back() -> None:
    """A killed process is known at once; one that only lost its connection stops what was given to others."""
    world = World()
    node = accepted(world)
    node.report(NodeReport("n1", 1, 1))
    world.run(0.05)
    world.gateway.lost("n1")
    assert world.at_gateway.left == [("n1", 1)]
    node.send(Output("w", 1, 0, 1), b"late")
    world.run(0.1)
    assert b"late" not in [data for _, data in world.at_gateway.heard]
    assert world.at_node["n1"].heard[-1] == Withdraw("w", 1)
    node.report(NodeReport("n1", 1, 2))
    world.run(0.05)
    assert world.at_gateway.reports[-1].sequence == 2


def test_a_node_of_another_protocol_is_told_and_not_used() -> None:
    """An operator finds in both logs which side to update; no request is lost on such a node."""
    world = World()
    foreign = Report(Hello(2, 3, "9.9"), NodeReport("n2", 1, 1))
    world.gateway.received(subjects.from_node("n2", subjects.ALL), encode(foreign))
    later = bytes((3,)) + encode(foreign)[1:]
    world.gateway.received(subjects.from_node("n2", subjects.ALL), later)
    assert world.at_gateway.reports == []
    assert encode(Hello(1, 1)) in [data for _, data in world.bytes]


def test_a_refused_attempt_leaves_nothing_behind() -> None:
    """A full node is asked thousands of times; neither side may keep anything of it."""
    world = World()
    world.at_node["n1"].on_offer = lambda one: world.nodes["n1"].send(Refused(one.work_id, 1, Refusal.FULL))
    for number in range(20):
        world.gateway.send("n1", offer(f"w{number}"), PAYLOAD)
    world.run(0.2)
    assert len(world.at_gateway.heard) == 20
    assert not len(world.gateway._channels)
    assert not len(world.nodes["n1"]._channels)


def test_a_goodbye_does_not_overtake_the_last_answer() -> None:
    """A node that drained and left has broken nothing."""
    world = World()
    node = accepted(world)
    node.report(NodeReport("n1", 1, 1))
    world.run(1.5)
    order: list[Any] = []
    world.gateway.listen(
        lambda message, data, error: order.append(message),
        lambda report: None,
        lambda *who: order.append(who),
    )
    node.send(Ended("w", 1, 0))
    node.leave()
    goodbye = world.bytes[-1]
    assert goodbye[0] == subjects.from_node("n1", subjects.ALL)
    world.gateway.received(*goodbye)
    world.run(0.1)
    assert order[:2] == [Ended("w", 1, 0), ("n1", 1)]


def flooded(world: World, say: Callable[[int], bytes], count: int) -> list[str]:
    """Which nodes are reported after one has sent so much at once."""
    out: list[str] = []
    world.gateway._on_flood = out.append
    for number in range(count):
        world.gateway.received(subjects.from_node("n1", "g1"), say(number))
    return out


@pytest.mark.parametrize(
    ("say", "count"),
    [
        (lambda number: encode(Part("nobody", 1, number, False, b"x")), 60_000),
        (lambda number: encode(Part("w", 1, 0, False, b"x")), 60_000),
        (lambda number: encode(Report(Hello(1, 1), NodeReport("n1", 1, number))), 2_000),
        (lambda number: b"nonsense", 200),
    ],
    ids=["unknown attempts", "copies", "reports", "nonsense"],
)
def test_a_node_that_floods_the_gateway_is_shut_out(say: Callable[[int], bytes], count: int) -> None:
    """A hundred thousand messages in a second would hold up everybody's streams."""
    world = World()
    accepted(world)
    assert flooded(world, say, count) == ["n1"]
    before = len(world.bytes)
    assert flooded(world, say, 100) == []
    assert len(world.bytes) == before, "it is still answered"
    assert world.at_gateway.left, "its works must go elsewhere"


def test_a_node_that_sends_again_after_a_lost_connection_is_no_flood() -> None:
    """Thirty streams with a full window each, all repeated, are what an honest node may have to send."""
    world = World()
    for stream in range(30):
        accepted(world, f"w{stream}")
    record = answer_record(Output("w", 1, 0, 1), b"x" * 100, None)
    again = [
        encode(Part(f"w{stream}", 1, index, False, record))
        for stream in range(30)
        for index in range(1, WINDOW_BYTES // (len(record) + PART_COST))
    ]
    assert flooded(world, lambda number: again[number], len(again)) == []
    assert flooded(world, lambda number: again[number], len(again)) == []


def test_what_goes_beyond_its_credit_is_not_taken() -> None:
    """A node that does not heed credit would fill the memory of the gateway for a slow client."""
    world = World()
    accepted(world)
    world.gateway.pause("n1", "w", 1)
    for index in range(1, 100):
        record = answer_record(Output("w", 1, index - 1, 1), bytes(60_000), None)
        part = encode(Part("w", 1, index, False, record))
        world.gateway.received(subjects.from_node("n1", "g1"), part)
    taken = sum(len(data) for _, data in world.at_gateway.heard)
    assert taken <= WINDOW_BYTES + 60_000
