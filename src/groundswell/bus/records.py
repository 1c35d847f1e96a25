"""What is said over a network link, as bytes: parsed by length, checked against a schema, bounded.

Everything begins with the protocol's version and a kind. ``Part`` is one part of one record of an attempt:
a record (an offer with its payload, an answer, an output, an end) is cut into parts that the server takes,
and every part carries (work, attempt, index). ``Beat`` is sent each second and whenever there is something
to say at once: where each stream stands. The rest are one-liners. Prompts and answers may hold any bytes:
nothing here looks for a delimiter.

What a peer sends is not to be trusted: whatever does not fit raises ``Malformed``, and nothing else.
"""

from __future__ import annotations

import re
import struct
from dataclasses import fields, is_dataclass
from typing import Any, Final, NoReturn

import msgspec

from groundswell.model.errors import GroundswellError, InternalError, UpstreamError
from groundswell.model.messages import Accepted, Ended, FromNode, Offer, Output, Refusal, Refused
from groundswell.model.node import NodeReport
from groundswell.model.work import Kind
from groundswell.ports import Emitted, Payload

PROTOCOL: Final = 1
NUMBER_MAX: Final = 1 << 53  # Larger than any count of ours, and exact in every language.
TEXT_MAX: Final = 4096  # A name, a label, an error's message.
MANY_MAX: Final = 16_384  # Engines, attempts or models in one report; streams in one beat.
WORK_ID_MAX: Final = 128
PART_BYTES: Final = 128 << 10  # With its head well below the 256 KiB that our server takes.

_CODE: Final = re.compile(r"[a-z0-9_]{1,64}")

_HEAD = struct.Struct("<BBBHII")  # protocol, kind, flags, length of the work's id, attempt, index
_OUTPUT = struct.Struct("<BIIB")  # record kind, index, tokens, resumable
_LENGTH = struct.Struct("<BI")  # record kind, length of what comes before the binary data
_MORE: Final = 1  # The record goes on in the next part.


class Malformed(Exception):
    """A peer sent what the protocol does not allow; the text is for a log, not for clients."""


class Part(msgspec.Struct, frozen=True, gc=False):
    """One part of a record. ``index`` counts the parts of one direction of one attempt from 0."""

    work_id: str
    attempt: int
    index: int
    more: bool
    body: bytes


class State(msgspec.Struct, frozen=True, array_like=True):
    """How one side sees one attempt.

    ``sent``: it has sent all parts below this index. ``got``: it has all of the other's below this.
    ``until``: how far the other may send, in bytes from the stream's start. ``again``: a part is missing,
    begin anew at ``got``.
    """

    work_id: str
    attempt: int
    sent: int
    got: int
    until: int
    again: bool = False


class Beat(msgspec.Struct, frozen=True, array_like=True):
    """A sign of life with the state of streams. ``unknown``: attempts the sender has nothing of."""

    states: tuple[State, ...] = ()
    unknown: tuple[tuple[str, int], ...] = ()


class Hello(msgspec.Struct, frozen=True):
    """A gateway to a node that it has not met: the protocols that it speaks, oldest and newest."""

    oldest: int
    newest: int
    software: str = ""


class Report(msgspec.Struct, frozen=True):
    """A node's heartbeat, with what a hello says."""

    hello: Hello
    report: NodeReport


class Gone(msgspec.Struct, frozen=True):
    """A node's goodbye."""

    generation: int


class Stop(msgspec.Struct, frozen=True):
    """A gateway's withdrawal of an attempt; beside the stream, so that nothing can hold it up."""

    work_id: str
    attempt: int


Said = Part | Beat | Hello | Report | Gone | Stop
_KINDS: Final[dict[type, int]] = {Part: 1, Beat: 2, Hello: 3, Report: 4, Gone: 5, Stop: 6}
_encode = msgspec.msgpack.Encoder().encode
_DECODERS: Final[dict[int, Any]] = {
    number: msgspec.msgpack.Decoder(kind) for kind, number in _KINDS.items() if kind is not Part
}


def encode(said: Said) -> bytes:
    """The bytes of one message."""
    if isinstance(said, Part):
        name = said.work_id.encode()
        head = _HEAD.pack(PROTOCOL, 1, _MORE if said.more else 0, len(name), said.attempt, said.index)
        return b"".join((head, name, said.body))
    return bytes((PROTOCOL, _KINDS[type(said)])) + _encode(said)


def decode(data: bytes) -> Said:
    """One message. Raises ``Malformed``."""
    # A hello is what it is in every version, or no two could tell each other that they do not fit.
    if len(data) < 2 or (data[0] != PROTOCOL and data[1] != _KINDS[Hello]):
        raise Malformed(f"protocol {data[0]}" if data else "an empty message")
    if data[1] == 1:
        return _part(data)
    decoder = _DECODERS.get(data[1])
    if decoder is None:
        raise Malformed(f"kind {data[1]}")
    said: Said = _decoded(decoder, memoryview(data)[2:])
    return said


def _part(data: bytes) -> Part:
    if len(data) < _HEAD.size:
        raise Malformed("a part without its head")
    _, _, flags, length, attempt, index = _HEAD.unpack_from(data)
    begin = _HEAD.size + length
    if not 0 < length <= WORK_ID_MAX or begin > len(data) or len(data) - begin > PART_BYTES or flags > _MORE:
        raise Malformed("a part of wrong lengths")
    try:
        work_id = data[_HEAD.size : begin].decode()
    except UnicodeDecodeError:
        raise Malformed("a work id that is no text") from None
    return Part(work_id, attempt, index, bool(flags & _MORE), data[begin:])


