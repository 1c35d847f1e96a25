"""What reads bytes of strangers, each as a function of bytes that raises only for a defect of ours.

hypothesis and atheris call these (`test_parsers.py`); whatever broke one lies in `found/` and is tried again
in every run. `python targets.py NAME [libFuzzer options]` fuzzes one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

try:
    import atheris
except ImportError:  # There is none for this Python; hypothesis goes on alone.
    atheris = None

with atheris.instrument_imports(include=["groundswell"]) if atheris else contextlib.nullcontext():
    from groundswell.bus import records
    from groundswell.core.dispatch import Finish
    from groundswell.engines import openai_http
    from groundswell.gateway import chunks, exchange, openai, prescan
    from groundswell.gateway.multipart import read_form
    from groundswell.media import fmp4
    from groundswell.media.probe import sniff
    from groundswell.model.errors import BadRequest, GroundswellError, Unprocessable, UpstreamError
    from groundswell.model.money import Usage
    from groundswell.model.work import Kind, Work, WorkState
    from groundswell.wire import fetch, http_client, sse

_loop = asyncio.new_event_loop()


class _Logged(logging.Handler):
    """An error in the log is a defect that somebody else has swallowed."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            raise record.exc_info[1]
        raise AssertionError(record.getMessage())


def _cut(data: bytes) -> list[bytes]:
    """The data in the pieces in which a network might bring it; its first byte says where they end."""
    step, rest = (data[0] % 61) + 1 if data else 1, data[1:]
    return [rest[at : at + step] for at in range(0, len(rest), step)]


def events(data: bytes) -> None:
    """The splitter of server-sent events: nothing is lost, whole events only, however it was cut."""
    splitter, out = sse.EventSplitter(1000), b""
    whole = data[1:]
    try:
        for piece in _cut(data):
            block = splitter.feed(piece)
            assert not block or block.endswith((b"\n\n", b"\r\r", b"\r\n\r\n"))
            out += block
            list(sse.payloads(block))
    except sse.EventTooLarge:
        return
    assert out + splitter.tail == whole
    at_once = sse.EventSplitter(len(whole) + 1)
    assert at_once.feed(whole) + at_once.tail == whole


def chunk_stream(data: bytes) -> None:
    """The rewriting of an engine's chunks, before and after a seam, and what is kept of them."""
    made = chunks.Chunks(Kind.CHAT if data[:1] < b"\x80" else Kind.COMPLETION, "m", "id", 1, True)
    splitter, sent = sse.EventSplitter(), exchange._Sent()
    blocks = [block for piece in _cut(data) if (block := splitter.feed(piece))]
    with contextlib.suppress(UpstreamError):
        for number, block in enumerate(blocks):
            if number == 3:
                made.splice()
            made.rewrite(block)
            sent.add(block)
        sent.text()


def whole_answer(data: bytes) -> None:
    """The answer that is not streamed, as the client sees it."""
    kind = list(Kind)[(data[0] if data else 0) % 3]
    work = Work("w", kind, "m", "t", 1.0)
    finish = Finish("w", WorkState.DONE, usage=Usage(1, 2), attempts=1)
    with contextlib.suppress(UpstreamError):
        answer = json.loads(exchange._public_answer(data[1:], work, finish))
        assert answer["model"] == "m"
        assert set(answer) <= exchange._ANSWER_KEYS


class _Sink:
    def __init__(self) -> None:
        self.got, self.ends = b"", 0

    def output(self, data: bytes, tokens: int, resumable: bool = True) -> None:
        assert not self.ends
        assert tokens >= 0
        self.got += data

    def ended(self, usage: Usage, fault: Any = None, error: GroundswellError | None = None) -> None:
        self.ends += 1
        assert usage.input_tokens >= 0 <= usage.output_tokens
        assert (fault is None) == (error is None)


