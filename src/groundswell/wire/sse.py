"""Server-sent events as bytes: where events end, and what their data is.

The relay needs only to know where events end, so that it never sends half of one; it looks inside as little
as it can (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

EVENT_BYTES_MAX = 1 << 20  # One event. Larger ones come only from a broken or hostile engine.

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_TEXT = re.compile(rb'"(?:content|text)": ?"')


class EventTooLarge(Exception):
    """An event that has not ended within its bound."""


class EventSplitter:
    """Cuts a stream into complete events, however it was split on its way.

    What is fed and what comes out are the same bytes in the same order. Work is linear in the bytes fed.
    """

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._max = event_bytes_max
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """The bytes of all events that are now complete, as one block; b"" when none is.

        Raises ``EventTooLarge``."""
        parts = self._parts
        if not parts:
            cut = _last_end(data)
            if cut == len(data):  # The usual case: a read ends where an event ends.
                return data
            block = data[:cut]
            rest = data[cut:]
        else:
            # The blank line may lie across the seam; three bytes of the past are enough to see it.
            seam = b"".join(parts[-3:])[-3:]
            cut = _last_end(seam + data) - len(seam)
            if cut <= 0:
                block, rest = b"", data
            else:
                block = b"".join((*parts, data[:cut]))
                rest = data[cut:]
                parts.clear()
                self._size = 0
        if rest:
            parts.append(rest)
            self._size += len(rest)
            if self._size > self._max:
                raise EventTooLarge(f"an event is larger than {self._max} bytes")
        return block

    @property
    def between(self) -> bool:
        """Whether all that came was complete."""
        return not self._parts

    @property
    def tail(self) -> bytes:
        """What has come of an event that is not complete."""
        return b"".join(self._parts)


class EventTemplate:
    """What stands around the text in the events of a stream, learned from one of them.

    The events of one engine differ in their text alone. An event that begins and ends as the learned one
    does, with nothing between that could end a string or a line, is that event with another text, and all
    that was found out about the one holds for the other. So nothing else in it needs to be looked at.
    """

    __slots__ = ("after", "before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self.before = before
        self.after = after

    @classmethod
    def of(cls, block: bytes) -> EventTemplate | None:
        """None unless the block is one event with one text in it."""
        found = _TEXT.search(block)
        if found is None or _TEXT.search(block, found.end()) is not None:
            return None
        if block.find(b"\n\n") != len(block) - 2 or b"\r" in block:
            return None
        template = cls(block[: found.end()], block[block.find(b'"', found.end()) :])
        return template if template.text(block) is not None else None

    def text(self, block: bytes) -> bytes | None:
        """The text, as it is escaped in JSON, of an event of this form; None for any other block."""
        before, after = self.before, self.after
        if not block.startswith(before) or not block.endswith(after):
            return None
        text = block[len(before) : len(block) - len(after)]
        # A backslash at the end would take the quote that follows into the string.
        if not text or text[-1] == 92 or b'"' in text or b"\n" in text or b"\r" in text:
            return None
        return text


def payloads(block: bytes) -> Iterator[bytes]:
    """The data of each event in a block of complete events: its data lines, joined by newlines."""
    for event in _BLANK_LINE.split(block):
        lines = []
        for line in event.splitlines():
            if line.startswith(b"data:"):
                lines.append(line[6:] if line[5:6] == b" " else line[5:])
        if lines:
            yield b"\n".join(lines)


def _last_end(data: bytes) -> int:
    """Where the last complete event in ``data`` ends; 0 when none does."""
    end = 0
    for mark in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        at = data.rfind(mark)
        if at >= 0:
            end = max(end, at + len(mark))
    return end
