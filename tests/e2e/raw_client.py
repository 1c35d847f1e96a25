"""Requests to a gateway on plain sockets, and what an emulated engine must answer to them.

A library would cost more than what is measured, and hides when a byte came. Each request has a connection of
its own and is read line by line: every chunk that the gateway writes holds whole events, and no line of the
chunks' own looks like one.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from groundswell.engines.emulated import EmulatedModel, EmulatedOptions, TokenStream
from groundswell.engines.openai_app import GenerateRequest

LINE_BYTES_MAX = 1 << 20
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, as a process that is killed may.


@dataclass(frozen=True)
class Expected:
    """What any run of one request to an emulated engine gives."""

    text: str
    tokens: int
    finish_reason: str


def expected(model: str, prompt: str, tokens_max: int, ignore_eos: bool = False) -> Expected:
    """The answer at temperature 0 to one message of the user."""
    read = EmulatedModel(EmulatedOptions(model)).chat_prompt([{"role": "user", "content": prompt}], "")
    text = TokenStream(GenerateRequest(read, tokens_max, temperature=0.0, ignore_eos=ignore_eos))
    words: list[str] = []
    while len(words) < tokens_max:
        token = text.next()
        if token is None:
            return Expected("".join(words), len(words), "stop")
        words.append(token[0])
    return Expected("".join(words), len(words), "length")


@dataclass(frozen=True)
class Door:
    """Where a gateway listens, and with which key."""

    url: str
    key: str

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        """A request that closes its connection."""
        data = json.dumps(body).encode()
        lines = (f"POST {path} HTTP/1.1", f"Host: {urlsplit(self.url).netloc}")
        lines += (f"Authorization: Bearer {self.key}", "Content-Type: application/json")
        lines += (f"Content-Length: {len(data)}", "Connection: close", "", "")
        return "\r\n".join(lines).encode() + data

    def chat(self, model: str, prompt: str, tokens_max: int, **more: Any) -> bytes:
        """A request for one answer at temperature 0."""
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens_max}
        return self.post("/v1/chat/completions", {**body, "temperature": 0, **more})

    async def send(self, data: bytes, receive_bytes: int = 0) -> Answer:
        """Open a connection and send. ``receive_bytes`` is the size of the socket's receive buffer."""
        where = urlsplit(self.url)
        one = socket.socket()
        one.setblocking(False)
        if receive_bytes:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(one, (where.hostname, where.port))
        reader, writer = await asyncio.open_connection(sock=one, limit=LINE_BYTES_MAX)
        writer.write(data)
        return Answer(reader, writer)


class Answer:
    """One answer while it comes. ``close`` it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.status = 0
        self._writer = writer

    async def head(self) -> int:
        """The status; the headers are read and dropped."""
        line = await self.reader.readline()
        if not line.startswith(b"HTTP/1.1 "):
            raise ConnectionError(f"no answer came, but {line!r}")
        self.status = int(line.split()[1])
        while (await self.reader.readline()).strip():
            pass
        return self.status

    async def whole(self) -> dict[str, Any]:
        """The JSON of an answer that is no stream."""
        await self.head()
        found: dict[str, Any] = json.loads(await self.reader.read())
        return found

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Each event up to ``[DONE]``. Raises ``ConnectionError`` when the stream ends without it."""
        if not self.status:
            await self.head()
        async for line in self.reader:
            if line == b"data: [DONE]\n":
                return
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
        raise ConnectionError("the stream ended without [DONE]")

    def close(self, *, reset: bool = False) -> None:
        """Hang up at once."""
        if reset:
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._writer.transport.abort()


def prompt(number: int) -> str:
    """A prompt that no other request has."""
    return f"Tell me about number {number} of {os.getpid()}"
