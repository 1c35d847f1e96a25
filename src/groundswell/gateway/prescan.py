"""JSON from outside, made safe before a schema sees it.

Parsers disagree about what is not quite JSON: duplicate keys (a proxy may take the first and an engine the
last), nesting without end, ``NaN``, lone surrogates. msgspec refuses all of these but the first two; they are
found here. Both come out of one walk over the decoded value: it knows the depth, and it counts the keys that
survived decoding, which must be as many as the text has. Counting ``":`` in the bytes is an upper bound that
is nearly always exact; where it is not (a prompt that quotes JSON), the standard library's parser decides.

Nothing here may hold the interpreter for long, in whichever thread. 16 MiB of ``[],`` would take a decoder
two seconds, so a large text is counted before anything is made of it; a small one is cheap whatever it holds.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from groundswell.model.errors import BadRequest

DEPTH_MAX = 64
VALUES_MAX = 300_000  # As many as a prompt may have token ids.
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
    if raw.count(b'":') != keys or _space_before_colon(raw):
        _refuse_duplicates(raw)
    return value


def _refuse_many(raw: bytes | bytearray) -> None:
    """Raises ``BadRequest`` for more values or keys than are taken; a few passes at the speed of memory."""
    if _marks(raw) <= VALUES_MAX and raw.count(b":") <= KEYS_MAX:
        return
    # Most may lie inside strings. Without escapes, every second piece between quotes is outside of them.
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _ALL_BUT_MARKS)
    if bare.count(b'"') > 4 * VALUES_MAX:
        raise _too_many()
    outside = b"".join(bare.split(b'"')[::2])
    # A value brings a mark of its own, or two when it is an empty list.
    if _marks(outside) > 2 * VALUES_MAX + 1 or outside.count(b":") > KEYS_MAX:
        raise _too_many()


def _marks(raw: bytes | bytearray) -> int:
    return len(raw) - len(raw.translate(None, b",[{"))


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
        f"The body holds more than {VALUES_MAX} values, or more than {KEYS_MAX} keys.", code="invalid_json"
    )


def _too_deep() -> BadRequest:
    return BadRequest(f"The body is nested deeper than {DEPTH_MAX} levels.", code="invalid_json")


def _space_before_colon(raw: bytes | bytearray) -> bool:
    return b" :" in raw or b"\n:" in raw or b"\t:" in raw or b"\r:" in raw


def _refuse_duplicates(raw: bytes | bytearray) -> None:
    def pairs(found: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in found}) != len(found):
            raise BadRequest("An object in the body has the same key twice.", code="duplicate_key")

    json.loads(bytes(raw), object_pairs_hook=pairs, parse_float=str, parse_int=str)