class _Wire:
    """Stands where a transport and a client stand."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, _data: bytes) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def opened(self, _connection: Any) -> None: ...

    def gone(self, _connection: Any) -> None: ...

    def release(self, _connection: Any) -> None: ...


def engine_response(data: bytes) -> None:
    """An engine's whole response, from its first byte to what the node hears: one end, whatever comes."""

    async def hear() -> None:
        sink, wire = _Sink(), _Wire()
        origin = http_client.Origin("h", 80, False)
        streams = data[:1] < b"\x80"
        attempt = (openai_http._StreamAttempt if streams else openai_http._WholeAttempt)(sink)
        request = http_client.Request(wire, origin, b"", attempt)
        attempt.request = request
        connection = http_client._Connection(wire, origin)
        connection.connection_made(wire)
        request.attach(connection, used=False)
        for piece in _cut(data):
            if wire.closed:
                break
            connection.data_received(piece)
        connection.connection_lost(None)
        assert sink.ends == 1

    handler = _Logged()
    logging.getLogger("groundswell").addHandler(handler)
    try:
        _loop.run_until_complete(hear())
    finally:
        logging.getLogger("groundswell").removeHandler(handler)


def engine_refusal(data: bytes) -> None:
    """What an engine says about a request that it does not take."""
    status = 400 + data[0] if data else 500
    _, error = openai_http.refusal_of(status, data[1:], [(b"retry-after", data[1:9])])
    assert 400 <= error.status < 600
    assert len(error.message) <= 1000


def media_head(data: bytes) -> None:
    """The first bytes of a file, which choose its demuxer."""
    with contextlib.suppress(Unprocessable):
        assert sniff(data) in ("mov", "matroska", "avi", "flv", "ogg", "mpegts")


def segment(data: bytes) -> None:
    """A segment of video as an engine returns it."""
    for read in (fmp4.split_init, fmp4.timescale, fmp4.samples, fmp4.codec, lambda one: fmp4.move(one, 900)):
        with contextlib.suppress(UpstreamError):
            read(data)


class _Numbers(fetch.Fetcher):
    """Reads hosts as the C library would, and asks no name server."""

    async def resolve(self, host: str, port: int) -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [str(entry[4][0]) for entry in found]


def url(data: bytes) -> None:
    """The guard of URLs: what passes leads to public addresses, whatever way it is written."""
    text = data.decode("utf-8", "replace")
    try:
        target = _loop.run_until_complete(_Numbers().check(text))
    except Unprocessable:
        return
    for address in map(ipaddress.ip_address, target.addresses):
        assert address.is_global
        assert not address.is_multicast
        assert getattr(address, "ipv4_mapped", None) is None or address.ipv4_mapped.is_global
    assert not set(target.authority + target.path) & set(" \r\n\0@\\")


def request_body(data: bytes) -> None:
    """A client's JSON: what is taken is what every other parser would read, and no key is there twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    with contextlib.suppress(BadRequest):
        value = prescan.decode(data)
        assert json.loads(data, object_pairs_hook=once) == value
    for kind in (Kind.CHAT, Kind.COMPLETION, Kind.EMBEDDING):
        with contextlib.suppress(BadRequest):
            openai.understand(kind, data)


def form(data: bytes) -> None:
    """A multipart form, cut as a network might."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in _cut(data):
            yield piece

    async def keep(stream: AsyncIterator[bytes]) -> int:
        return sum([len(piece) async for piece in stream])

    with contextlib.suppress(BadRequest):
        _loop.run_until_complete(read_form(pieces(), "multipart/form-data; boundary=x", keep))


def link(data: bytes) -> None:
    """What comes over a network link: a message, and the record that a part of one may be."""
    with contextlib.suppress(records.Malformed):
        records.decode(data)
    for read in (records.answer_of, records.offer_of):
        with contextlib.suppress(records.Malformed):
            read(data, "w", 1)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        events, chunk_stream, whole_answer, engine_response, engine_refusal, media_head, segment, url,
        request_body, form, link,
    )
}  # fmt: skip


if __name__ == "__main__":
    assert atheris is not None, "there is no atheris for this Python"
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