# --- records: what the parts add up to ---

_OFFER, _ACCEPTED, _REFUSED, _OUTPUT_KIND, _ENDED = 1, 2, 3, 4, 5


class _OfferHead(msgspec.Struct, frozen=True, array_like=True):
    offer: Offer
    kind: Kind
    body: dict[str, Any]
    emitted: Emitted | None


class _ErrorHead(msgspec.Struct, frozen=True, array_like=True):
    name: str
    message: str
    code: str
    param: str | None
    retry_after_s: float | None


class _EndedHead(msgspec.Struct, frozen=True, array_like=True):
    ended: Ended
    error: _ErrorHead | None


# JSON, since a request's body is JSON, and may hold parts that were never decoded.
_offer_decoder = msgspec.json.Decoder(_OfferHead)
_ended_decoder = msgspec.msgpack.Decoder(_EndedHead)
_CLIENTS: Final = frozenset({"body", "text"})
_refusal_decoder = msgspec.msgpack.Decoder(Refusal)


def offer_record(offer: Offer, payload: Payload) -> bytes:
    """An offer with its payload."""
    head = msgspec.json.encode(_OfferHead(offer, payload.kind, payload.body, payload.emitted))
    return b"".join((_LENGTH.pack(_OFFER, len(head)), head, payload.data))


def offer_of(record: bytes, work_id: str, attempt: int) -> tuple[Offer, Payload]:
    """What ``offer_record`` was made of. Raises ``Malformed``."""
    if len(record) < _LENGTH.size:
        raise Malformed("an offer without its head")
    kind, length = _LENGTH.unpack_from(record)
    end = _LENGTH.size + length
    if kind != _OFFER or end > len(record):
        raise Malformed("an offer of wrong lengths")
    head: _OfferHead = _decoded(_offer_decoder, memoryview(record)[_LENGTH.size : end], free=_CLIENTS)
    if (head.offer.work_id, head.offer.attempt) != (work_id, attempt):
        raise Malformed("an offer of another attempt")
    return head.offer, Payload(head.kind, head.body, record[end:], head.emitted)


def answer_record(message: FromNode, data: bytes, error: GroundswellError | None) -> bytes:
    """What a node says of an attempt, with its bytes or its error."""
    if isinstance(message, Output):
        head = _OUTPUT.pack(_OUTPUT_KIND, message.index, message.tokens, message.resumable)
        return head + data
    if isinstance(message, Accepted):
        return bytes((_ACCEPTED,))
    if isinstance(message, Refused):
        return bytes((_REFUSED,)) + _encode(message.reason)
    told = None
    if error is not None:
        told = _ErrorHead(
            type(error).__name__, error.message[:TEXT_MAX], error.code, error.param, error.retry_after_s
        )
    return bytes((_ENDED,)) + _encode(_EndedHead(message, told))


def answer_of(record: bytes, work_id: str, attempt: int) -> tuple[FromNode, bytes, GroundswellError | None]:
    """What ``answer_record`` was made of. Raises ``Malformed``."""
    kind = record[0] if record else 0
    if kind == _OUTPUT_KIND:
        if len(record) < _OUTPUT.size:
            raise Malformed("an output without its head")
        _, index, tokens, resumable = _OUTPUT.unpack_from(record)
        return Output(work_id, attempt, index, tokens, bool(resumable)), record[_OUTPUT.size :], None
    if kind == _ACCEPTED:
        return Accepted(work_id, attempt), b"", None
    if kind == _REFUSED:
        return Refused(work_id, attempt, _decoded(_refusal_decoder, record[1:])), b"", None
    if kind != _ENDED:
        raise Malformed(f"a record of kind {kind}")
    head: _EndedHead = _decoded(_ended_decoder, record[1:])
    if (head.ended.work_id, head.ended.attempt) != (work_id, attempt):
        raise Malformed("an end of another attempt")
    return head.ended, b"", _error(head.error)


def _error(told: _ErrorHead | None) -> GroundswellError | None:
    """Of our own tree; a defect on a node is no defect here, so it becomes an engine's failure."""
    if told is None:
        return None
    kinds = {kind.__name__: kind for kind in GroundswellError.__subclasses__() if kind is not InternalError}
    kind = kinds.get(told.name, UpstreamError)
    known = kind.__name__ == told.name and _CODE.fullmatch(told.code)
    code = told.code if known else None
    return kind(told.message, code=code, param=told.param, retry_after_s=told.retry_after_s)


def _decoded(decoder: Any, data: bytes | memoryview, free: frozenset[str] = frozenset()) -> Any:
    try:
        value = decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Malformed(str(error)[:200]) from None
    _check(value, free)
    return value


def _check(value: Any, free: frozenset[str]) -> None:
    """No number below zero or beyond all sense, no text without end; fields named in ``free`` are a client's
    and were checked where they came in."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        if not 0 <= value <= NUMBER_MAX:
            _refuse("a number out of bounds")
    elif isinstance(value, str):
        if len(value) > TEXT_MAX:
            _refuse("a text that is too long")
    elif isinstance(value, tuple | frozenset):
        if len(value) > MANY_MAX:
            _refuse("too many of a kind")
        for one in value:
            _check(one, free)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            if name not in free:
                _check(getattr(value, name), free)
    elif is_dataclass(value):
        for field in fields(value):
            if field.name not in free:
                _check(getattr(value, field.name), free)


def _refuse(what: str) -> NoReturn:
    raise Malformed(what)
