"""JSON from outside, made safe before a schema sees it.

Parsers disagree about what is not quite JSON: duplicate keys (a proxy may take the first and an engine the
last), nesting without end, ``NaN``, lone surrogates. msgspec refuses all of these but the first two; they are
found here. Both come out of one walk over the decoded value: it knows the depth, and it counts the keys that
survived decoding, which must be as many as the text has. Counting ``":`` in the bytes is an upper bound that
is nearly always exact; where it is not (a prompt that quotes JSON), the standard library's parser decides.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from groundswell.model.errors import BadRequest

DEPTH_MAX = 64
VALUES_MAX = 300_000  # Above it the walk would hold the loop for more than about 50 ms.


def decode(raw: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in ``raw``.

    Raises ``BadRequest`` with code ``invalid_json`` or ``duplicate_key``.
    """
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # The parser's own words name byte offsets of ours at best; a client needs less.
        raise BadRequest("The body is not valid JSON in UTF-8.", code="invalid_json") from None
    if type(value) is not dict:
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    keys = _count_keys(value)
    if raw.count(b'":') != keys or _space_before_colon(raw):
        _refuse_duplicates(raw)
    return value


def _count_keys(root: dict[str, Any]) -> int:
    """The number of keys of all objects within. Raises ``BadRequest`` over a limit."""
    keys = values = 0
    level: list[Any] = [root]
    for _ in range(DEPTH_MAX):
        below: list[Any] = []
        for value in level:
            values += len(value)
            if values > VALUES_MAX:
                raise BadRequest(f"The body holds more than {VALUES_MAX} values.", code="invalid_json")
            if type(value) is dict:
                keys += len(value)
                below += [v for v in value.values() if type(v) is dict or type(v) is list]
            else:
                below += [v for v in value if type(v) is dict or type(v) is list]
        if not below:
            return keys
        level = below
    raise _too_deep()


def _too_deep() -> BadRequest:
    return BadRequest(f"The body is nested deeper than {DEPTH_MAX} levels.", code="invalid_json")


def _space_before_colon(raw: bytes | bytearray) -> bool:
    return b" :" in raw or b"\n:" in raw or b"\t:" in raw or b"\r:" in raw


def _refuse_duplicates(raw: bytes | bytearray) -> None:
    def pairs(found: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in found}) != len(found):
            raise BadRequest("An object in the body has the same key twice.", code="duplicate_key")

    json.loads(bytes(raw), object_pairs_hook=pairs, parse_float=str, parse_int=str)
