"""Reading a multipart form as it arrives: small fields are kept, the one file goes straight to where it shall
lie.

A form library would first write the file to a temporary place and then copy it; a video is too large for
that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from groundswell.model.errors import BadRequest

FIELDS_MAX = 16
FIELD_BYTES_MAX = 64 << 10
HEADER_BYTES_MAX = 8 << 10

Kept = TypeVar("Kept")
_Event = tuple[str, bytes]


class Form(Generic[Kept]):
    """A form's text fields by name, and its file, if it had one, as ``keep`` returned it."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.file: Kept | None = None


async def read_form(
    body: AsyncIterator[bytes], content_type: str, keep: Callable[[AsyncIterator[bytes]], Awaitable[Kept]]
) -> Form[Kept]:
    """Read a form. The part called ``file`` is streamed into ``keep``, once.

    Raises ``BadRequest`` (``invalid_form``) for what is no form, and what ``keep`` raises.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 200:
        raise _invalid("The form has no boundary.")
    events = _events(body, boundary)
    form: Form[Kept] = Form()
    try:
        async for kind, value in events:
            if kind == "part":
                name = value.decode("utf-8", "replace")
                if name == "file":
                    if form.file is not None:
                        raise _invalid("The form has more than one file.")
                    form.file = await keep(_until_end(events))
                elif name in form.fields or len(form.fields) >= FIELDS_MAX:
                    raise _invalid("The form has a field twice, or too many fields.")
                else:
                    form.fields[name] = await _text(events)
    except MultipartParseError as error:
        raise _invalid("The form cannot be read.") from error
    return form


async def _events(body: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[_Event]:
    """``part`` with the field's name, then ``data``, then ``end``; for each part."""
    reader = _Reader(boundary)
    async for piece in body:
        for event in reader.feed(piece):
            yield event
    if not reader.whole:
        raise _invalid("The form ends too soon.")


class _Reader:
    """The parser's callbacks, as a list of events."""

    def __init__(self, boundary: bytes) -> None:
        self.whole = False
        self._events: deque[_Event] = deque()
        self._header, self._value, self._name = b"", b"", b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._field,
                "on_header_value": self._content,
                "on_header_end": self._header_end,
                "on_headers_finished": lambda: self._events.append(("part", self._name)),
                "on_part_data": lambda data, start, end: self._events.append(("data", data[start:end])),
                "on_part_end": lambda: self._events.append(("end", b"")),
                "on_end": self._end,
            },
        )

    def feed(self, piece: bytes) -> list[_Event]:
        if piece:
            self._parser.write(piece)
        events = list(self._events)
        self._events.clear()
        return events

    def _begin(self) -> None:
        self._header, self._value, self._name = b"", b"", b""

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._bound()

    def _content(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bound()

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._name = parse_options_header(self._value)[1].get(b"name", b"")
        self._header, self._value = b"", b""

    def _bound(self) -> None:
        if len(self._header) + len(self._value) > HEADER_BYTES_MAX:
            raise _invalid("A header of the form is too long.")

    def _end(self) -> None:
        self.whole = True


async def _until_end(events: AsyncIterator[_Event]) -> AsyncIterator[bytes]:
    async for kind, data in events:
        if kind == "end":
            return
        yield data


async def _text(events: AsyncIterator[_Event]) -> str:
    text = b""
    async for data in _until_end(events):
        text += data
        if len(text) > FIELD_BYTES_MAX:
            raise _invalid("A field of the form is too long.")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise _invalid("A field of the form is not UTF-8.") from error


def _invalid(message: str) -> BadRequest:
    return BadRequest(message, code="invalid_form")
