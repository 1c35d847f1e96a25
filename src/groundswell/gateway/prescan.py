"""JSON from outside, made safe before a schema sees it.

Parsers disagree about what is not quite JSON: duplicate keys (a proxy may take the first and an engine the
last), nesting without end, ``NaN``, lone surrogates. msgspec refuses all of these but the first two; they are
found here. Both come out of one walk over the decoded value: it knows the depth, and it counts the keys that
survived decoding, which must be as many as the text has. Counting ``":`` in the bytes is an upper bound that
is nearly always exact; where it is not (a prompt that quotes JSON, a blank before a colon), the colons
outside of strings are counted.

Nothing here may hold the interpreter for long, in whichever thread. 16 MiB of ``[],`` would take a decoder
two seconds, so a large text is counted before anything is made of it; a small one is cheap whatever it holds.
The passes over a text stand in loops and functions of their own because only between those does Python let
another thread run.
"""

from __future__ import annotations

from typing import Any

import msgspec

from groundswell.model.errors import BadRequest

DEPTH_MAX = 64
VALUES_MAX = 300_000  # As many as a prompt may have token ids.
CONTAINERS_MAX = 50_000  # Lists and objects: the collector walks each of them, time and again.
KEYS_MAX = 100_000  # The most that 4,096 messages and 128 tools could need, several times over.
UNCOUNTED_BYTES_MAX = 128 << 10  # Takes about 20 ms at the worst.

_ALL_BUT_MARKS = bytes(set(range(256)) - set(b'",:[{'))


def decode(raw: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in ``raw``.

    Raises ``BadRequest`` with code ``invalid_json`` or ``duplicate_key``.
    """
    value = decode_value(raw)
    if type(value) is not dict:
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    return value


def decode_value(raw: bytes | bytearray) -> Any:
    """As ``decode``, for any JSON value."""
    if len(raw) > UNCOUNTED_BYTES_MAX:
        _refuse_many(raw)
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # The parser's own words name byte offsets of ours at best; a client needs less.
        raise BadRequest("The body is not valid JSON in UTF-8.", code="invalid_json") from None
    keys = _count_keys(value)
    if (raw.count(b'":') != keys or _has_loose_colon(raw)) and _outside_strings(raw).count(b":") != keys:
        raise BadRequest("An object in the body has the same key twice.", code="duplicate_key")
    return value


def _refuse_many(raw: bytes | bytearray) -> None:
    """Raises ``BadRequest`` for more values or keys than are taken; a few passes at the speed of memory."""
    if not _holds_few(raw) and not _holds_few(_outside_strings(raw)):
        raise _too_many()


def _outside_strings(raw: bytes | bytearray) -> bytes:
    """The marks of the JSON itself: without escapes, every second piece between quotes is outside."""
    for escape in (b"\\\\", b'\\"'):
        raw = raw.replace(escape, b"")
    bare = _only_marks(raw)
    if bare.count(b'"') > 4 * VALUES_MAX:
        raise _too_many()
    return b"".join(bare.split(b'"')[::2])


def _holds_few(raw: bytes | bytearray) -> bool:
    for marks, most in ((b",", VALUES_MAX), (b":", KEYS_MAX), (b"[{", CONTAINERS_MAX)):
        if len(raw) - len(raw.translate(None, marks)) > most:
            return False
    return True


def _only_marks(raw: bytes | bytearray) -> bytes | bytearray:
    return raw.translate(None, _ALL_BUT_MARKS)


def _count_keys(root: Any) -> int:
    """The number of keys of all objects within. Raises ``BadRequest`` over a limit."""
    keys = values = 0
    level: list[Any] = [root] if type(root) is dict or type(root) is list else []
    for _ in range(DEPTH_MAX):
        below: list[Any] = []
        for value in level:
            values += len(value)
            if values > VALUES_MAX:
                raise _too_many()
            if type(value) is dict:
                keys += len(value)
                below += [v for v in value.values() if type(v) is dict or type(v) is list]
            else:
                below += [v for v in value if type(v) is dict or type(v) is list]
        if not below:
            return keys
        level = below
    raise _too_deep()


def _too_many() -> BadRequest:
    return BadRequest(
        f"More than {VALUES_MAX} values, {CONTAINERS_MAX} lists and objects, or {KEYS_MAX} keys in the body.",
        code="invalid_json",
    )


def _too_deep() -> BadRequest:
    return BadRequest(f"The body is nested deeper than {DEPTH_MAX} levels.", code="invalid_json")


def _has_loose_colon(raw: bytes | bytearray) -> bool:
    for loose in (b" :", b"\n:", b"\t:", b"\r:"):  # noqa: SIM110 - a loop lets other threads run.
        if loose in raw:
            return True
    return False
