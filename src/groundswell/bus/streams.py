"""One direction of one attempt, at both of its ends: indices, credit, replay.

Theory of operation. A network link loses messages when a connection breaks or a server restarts, and keeps
the order of what it does carry. So the sender numbers its parts and keeps each one until the receiver has
said that it has it; the receiver takes only the next one. Where it stands is said in ``got``, and how far
the other may go in ``until``, a count of bytes from the start of the stream: both are whole truths, not
changes, so that a lost one is mended by the next, and they are repeated each second.

A gap shows in two ways: a part comes that is not the next one, or the other side says that it has sent more
than has arrived. Either way the receiver asks for all from ``got`` on. That repeats some parts that had
arrived out of turn; after a broken connection that is nearly all of them anyway.

A receiver that has no room any more grants what it already has and no more: the sender then stops, and
whoever feeds it is told. No clock and no socket here: both ends are values that are driven by calls.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from groundswell.bus.records import PART_BYTES, Malformed, Part

WINDOW_BYTES: Final = 256 << 10  # On its way at most: 25 MB/s at a round trip of 10 ms.
PART_COST: Final = 64  # A part costs more than its bytes, so that empty ones are bounded, too.
BACKLOG_BYTES_MAX: Final = 64 << 20  # An engine that does not heed a pause ends here; a segment fits.
RECORD_BYTES_MAX: Final = 512 << 20  # Above the largest segment that a transcoder takes.


class Overfull(Exception):
    """More waits to be sent than anybody should keep."""


class Sender:
    """The end that makes parts. ``put`` and ``heard`` return those that go out now."""

    __slots__ = (
        "_backlog", "_parts", "_top", "_top_is_part", "_until", "_work", "acknowledged", "sent",
        "sent_bytes",
    )  # fmt: skip

    def __init__(self, work_id: str, attempt: int, until: int = WINDOW_BYTES) -> None:
        self._work = (work_id, attempt)
        self._parts: deque[tuple[Part, int]] = deque()  # Not acknowledged, each with where it begins.
        self._backlog = 0
        self._until = until
        self.acknowledged = 0
        self.sent = 0
        self.sent_bytes = 0
        self._top = 0  # The most that ``sent`` ever was; a replay takes that back.
        self._top_is_part = False

    @property
    def has_room(self) -> bool:
        """Whether the next part could go out at once."""
        return self.sent_bytes < self._until

    @property
    def empty(self) -> bool:
        """Whether all that was put in has arrived."""
        return not self._parts

    def put(self, record: bytes, backlog_max: int = BACKLOG_BYTES_MAX) -> list[Part]:
        """One more record. Raises ``Overfull``."""
        last, end = self._parts[-1] if self._parts else (None, self.sent_bytes)
        index = last.index + 1 if last is not None else self.acknowledged
        begin = end + len(last.body) + PART_COST if last is not None else end
        for at in range(0, max(len(record), 1), PART_BYTES):
            body = record[at : at + PART_BYTES]
            self._parts.append((Part(*self._work, index, at + PART_BYTES < len(record), body), begin))
            self._backlog += len(body) + PART_COST
            index, begin = index + 1, begin + len(body) + PART_COST
        if self._backlog > backlog_max:
            raise Overfull
        return self._flush()

    def heard(self, got: int, until: int, again: bool) -> list[Part]:
        """Where the receiver stands. Raises ``Malformed`` when that is beyond the end of this stream."""
        if got < self.acknowledged:
            return []  # An older word that crossed a later one.
        if got > self.acknowledged + len(self._parts):
            raise Malformed("a receiver that has what was never made")
        while self.acknowledged < got:
            part, begin = self._parts.popleft()
            self._backlog -= len(part.body) + PART_COST
            self.acknowledged += 1
            if self.sent < self.acknowledged:  # It was to be sent again, and arrived after all.
                self.sent, self.sent_bytes = self.acknowledged, begin + len(part.body) + PART_COST
        self._until = until
        if again and self.sent > got:
            self.sent = got
            self.sent_bytes = self._parts[0][1]
        return self._flush()

    def arrived(self) -> None:
        """The other side has acted on all of it, so it must have it."""
        while self._parts:
            part, begin = self._parts.popleft()
            self.acknowledged = self.sent = part.index + 1
            self.sent_bytes = begin + len(part.body) + PART_COST
        self._backlog = 0

    def drop_unsent(self) -> None:
        """What has not gone out never will, but for the rest of a record that has begun to: what is put in
        next would be taken for its end."""
        keep = self._top
        if self._top_is_part:
            keep = next(part.index for part, _ in self._parts if part.index >= keep and not part.more) + 1
        while self._parts and self._parts[-1][0].index >= keep:
            part, _ = self._parts.pop()
            self._backlog -= len(part.body) + PART_COST

    def _flush(self) -> list[Part]:
        going = []
        at = self.sent - self.acknowledged
        while at < len(self._parts) and self.sent_bytes < self._until:
            part, begin = self._parts[at]
            going.append(part)
            self.sent_bytes = begin + len(part.body) + PART_COST
            self.sent, at = self.sent + 1, at + 1
            if self.sent > self._top:
                self._top, self._top_is_part = self.sent, part.more
        return going


class Receiver:
    """The end that takes parts: each once, in order."""

    __slots__ = (
        "_asked_for",
        "_bodies",
        "_bytes",
        "_granted",
        "_granted_most",
        "_held",
        "_record_bytes",
        "got",
    )

    def __init__(self) -> None:
        self.got = 0
        self._bytes = 0
        self._granted = self._granted_most = WINDOW_BYTES
        self._held = False
        self._bodies: list[bytes] = []
        self._record_bytes = 0
        self._asked_for = -1

    def grant(self) -> int:
        """How far the sender may go from now on."""
        self._granted = self._bytes + (0 if self._held else WINDOW_BYTES)
        self._granted_most = max(self._granted_most, self._granted)
        return self._granted

    @property
    def owes_credit(self) -> bool:
        """Whether the sender should be told before it runs out."""
        return not self._held and self._granted - self._bytes < WINDOW_BYTES // 2

    def hold(self, held: bool) -> None:
        """Grant nothing more, or as usual again."""
        self._held = held

    def take(self, part: Part) -> bytes | None:
        """The record that this part completes, if it is the next one and the last part.

        Raises ``Malformed`` for a record without end, and for what goes beyond all credit."""
        if part.index != self.got:
            return None
        if self._bytes >= self._granted_most:
            raise Malformed("more than its credit")
        self.got += 1
        self._bytes += len(part.body) + PART_COST
        self._record_bytes += len(part.body)
        if self._record_bytes > RECORD_BYTES_MAX:
            raise Malformed("a record without end")
        self._bodies.append(part.body)
        if part.more:
            return None
        bodies, self._bodies, self._record_bytes = self._bodies, [], 0
        return bodies[0] if len(bodies) == 1 else b"".join(bodies)

    def misses(self, index: int) -> bool:
        """Whether a part with this index shows a gap that was not yet asked for."""
        if index <= self.got or self._asked_for == self.got:
            return False
        self._asked_for = self.got
        return True
