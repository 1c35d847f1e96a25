"""What both ends of a network link do with the attempts that they share. Time and wires are handed in.

A *channel* is one attempt between a node and a gateway: a stream in each direction. The gateway's carries the
offer, the node's all answers. Each end says where its streams stand once a second (a *beat*). Who hears of a
channel that it does not have says so, which ends it at the other end, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from groundswell.bus.records import Beat, Malformed, Part, Said, State, encode
from groundswell.bus.streams import Receiver, Sender

_log = logging.getLogger(__name__)

BEAT_EVERY_S: Final = 1.0
STATES_MAX: Final = 500  # In one beat; some 40 KiB.
CHANNELS_MAX: Final = 16_384  # One end's. A node has far fewer slots, a gateway fewer open works.

Key = tuple[str, int]


@dataclass(slots=True)
class Channel:
    """One attempt. ``peer`` is the other end's id. ``begun``: the node has begun to take the offer in; at the
    node itself, that it has all of it. ``over``: only the end of it is still of interest."""

    work_id: str
    attempt: int
    peer: str
    sender: Sender
    receiver: Receiver = field(default_factory=Receiver)
    begun: bool = False
    over: bool = False
    paused: bool = False

    @property
    def key(self) -> Key:
        return (self.work_id, self.attempt)

    def state(self, *, again: bool = False) -> State:
        """Where it stands at this end."""
        return State(
            self.work_id, self.attempt, self.sender.sent, self.receiver.got, self.receiver.grant(), again
        )


class Channels:
    """The open channels of one end. ``subject`` says where a peer listens, ``publish`` sends and forgets."""

    def __init__(self, subject: Callable[[str], str], publish: Callable[[str, bytes], None]) -> None:
        self._subject = subject
        self._publish = publish
        self._open: dict[Key, Channel] = {}
        self._wrong: dict[str, int] = {}

    def __iter__(self) -> Iterator[Channel]:
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    def get(self, work_id: str, attempt: int) -> Channel | None:
        return self._open.get((work_id, attempt))

    def open(self, work_id: str, attempt: int, peer: str) -> Channel | None:
        """A new channel. None when there are too many."""
        if len(self._open) >= CHANNELS_MAX:
            return None
        channel = Channel(work_id, attempt, peer, Sender(work_id, attempt))
        self._open[work_id, attempt] = channel
        return channel

    def drop(self, channel: Channel) -> None:
        """Nothing more of it is sent or taken."""
        self._open.pop(channel.key, None)

    def say(self, peer: str, said: Said) -> None:
        self._publish(self._subject(peer), encode(said))

    def send(self, channel: Channel, parts: list[Part]) -> None:
        for part in parts:
            self.say(channel.peer, part)

    def tell(self, channel: Channel) -> None:
        """Say at once where it stands."""
        self.say(channel.peer, Beat((channel.state(),)))

    def take(self, channel: Channel, part: Part) -> bytes | None:
        """The record that a part completes. Raises ``Malformed``."""
        record = channel.receiver.take(part)
        if channel.receiver.misses(part.index):
            self.say(channel.peer, Beat((channel.state(again=True),)))
        elif channel.receiver.owes_credit:
            self.tell(channel)
        return record

    def heard(self, channel: Channel, state: State) -> None:
        """The other end's view of it. Raises ``Malformed``."""
        self.send(channel, channel.sender.heard(state.got, state.until, state.again))
        if state.sent > channel.receiver.got:
            # Order is kept, so what was sent before this and is not here is lost.
            self.say(channel.peer, Beat((channel.state(again=True),)))

    def beat(self) -> None:
        """Say to every peer where all of its channels stand."""
        by_peer: dict[str, list[State]] = {}
        for channel in self._open.values():
            by_peer.setdefault(channel.peer, []).append(channel.state())
        for peer, states in by_peer.items():
            rest = iter(states)
            while some := tuple(islice(rest, STATES_MAX)):
                self.say(peer, Beat(some))

    def misbehaves(self, peer: str, error: Malformed) -> None:
        """Log what a peer should not have sent, ever less often."""
        count = self._wrong[peer] = self._wrong.get(peer, 0) + 1
        if count & (count - 1) == 0:
            _log.warning(
                "a peer sent what does not fit", extra={"peer": peer, "reason": str(error), "count": count}
            )
