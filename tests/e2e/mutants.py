"""Requests that mean harm, or nothing: made from a seed and a number, so that any of them can be made again.

Sound requests to every endpoint are changed in their values, their fields, their bytes, their parameters,
their headers and their framing. Texts are chosen from what has broken somebody's server before.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PROMPT = "the-prompt-that-no-log-may-hold"
CHAT = {
    "model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
    "max_tokens": 3, "temperature": 0.5, "n": 1, "stream": False, "stop": ["x"], "seed": 1,
    "logit_bias": {"1": 2},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "text"}, "metadata": {"a": "b"},
}  # fmt: skip
PLAIN = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}
SOUND: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", PLAIN),
    ("/v1/chat/completions", PLAIN | {"stream": True, "temperature": 1, "stop": "x", "n": 1, "user": "u"}),
    ("/v1/completions", {"model": "m", "prompt": PROMPT, "max_tokens": 3, "best_of": 1, "logprobs": 1}),
    ("/v1/completions", {"model": "m", "prompt": [1, 2, 3], "max_tokens": 2, "echo": True, "suffix": "x"}),
    ("/v1/embeddings", {"model": "m", "input": [PROMPT, "b"], "encoding_format": "float", "dimensions": 3}),
    (
        "/v1/transcodes",
        {"input": {"blob": "blob_" + "0" * 32}, "ladder": ["360p", {"height": 180, "crf": 23}]},
    ),
    ("/v1/transcodes", {"input": {"url": "http://10.0.0.1/a.mp4"}}),
    ("/v1/nodes", {"url": "http://127.0.0.1:9", "key": "k", "aliases": {"a": "b"}, "slots": 2}),
]
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 1.0, 1.5, -0.0, 1e300, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400, "",
    "\x00", "😀", "é" * 50, "x" * 5000, "x" * 70_000, [], {}, [[]], [None], [[[[[[]]]]]], {"a": None},
    {"": ""}, [1, 2], "NaN", "../../etc/passwd", "http://\r\nbox", "auto", [{}] * 3, {"type": "function"},
    "a\r\nX: y", "'--", "m", "{{7*7}}", "<img onerror=alert(1)>", "\x1b[31m", "data: [DONE]\n\n", "\u202e",
    "blob_" + "f" * 32, [""] * 300, {"$ref": "http://a/"}, {"$ref": "#/a", "a": {"$ref": "#"}},
    {"pattern": "(a+)+$"}, "file:///etc/passwd", "http://169.254.169.254/", {str(n): n for n in range(310)},
    [0] * 5000, "base64", "float", "json_schema",
]  # fmt: skip
NAMES = [
    "api_base", "user_config", "chat_template", "extra_body", "mm_processor_kwargs", "__proto__", "",
    "model", "a" * 5000, "\x00", "$ref", "stream", "tools", "functions", "prompt", "n", "best_of",
    "logprobs", "truncate_prompt_tokens",
]  # fmt: skip
PIECES = [
    b"", b"\xff", b"\x00", b"[", b"{", b'{"a":', b"1e999", b'"\\ud800"', b"NaN", b"-Infinity", b"\\", b'"',
    b",", b":", b"\xef\xbb\xbf", b"\r\n", b"9" * 400, b"-", b"tru", b"[" * 200, b'{"a":' * 100,
    b"\xf0\x9f\x98", b"\xed\xa0\x80",
]  # fmt: skip
PATHS = [
    "/v1/models", "/v1/models/m", "/v1/models/%00", "/v1/models/..%2f..", "/v1/models/a%0d%0aX:%20y",
    "/v1/models/" + "a" * 4000, "/v1/transcodes", "/v1/transcodes?limit=-1",
    "/v1/transcodes?limit=%F0%9F%98%80", "/v1/transcodes?limit=" + "9" * 5000,
    "/v1/transcodes?limit=1&limit=2", "/v1/transcodes?after=%00", "/v1/transcodes?after=job_" + "0" * 32,
    "/v1/transcodes?%ff=%ff", "/v1/transcodes/%00", "/v1/transcodes/job_0/cancel",
    "/v1/transcodes/a/files/..%2f..%2fgroundswell.db", "/v1/transcodes/a/files/",
    "/v1/transcodes/%ff/hls/%00/%00", "/v1/transcodes/a/hls/b/..%2f..%2f..%2fetc%2fpasswd", "/v1/nodes",
    "/v1/nodes/%00", "/v1/nodes/n0", "/v1/nodes/a%2fb", "/v1/responses", "//", "/%ff", "/v1/blobs",
    "/metrics", "/healthz", "/readyz", "/v1/chat/completions", "/v1/openapi.json", "/v1//models",
    "/v1/./models", "/V1/models", "/v1/models/", "/v1/models;a=b", "/v1/models%3fa", "/?" + "&" * 3000,
    "/v1/models#a",
]  # fmt: skip
METHODS = [
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "HEAD",
    "PATCH",
    "TRACE",
    "M-SEARCH",
    "get",
    "G\x01T",
    "PROPFIND",
]
HEADERS = [
    "Host: evil.example", "Host: localhost", "Host: a/#@b", "Host:", "Content-Length: 5",
    "Content-Length: +5", "Content-Length: 0", "Content-Length: 99999999999999999999",
    "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: xchunked",
    "Content-Encoding: gzip", "Content-Encoding: br", "Expect: 100-continue", "Expect: x",
    "Connection: close", "Connection: keep-alive, x", "Connection: Upgrade", "Upgrade: websocket",
    "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__", "Range: bytes=0-1",
    "Range: bytes=" + "0-0," * 2000 + "0-0", "If-Range: x", "X-Request-Id: " + "x" * 200,
    "X-Request-Id: ok-1", "X-Forwarded-For: 127.0.0.1", "X-Original-URL: /metrics", "Origin: null",
    "Origin: http://127.0.0.1", "Content-Type: text/plain",
    "Content-Type: application/json; charset=utf-16", "Content-Type: multipart/form-data",
    "Content-Type: multipart/form-data; boundary=" + "b" * 300, "Accept: */*", "Idempotency-Key: a",
    "Idempotency-Key: " + "k" * 300, "Idempotency-Key: \xe9",
    "traceparent: 00-" + "f" * 32 + "-" + "f" * 16 + "-01", "traceparent: junk", "Cookie: " + "a=b; " * 500,
    "A: " + "x" * 9000, "A : b", ": b", "A\x00: b", " folded: x", "A: b\x00c", "A: \x7f",
    "Authorization: Basic eDp5", "x-api-key: gsw_x", "X-HTTP-Method-Override: DELETE", "Content-Type: ",
]  # fmt: skip
LARGE = [b'"",', b"0,", b"{},", b"[],", b'{"a":0},', b"null,", b"1.5,", b"[0],", b'"\\n",', b"[[[]]],"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """Bytes for a connection. ``sort`` says how it was made, ``clean`` whether it is one whole request."""

    sort: str
    data: bytes
    clean: bool = True


def mutant(seed: int, number: int, key: str) -> Mutant:
    """The request of this number. The few that are large are spread among the others."""
    rng = random.Random(f"{seed}/{number}")
    if number % 1000 == 999:
        return Mutant("large", _request(rng, "POST", rng.choice(SOUND[:6])[0], _large(rng), key, plain=True))
    draw = rng.random()
    if draw < 0.55:
        path, sound = rng.choice(SOUND)
        return Mutant("body", _request(rng, "POST", path, _body(rng, sound), key))
    if draw < 0.72:
        path, method = rng.choice(PATHS), rng.choice(METHODS if rng.random() < 0.3 else METHODS[:6])
        body = rng.choice((b"", b"", b"{}", b"[1", b"\xff" * 50))
        return Mutant("path", _request(rng, method, _spelled(rng, path), body, key))
    if draw < 0.86:
        path, sound = rng.choice(SOUND)
        return Mutant(
            "headers",
            _request(rng, "POST", path, _body(rng, sound), key, more=rng.randrange(1, 4)),
            clean=False,
        )
    if draw < 0.92:
        return Mutant("form", _form(rng, key))
    return Mutant("raw", _raw(rng, key), clean=False)


def _body(rng: random.Random, sound: dict[str, Any]) -> bytes:
    """JSON that is wrong in none to three places: a value, a field, or some of its bytes."""
    value = copy.deepcopy(sound)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        *path, last = rng.choice(list(_places(value)) or [("zzz",)])
        inner: Any = value
        for name in path:
            inner = inner[name]
        draw = rng.random()
        if draw < 0.15 and last != "zzz":
            del inner[last]
        elif draw < 0.3 and isinstance(inner, dict):
            inner[rng.choice(NAMES)] = copy.deepcopy(rng.choice(JUNK))
        else:
            inner[last] = copy.deepcopy(rng.choice(JUNK))
    body = bytearray(json.dumps(value, ensure_ascii=rng.random() < 0.8).encode())
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        at = rng.randrange(len(body) + 1)
        body[at : at + rng.randrange(4)] = rng.choice(PIECES)
    if rng.random() < 0.02:
        body = bytearray(gzip.compress(bytes(body)))
    return bytes(body)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something could be changed."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield (*path, name)
        yield from _places(one, (*path, name))


def _large(rng: random.Random) -> bytes:
    """A body of megabytes: of very many values, of one long text, or of very many keys."""
    size = rng.choice((200 << 10, 1 << 20, 4 << 20, 15 << 20))
    draw = rng.random()
    if draw < 0.5:
        unit = rng.choice(LARGE)
        inner = b'"metadata":[' + unit * (size // len(unit)) + b"0]"
    elif draw < 0.7:
        keys = b",".join(b'"k%d":[]' % n for n in range(size // 14))
        inner = b'"tools":[{' + keys + b"}]"
    else:
        text = rng.choice((b"hello, ", b"\\n", b"\\u00e9", "é".encode(), b'{\\"a\\": 1}', b"[,:{"))
        inner = b'"user":"%b"' % (text * (size // len(text)))
    return b'{"model":"nobody","messages":[{"role":"user","content":"x"}],' + inner + b"}"


def _spelled(rng: random.Random, path: str) -> str:
    """The path, or another spelling of it."""
    if rng.random() < 0.7:
        return path
    at = rng.randrange(len(path) + 1)
    return (
        path[:at]
        + rng.choice(("%00", "/", "//", ".", "..", "%2e%2e/", "?", "&", "=", "%", "\xff", "%zz", ";"))
        + path[at:]
    )


def _request(
    rng: random.Random, method: str, path: str, body: bytes, key: str, more: int = 0, plain: bool = False
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    draw = 0.5 if plain else rng.random()
    if draw > 0.06:
        lines.append(f"Authorization: Bearer {key}")
    elif draw > 0.03:
        lines.append(
            "Authorization: "
            + rng.choice(("Bearer", "Bearer x", "Bearer gsw_" + "a" * 50, "bearer \xff", "Basic x", key))
        )
    if body or method == "POST":
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    for _ in range(more):
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(HEADERS))
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def _form(rng: random.Random, key: str) -> bytes:
    """A multipart form, well or badly made."""
    boundary = rng.choice((b"x", b"--", b"b" * 70))
    parts = []
    for _ in range(rng.choice((0, 1, 1, 2, 40))):
        name = rng.choice(
            (
                b'name="file"; filename="../../x"',
                b'name="ladder"',
                b'name="file"',
                b"",
                b'name="a"; name="b"',
                b"name=\xff",
            )
        )
        text = rng.choice(
            (
                b"",
                b"[" * 3000,
                b'["144p"]',
                b"\xff" * 100,
                b"x" * 70_000,
                b"#EXTM3U\n/etc/passwd",
                b"\0" * 2000,
            )
        )
        parts.append(
            b"--" + boundary + b"\r\nContent-Disposition: form-data; " + name + b"\r\n\r\n" + text + b"\r\n"
        )
    body = bytearray(b"".join(parts) + b"--" + boundary + b"--\r\n")
    if rng.random() < 0.4:
        at = rng.randrange(len(body))
        body[at : at + rng.randrange(6)] = rng.choice(PIECES)
    head = [
        b"POST /v1/transcodes HTTP/1.1", b"Host: localhost", b"Authorization: Bearer " + key.encode(),
        b"Content-Type: multipart/form-data; boundary=" + boundary, b"Content-Length: %d" % len(body),
    ]  # fmt: skip
    return b"\r\n".join(head) + b"\r\n\r\n" + bytes(body)


def _raw(rng: random.Random, key: str) -> bytes:
    """A request whose very bytes are changed: lines lost, doubled, cut; chunks that are none."""
    path, sound = rng.choice(SOUND)
    data = bytearray(_request(rng, "POST", path, _body(rng, sound), key))
    if rng.random() < 0.3:
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        size = rng.choice(
            (b"%x" % len(body), b"%x" % (len(body) + 1), b"-1", b"f" * 17, b"0x5", b"5;a=b", b"5 ", b"")
        )
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length"))
        end = rng.choice((b"0\r\n\r\n", b"0\r\nHost: a\r\n\r\n", b"", b"0\n\n"))
        data = bytearray(
            head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + body + b"\r\n" + end
        )
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at = rng.randrange(min(len(data), 400)) if data else 0
        data[at : at + rng.randrange(8)] = rng.choice(
            (*PIECES, b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"GET / HTTP/1.1\r\n")
        )
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
    return bytes(data)
