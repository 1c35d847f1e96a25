"""A node's end of a network link: offers come in, answers go out and are kept until they have arrived.

A node serves every gateway that reaches it, and answers each attempt where its offer came from. What it made
while the connection was broken goes out when it is back, up to the credit that it has; then its engine is
paused. A gateway that says nothing for ten seconds is gone, and what it asked for is stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from groundswell.bus import subjects
from groundswell.bus.channels import BEAT_EVERY_S, Channel, Channels
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
    answer_record,
    decode,
    offer_of,
)
from groundswell.bus.streams import Overfull
from groundswell.model.errors import GroundswellError
from groundswell.model.messages import Ended, FromNode, Refused, ToNode, Withdraw
from groundswell.model.node import NodeReport
from groundswell.ports import Payload

_log = logging.getLogger(__name__)

SILENCE_S: Final = 10.0  # Of a gateway, after which nobody waits for its works any more.
GATEWAYS_MAX: Final = 1024  # Remembered; more are not met in one life of a node.


class NodeEnd:
    """See ``ports.NodeLink``. The wire calls ``received``, ``connected``, and ``beat`` each second."""

    def __init__(
        self,
        node_id: str,
        publish: Callable[[str, bytes], None],
        now_s: Callable[[], float],
        software: str = "",
    ) -> None:
        self.node_id = node_id
        self.subjects = subjects.of_node(node_id)
        self._now_s = now_s
        self._hello = Hello(PROTOCOL, PROTOCOL, software)
        self._channels = Channels(lambda gateway_id: subjects.from_node(node_id, gateway_id), publish)
        self._heard_s: dict[str, float] = {}
        self._beat_s = now_s()
        self._last: NodeReport | None = None
        self._left = False
        self._on_message: Callable[[ToNode, Payload | None], None] | None = None
        self._on_flow: Callable[[str, int, bool], None] | None = None

    # --- the port ---

    def send(self, message: FromNode, data: bytes = b"", error: GroundswellError | None = None) -> None:
        channel = self._channels.get(message.work_id, message.attempt)
        if self._left or channel is None or channel.over:
            return  # Nobody waits for it.
        channel.over = isinstance(message, Ended | Refused)
        try:
            parts = channel.sender.put(answer_record(message, data, error))
        except Overfull:
            _log.warning("an engine went on although it was paused", extra={"work_id": message.work_id})
            self._abandon(channel)
            return
        self._channels.send(channel, parts)
        self._flow(channel)

    def report(self, report: NodeReport) -> None:
        if not self._left:
            # What is still coming in is here, too, or the gateway would miss it.
            coming = tuple(channel.key for channel in self._channels if not channel.begun)
            self._last = replace(report, attempts=(*report.attempts, *coming)) if coming else report
            self._channels.say(subjects.ALL, Report(self._hello, self._last))

    def leave(self) -> None:
        if self._left:
            return
        # On the way that its answers took first, so that no answer is overtaken.
        gone = Gone(self._last.generation if self._last is not None else 0)
        for gateway_id in sorted({*self._heard_s, *(channel.peer for channel in self._channels)}):
            self._channels.say(gateway_id, gone)
        self._channels.say(subjects.ALL, gone)
        self._left = True

    def listen(
        self,
        on_message: Callable[[ToNode, Payload | None], None],
        on_flow: Callable[[str, int, bool], None],
    ) -> None:
        self._on_message, self._on_flow = on_message, on_flow

    # --- the wire ---

    def connected(self) -> None:
        """The wire carries again: whoever is there should know at once that this node is, too."""
        if self._last is not None and not self._left:
            self._channels.say(subjects.ALL, Report(self._hello, self._last))
        self._channels.beat()

    def beat(self) -> None:
        """A second has passed."""
        now_s = self._now_s()
        late_s, self._beat_s = now_s - self._beat_s - BEAT_EVERY_S, now_s
        self._channels.beat()
        if late_s > BEAT_EVERY_S:
            return  # This process itself stood still; what was said meanwhile is heard first.
        silent = {one for one, heard_s in self._heard_s.items() if now_s - heard_s > SILENCE_S}
        for gateway_id in silent:
            del self._heard_s[gateway_id]
        for channel in self._channels:
            if channel.peer in silent:
                self._abandon(channel)

    def received(self, subject: str, data: bytes) -> None:
        """A message came in."""
        _, gateway_id = subjects.parts(subject)
        if self._left:
            return
        if gateway_id in self._heard_s or len(self._heard_s) < GATEWAYS_MAX:
            self._heard_s[gateway_id] = self._now_s()
        try:
            self._take(gateway_id, data)
        except Malformed as error:
            self._channels.misbehaves(gateway_id, error)

    def _take(self, gateway_id: str, data: bytes) -> None:
        match decode(data):
            case Part() as part:
                self._part(gateway_id, part)
            case Beat(states, unknown):
                self._beat(gateway_id, states, unknown)
            case Stop(work_id, attempt):
                self._stop(gateway_id, Withdraw(work_id, attempt))
            case Hello(oldest, newest, software):
                if not oldest <= PROTOCOL <= newest:
                    _log.error(
                        "a gateway speaks other versions of the protocol; update the older side",
                        extra={"gateway_id": gateway_id, "software": software, "newest": newest},
                    )
            case _:
                raise Malformed("a word that is a node's to say")

    # --- what gateways say ---

    def _part(self, gateway_id: str, part: Part) -> None:
        channel = self._channels.get(part.work_id, part.attempt)
        if channel is None:
            channel = self._channels.open(part.work_id, part.attempt, gateway_id)
        if channel is None:
            return
        self._own(channel, gateway_id)
        record = self._channels.take(channel, part)
        if record is None or channel.over:
            return
        try:
            offer, payload = offer_of(record, part.work_id, part.attempt)
        except Malformed:
            self._channels.drop(channel)
            raise
        channel.begun = True
        self._deliver(offer, payload)

    def _beat(self, gateway_id: str, states: tuple[State, ...], unknown: tuple[tuple[str, int], ...]) -> None:
        missing = []
        for state in states:
            channel = self._channels.get(state.work_id, state.attempt)
            if channel is None and state.got == 0 and state.sent > 0:
                # An offer of which nothing has arrived.
                channel = self._channels.open(state.work_id, state.attempt, gateway_id)
            if channel is None:
                missing.append((state.work_id, state.attempt))
                continue
            self._own(channel, gateway_id)
            self._channels.heard(channel, state)
            if channel.over and channel.sender.empty:
                self._channels.drop(channel)
            self._flow(channel)
        for key in unknown:
            channel = self._channels.get(*key)
            if channel is not None and channel.peer == gateway_id:
                self._abandon(channel)
        if missing:
            self._channels.say(gateway_id, Beat((), tuple(missing)))

    def _stop(self, gateway_id: str, withdraw: Withdraw) -> None:
        channel = self._channels.get(withdraw.work_id, withdraw.attempt)
        if channel is None:
            # Its offer did not arrive, or its end did: the answer is the agent's to give.
            channel = self._channels.open(withdraw.work_id, withdraw.attempt, gateway_id)
        if channel is None or channel.peer != gateway_id:
            return
        if not channel.over:
            channel.sender.drop_unsent()
        channel.begun = True
        self._deliver(withdraw, None)

    # --- what it takes ---

    def _abandon(self, channel: Channel) -> None:
        """Nobody is there to take the rest: stop it here."""
        self._channels.drop(channel)
        if not channel.over:
            self._deliver(Withdraw(*channel.key), None)

    def _deliver(self, message: ToNode, payload: Payload | None) -> None:
        if self._on_message is not None:
            guarded(self._on_message, message, payload)

    def _flow(self, channel: Channel) -> None:
        paused = not channel.sender.has_room and not channel.over
        if paused != channel.paused:
            channel.paused = paused
            if self._on_flow is not None:
                guarded(self._on_flow, *channel.key, paused)

    @staticmethod
    def _own(channel: Channel, gateway_id: str) -> None:
        if channel.peer != gateway_id:
            raise Malformed("a word on another gateway's attempt")
