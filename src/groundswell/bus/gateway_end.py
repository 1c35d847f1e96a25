"""The gateway's end of a network link: offers go out, answers come in, and each node is held to its own.

A node is known by the subject that it speaks on, which the server ties to its credentials; what it says of
itself is checked against that. It is heard only on attempts that it was offered. When an attempt was
withdrawn, its output is late and dropped, and only its end is passed on: that frees the slot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from groundswell.bus import subjects
from groundswell.bus.channels import Channel, Channels
from groundswell.bus.guarded import guarded
from groundswell.bus.records import (
    PROTOCOL,
    Beat,
    Gone,
    Hello,
    Malformed,
    Part,
    Report,
    State,
    Stop,
    answer_of,
    decode,
    offer_record,
)
from groundswell.bus.streams import RECORD_BYTES_MAX, Overfull
from groundswell.model.errors import GroundswellError
from groundswell.model.messages import Accepted, Ended, FromNode, Offer, Output, Refused, ToNode
from groundswell.model.node import NodeReport
from groundswell.ports import Payload

_log = logging.getLogger(__name__)

FORGET_S: Final = 60.0  # Without a word from its node; the brain has given the attempt up long before.
NODES_MAX: Final = 16_384  # As many as the brain remembers.
# What a node sends in vain costs patience: parts that were here already or of attempts that are over,
# reports, nonsense. A whole window of each of thirty streams, sent again after a broken connection, is
# within it; a flood is over in a fraction of a second. What brings a stream on is bounded by its credit.
PATIENCE: Final = 50_000.0
PATIENCE_PER_S: Final = 5_000.0
REPORT_COST: Final = 50.0
NONSENSE_COST: Final = 500.0
TRUST_MAX: Final = 1  # A node cannot vouch for itself.


@dataclass(slots=True)
class _Node:
    """What is known of a node. ``fits`` is None until it has reported."""

    heard_s: float
    generation: int = -1
    fits: bool | None = None
    patience: float = PATIENCE


class GatewayEnd:
    """See ``ports.GatewayLink``. The wire calls ``received``, ``connected``, and ``beat`` each second.

    ``on_flood`` hears of a node that has sent too much in vain; it is not heard any more until ``welcome``.
    """

    def __init__(
        self,
        gateway_id: str,
        publish: Callable[[str, bytes], None],
        now_s: Callable[[], float],
        software: str = "",
        on_flood: Callable[[str], None] = lambda node_id: None,
    ) -> None:
        self._on_flood = on_flood
        self.gateway_id = gateway_id
        self.subjects = subjects.of_gateway(gateway_id)
        self._now_s = now_s
        self._hello = Hello(PROTOCOL, PROTOCOL, software)
        self._channels = Channels(lambda node_id: subjects.to_node(node_id, gateway_id), publish)
        self._nodes: dict[str, _Node] = {}
        self._on_message: Callable[[FromNode, bytes, GroundswellError | None], None] | None = None
        self._on_report: Callable[[NodeReport], None] | None = None
        self._on_left: Callable[[str, int], None] | None = None

    # --- the port ---

    def send(self, node_id: str, message: ToNode, payload: Payload | None = None) -> None:
        channel = self._channels.get(message.work_id, message.attempt)
        if isinstance(message, Offer):
            if channel is None:
                channel = self._channels.open(message.work_id, message.attempt, node_id)
                self._node(node_id)
            if channel is not None and payload is not None:
                self._offer(channel, message, payload)
            return
        self._channels.say(node_id, Stop(message.work_id, message.attempt))
        if channel is not None and channel.peer == node_id:
            # Its end must not wait behind what nobody will read.
            channel.over = True
            channel.sender.drop_unsent()
            channel.receiver.hold(False)
            self._channels.tell(channel)

    def pause(self, node_id: str, work_id: str, attempt: int) -> None:
        self._hold(work_id, attempt, True)

    def resume(self, node_id: str, work_id: str, attempt: int) -> None:
        self._hold(work_id, attempt, False)

    def listen(
        self,
        on_message: Callable[[FromNode, bytes, GroundswellError | None], None],
        on_report: Callable[[NodeReport], None],
        on_left: Callable[[str, int], None],
    ) -> None:
        self._on_message, self._on_report, self._on_left = on_message, on_report, on_left

    def welcome(self, node_id: str) -> None:
        """A node that was let in, perhaps again."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.patience = PATIENCE

    def lost(self, node_id: str) -> None:
        """The node's connection has ended. What it ran goes on elsewhere, at once; it may come back."""
        node = self._nodes.get(node_id)
        if node is not None:
            self._gone(node_id, node.generation)

    def expel(self, node_id: str) -> None:
        """A node is no longer welcome: what it runs is lost, and it is not heard until it starts anew."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.fits = False
            self._gone(node_id, node.generation)

    # --- the wire ---

    def connected(self) -> None:
        """The wire carries again; what it lost meanwhile is asked for at once."""
        self._channels.beat()

    def beat(self) -> None:
        """A second has passed."""
        now_s = self._now_s()
        for channel in self._channels:
            node = self._nodes.get(channel.peer)
            if node is None or now_s - node.heard_s > FORGET_S:
                self._channels.drop(channel)
        self._channels.beat()

    def received(self, subject: str, data: bytes) -> None:
        """A message came in. What is wrong with it is the sender's fault, and ends here."""
        node_id, to = subjects.parts(subject)
        node = self._node(node_id)
        if node is None or node.patience < 0:
            return
        now_s = self._now_s()
        node.patience = min(PATIENCE, node.patience + (now_s - node.heard_s) * PATIENCE_PER_S)
        node.heard_s = now_s
        try:
            self._take(node_id, node, data, to == subjects.ALL)
        except Malformed as error:
            self._channels.misbehaves(node_id, error)
            self._charge(node_id, NONSENSE_COST)
            if node.fits is None and data[:1] != bytes((PROTOCOL,)):
                node.fits = False
                self._channels.say(node_id, self._hello)

    def _take(self, node_id: str, node: _Node, data: bytes, to_all: bool) -> None:
        match decode(data):
            case Part() as part:
                self._part(node_id, part)
            case Beat(states, unknown):
                self._beat(node_id, states, unknown)
            case Report(hello, report):
                self._report(node_id, node, hello, report)
            case Gone(generation):
                # One to all may have overtaken answers; to whom it owes some, it says goodbye behind them.
                if not (to_all and any(channel.peer == node_id for channel in self._channels)):
                    self._gone(node_id, generation)
            case _:
                raise Malformed("a word that is a gateway's to say")

    # --- what nodes say ---

    def _part(self, node_id: str, part: Part) -> None:
        channel = self._channels.get(part.work_id, part.attempt)
        if channel is None:
            self._channels.say(node_id, Beat((), ((part.work_id, part.attempt),)))
            self._charge(node_id, 1.0)
            return
        self._own(channel, node_id)
        if part.index != channel.receiver.got:
            self._charge(node_id, 1.0)
        record = self._channels.take(channel, part)
        if record is None:
            return
        try:
            message, data, error = answer_of(record, part.work_id, part.attempt)
        except Malformed:
            self._channels.drop(channel)  # Its numbering cannot be trusted any more; the brain moves on.
            raise
        channel.begun = True
        channel.sender.arrived()
        if isinstance(message, Ended | Refused):
            self._channels.tell(channel)
            self._channels.drop(channel)
        elif channel.over and isinstance(message, Output):
            return
        if self._on_message is not None:
            guarded(self._on_message, message, data, error)

    def _beat(self, node_id: str, states: tuple[State, ...], unknown: tuple[tuple[str, int], ...]) -> None:
        forgotten = []
        for state in states:
            channel = self._channels.get(state.work_id, state.attempt)
            if channel is None:
                forgotten.append((state.work_id, state.attempt))
            else:
                self._own(channel, node_id)
                self._channels.heard(channel, state)
                if state.got > 0 and not channel.begun:
                    self._begun(channel)
        for key in unknown:
            channel = self._channels.get(*key)
            if channel is not None:
                self._own(channel, node_id)
                self._channels.drop(channel)  # Its report will say so, too.
        if forgotten:
            self._channels.say(node_id, Beat((), tuple(forgotten)))

    def _begun(self, channel: Channel) -> None:
        """A large offer is on its way in. The brain would take one without an answer as lost after two
        seconds; whether the node really has a slot it says when it has all of it."""
        channel.begun = True
        if not channel.sender.empty and self._on_message is not None:
            guarded(self._on_message, Accepted(*channel.key), b"", None)

    def _report(self, node_id: str, node: _Node, hello: Hello, report: NodeReport) -> None:
        if report.node_id != node_id:
            raise Malformed("a report in another's name")
        self._charge(node_id, REPORT_COST)
        if report.generation > node.generation:
            self._meet(node_id, node, hello, report.generation)
        if node.fits and self._on_report is not None:
            guarded(self._on_report, replace(report, trust=min(report.trust, TRUST_MAX)))

    def _meet(self, node_id: str, node: _Node, hello: Hello, generation: int) -> None:
        """A node that is new, or was started anew: nothing of its earlier life goes on."""
        if node.generation >= 0:
            self._end_all(node_id)
        node.generation = generation
        node.fits = hello.oldest <= PROTOCOL <= hello.newest
        if not node.fits:
            _log.warning(
                "a node speaks other versions of the protocol; update the older side",
                extra={"node_id": node_id, "software": hello.software, "newest": hello.newest},
            )
        self._channels.say(node_id, self._hello)

    def _gone(self, node_id: str, generation: int) -> None:
        node = self._nodes[node_id]
        if generation == node.generation:
            self._end_all(node_id)
        if self._on_left is not None:
            guarded(self._on_left, node_id, generation)

    # --- what it takes ---

    def _charge(self, node_id: str, cost: float) -> None:
        """It has sent something in vain."""
        node = self._nodes[node_id]
        node.patience -= cost
        if node.patience < 0 <= node.patience + cost:
            _log.error("a node floods the network", extra={"node_id": node_id})
            self.expel(node_id)
            guarded(self._on_flood, node_id)

    def _node(self, node_id: str) -> _Node | None:
        node = self._nodes.get(node_id)
        if node is None and len(self._nodes) < NODES_MAX:
            node = self._nodes[node_id] = _Node(self._now_s())
        return node

    def _offer(self, channel: Channel, offer: Offer, payload: Payload) -> None:
        try:
            parts = channel.sender.put(offer_record(offer, payload), RECORD_BYTES_MAX)
        except Overfull:
            _log.error("an offer is too large for the link", extra={"work_id": offer.work_id})
            self._channels.drop(channel)
            return
        self._channels.send(channel, parts)

    def _hold(self, work_id: str, attempt: int, held: bool) -> None:
        channel = self._channels.get(work_id, attempt)
        if channel is not None and not channel.over:
            channel.receiver.hold(held)
            self._channels.tell(channel)

    def _end_all(self, node_id: str) -> None:
        for channel in self._channels:
            if channel.peer == node_id:
                self._channels.drop(channel)

    @staticmethod
    def _own(channel: Channel, node_id: str) -> None:
        if channel.peer != node_id:
            raise Malformed("a word on another node's attempt")
