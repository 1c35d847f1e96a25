"""Scripted works: the test plays what a relay and its nodes would do to an exchange."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from groundswell.core.contract import Finish
from groundswell.gateway.openai import TextPaths
from groundswell.gateway.pipeline import Seen
from groundswell.gateway.relay import NodeView
from groundswell.gateway.server import Server
from groundswell.model.messages import Offer, Output
from groundswell.model.money import Usage
from groundswell.model.node import Capability, EngineReport, NodeReport
from groundswell.model.work import Kind, Work, WorkState
from groundswell.ports import Exchange, Payload
from groundswell.store.keys import MISS, Principal, Scope

KEY = "gsw_test"
VIDEO_KEY = "gsw_video"
ADMIN_KEY = "gsw_admin"


class Ring:
    """Keys by name; ``gsw_late`` is known only to the store."""

    def __init__(self) -> None:
        self.asked = 0
        self._known = {
            KEY: Principal("key_1", "acme", frozenset({Scope.INFERENCE})),
            VIDEO_KEY: Principal("key_2", "acme", frozenset({Scope.VIDEO})),
            ADMIN_KEY: Principal("key_3", "ops", frozenset(Scope)),
        }

    def find_cached(self, token: str) -> Any:
        return MISS if token == "gsw_late" else self._known.get(token)

    async def find(self, token: str) -> Principal | None:
        self.asked += 1
        await asyncio.sleep(0.01)
        return self._known[KEY] if token == "gsw_late" else None


class Script:
    """Stands where the relay stands. ``play(work, exchange, script)`` is called for each submitted work."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.exchanges: dict[str, Exchange] = {}
        self.payloads: list[Payload] = []
        self.cancelled: list[str] = []
        self.flow: list[tuple[str, str]] = []
        self.play: Callable[[Work, Exchange], None] = lambda _work, _exchange: None
        self.submitted = asyncio.Event()
        self.was_cancelled = asyncio.Event()
        self._frame = 0

    def submit(self, work: Work, exchange: Exchange) -> None:
        self.works.append(work)
        self.exchanges[work.id] = exchange
        self.submitted.set()
        self.play(work, exchange)

    def cancel(self, work_id: str) -> None:
        exchange = self.exchanges.pop(work_id, None)
        if exchange is None:
            return
        self.cancelled.append(work_id)
        self.was_cancelled.set()
        exchange.finish(Finish(work_id, WorkState.CANCELLED, "cancelled"), None)

    def pause(self, work_id: str) -> None:
        self.flow.append(("pause", work_id))

    def resume(self, work_id: str) -> None:
        self.flow.append(("resume", work_id))

    # --- what a node would make the relay do ---

    def offer(self, work: Work, attempt: int = 1, emitted: int = 0) -> Payload:
        """As the relay: an exchange that cannot go on is finished at once."""
        exchange = self.exchanges[work.id]
        try:
            payload = exchange.payload(
                Offer(work.id, attempt, "n", "e", work.kind, work.model, emitted_tokens=emitted)
            )
        except Exception as error:
            exchange.finish(Finish(work.id, WorkState.FAILED, getattr(error, "code", "")), error)  # type: ignore[arg-type]
            raise
        self.payloads.append(payload)
        return payload

    def send(
        self, work: Work, data: bytes, tokens: int = 1, attempt: int = 1, resumable: bool = True
    ) -> None:
        self._frame += 1
        self.exchanges[work.id].deliver(Output(work.id, attempt, self._frame, tokens, resumable), data)

    def done(self, work: Work, usage: Usage | None = None, **more: Any) -> None:
        usage = usage or Usage(7, 3)
        exchange = self.exchanges.pop(work.id)
        exchange.finish(Finish(work.id, WorkState.DONE, usage=usage, attempts=1, **more), None)

    def fail(self, work: Work, reason: str, error: Any = None, **more: Any) -> None:
        exchange = self.exchanges.pop(work.id)
        exchange.finish(Finish(work.id, WorkState.FAILED, reason, **more), error)


def chunk(delta: dict[str, Any], finish: str | None = None, ident: str = "chatcmpl-1", **more: Any) -> bytes:
    """One chunk as an engine writes it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    event = {
        "id": ident,
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "engine/llama",
        "choices": [choice],
        **more,
    }
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def usage_chunk(prompt: int, completion: int, ident: str = "chatcmpl-1") -> bytes:
    event = {
        "id": ident,
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "engine/llama",
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def node_views() -> list[NodeView]:
    kinds = frozenset({Kind.CHAT, Kind.COMPLETION})
    llama = Capability("llama", "engine/llama", kinds, context_tokens=8192)
    sick = Capability("gone", "gone", kinds)
    engines = (EngineReport("e", 1, 4, 0, True, (llama,)), EngineReport("f", 1, 4, 0, False, (sick,)))
    return [NodeView(NodeReport("node-1", 1, 1, engines), 0.5)]


class Gateway:
    """The running server with everything that a test wants to look at."""

    def __init__(self, server: Server, port: int, script: Script, seen: list[Seen], ring: Ring) -> None:
        self.server, self.port, self.script, self.seen, self.ring = server, port, script, seen, ring
        self.url = f"http://127.0.0.1:{port}"
        self.views: list[NodeView] = []
        self.text: TextPaths

    async def raw(self, data: bytes, timeout_s: float = 5.0) -> bytes:
        """Send bytes, read until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), timeout_s)
        finally:
            writer.close()
