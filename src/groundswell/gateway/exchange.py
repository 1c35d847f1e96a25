"""The two exchanges of the text endpoints: they hold the bytes of one request between relay and client.

``AnswerExchange`` collects a whole answer. ``StreamExchange`` passes chunks on as they come and remembers
what it sent, as raw blocks that are parsed only when they grow or when another attempt has to go on.
Nothing that was sent is retracted, repeated or skipped: an attempt's frames before its first content are held
back, an attempt that continues speaks under the first one's ids, and a stop string that spans the seam ends
the stream there.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from groundswell.core import continuation
from groundswell.core.contract import Finish
from groundswell.gateway import chunks, errors
from groundswell.gateway.chunks import DONE, Chunks
from groundswell.gateway.errors import Headers
from groundswell.gateway.hot import HotCycle
from groundswell.model.errors import GroundswellError, UpstreamError
from groundswell.model.messages import Offer, Output
from groundswell.model.money import Usage
from groundswell.model.value import value
from groundswell.model.work import Kind, Work, WorkState
from groundswell.ports import Emitted, Payload

ANSWER_BYTES_MAX = 64 << 20
EMITTED_CHARACTERS_MAX = 8 << 20
UNPARSED_BYTES_MAX = 32 << 10  # Of each stream; beyond it what was sent is condensed to its text.
HELD_FRAMES_MAX = 32
KEEP_ALIVE = b": keep-alive\n\n"

_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_CHOICE_KEYS = frozenset({"index", "message", "text", "logprobs", "finish_reason"})
_FINISH_REASON = re.compile(rb'"finish_reason"\s*:\s*"')
_Written = msgspec.Raw | UnsetType
_ID_PREFIX = {Kind.CHAT: "chatcmpl-", Kind.COMPLETION: "cmpl-"}


class Works(Protocol):
    """What an exchange needs of ``relay.Relay``."""

    def cancel(self, work_id: str) -> None: ...

    def pause(self, work_id: str) -> None: ...

    def resume(self, work_id: str) -> None: ...


@value
class Account:
    """Who pays for a work, beside the tenant that the brain knows, and which trace it belongs to."""

    tenant: str
    key_id: str
    request_id: str
    traceparent: str = ""


@value
class Asked:
    """A parsed request: the facts that decide about continuation, and the body as an engine may see it."""

    facts: continuation.Request
    body: dict[str, Any]
    stops: tuple[str, ...] = ()
    include_usage: bool = False


def _nothing(_work_id: str) -> None:
    pass


class _Exchange:
    """What both have in common: the client's side of flow control, cancellation and failure."""

    def __init__(self, works: Works, work: Work, asked: Asked, cycle: HotCycle) -> None:
        self._works = works
        self._work = work
        self._asked = asked
        self._cycle: HotCycle | None = cycle  # None once nothing more may be written.
        self.on_end: Callable[[str], None] = _nothing  # Called with the work's id when it is over.

    def gone(self) -> None:
        self._cycle = None
        self._works.cancel(self._work.id)

    def pause(self) -> None:
        self._works.pause(self._work.id)

    def resume(self) -> None:
        self._works.resume(self._work.id)

    def _fail(self, finish: Finish, error: GroundswellError | None) -> None:
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.fail(errors.from_finish(finish, self._work.model, error))


class AnswerExchange(_Exchange):
    """A request without ``stream``: the answer goes out in one piece."""

    def __init__(self, works: Works, work: Work, asked: Asked, cycle: HotCycle) -> None:
        super().__init__(works, work, asked, cycle)
        self._parts: list[bytes] = []
        self._bytes = 0
        self._attempt = -1

    def payload(self, offer: Offer) -> Payload:
        return Payload(offer.kind, self._asked.body)

    def deliver(self, output: Output, data: bytes) -> None:
        if output.attempt != self._attempt:
            self._attempt, self._bytes = output.attempt, 0
            self._parts.clear()
        self._bytes += len(data)
        if self._bytes > ANSWER_BYTES_MAX:
            raise UpstreamError("The engine's answer is larger than the gateway passes on.")
        self._parts.append(data)

    def finish(self, finish: Finish, error: GroundswellError | None) -> None:
        self.on_end(self._work.id)
        if finish.state is not WorkState.DONE:
            self._fail(finish, error)
            return
        cycle, self._cycle = self._cycle, None
        if cycle is None:
            return
        try:
            body = _public_answer(b"".join(self._parts), self._work, finish)
        except UpstreamError as broken:
            cycle.fail(broken)
            return
        lines = [(b"content-type", b"application/json"), (b"x-groundswell-attempts", b"%d" % finish.attempts)]
        cycle.respond(200, lines, body)


class _Public(msgspec.Struct):
    """A whole answer in the fields that clients know, each as the engine wrote it; others are left out."""

    id: _Written = UNSET
    object: _Written = UNSET
    created: _Written = UNSET
    model: _Written = UNSET
    choices: _Written = UNSET
    data: _Written = UNSET
    usage: _Written = UNSET
    system_fingerprint: _Written = UNSET
    service_tier: _Written = UNSET


_PUBLIC = msgspec.json.Decoder(_Public)
_OBJECTS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def _public_answer(data: bytes, work: Work, finish: Finish) -> bytes:
    """The engine's answer under the public model's name, without fields that only the engine knows."""
    try:
        answer = _PUBLIC.decode(data)
        wanted = answer.data if work.kind is Kind.EMBEDDING else answer.choices
        objects = _OBJECTS.decode(b"null" if wanted is UNSET else wanted)
        if work.kind is not Kind.EMBEDDING and wanted is not UNSET and chunks.has_private(wanted):
            kept = [{key: value for key, value in one.items() if key in _CHOICE_KEYS} for one in objects]
            answer.choices = msgspec.Raw(msgspec.json.encode(kept))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise UpstreamError("The engine's answer is not what its interface promises.") from None
    answer.model = msgspec.Raw(msgspec.json.encode(work.model))
    if work.kind in _ID_PREFIX and answer.id is UNSET:
        answer.id = msgspec.Raw(msgspec.json.encode(_ID_PREFIX[work.kind] + work.id))
    if answer.usage is UNSET:
        usage = _usage(finish.usage)
        if work.kind is Kind.EMBEDDING:
            del usage["completion_tokens"]
        answer.usage = msgspec.Raw(msgspec.json.encode(usage))
    return msgspec.json.encode(answer)


def _usage(used: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.input_tokens,
        "completion_tokens": used.output_tokens,
        "total_tokens": used.input_tokens + used.output_tokens,
    }


class _Sent:
    """What a client was sent, kept so that another attempt can go on from it."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._bytes = 0
        self._escaped = bytearray()  # Text that followed the blocks, as it is in JSON.
        self._texts: list[str] = []
        self._characters = 0
        self.finish_reason: str | None = None
        self.bound = False  # More than text was sent: a tool call, reasoning.

    def add_text(self, text: bytes) -> None:
        """The escaped text of an event that had nothing else to remember."""
        if self._blocks:
            self.condense()
        self._escaped += text
        if len(self._escaped) > UNPARSED_BYTES_MAX:
            self.condense()

    def add(self, block: bytes) -> None:
        """Any other complete events."""
        if self._escaped:
            self.condense()
        self._blocks.append(block)
        self._bytes += len(block)
        if self._bytes > UNPARSED_BYTES_MAX:
            self.condense()

    def text(self) -> str:
        self.condense()
        self._texts = ["".join(self._texts)]
        return self._texts[0]

    def condense(self) -> None:
        """Keep the text only. Raises ``UpstreamError``, now and at the next call, for what cannot be kept."""
        events = chunks.events(b"".join(self._blocks))
        text = "".join([chunks.text_of(event) for event in events]) + chunks.unescaped(self._escaped)
        self._blocks, self._bytes, self._escaped = [], 0, bytearray()
        self._texts.append(text)
        self._characters += len(text)
        for event in events:
            for choice in event.get("choices") or ():
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                delta = choice.get("delta") or {}
                self.bound |= any(delta.get(key) for key in ("tool_calls", "reasoning", "reasoning_content"))
        if self._characters > EMITTED_CHARACTERS_MAX:
            raise UpstreamError("The stream is longer than the gateway can keep.")


class _Over(UpstreamError):
    """Raised from ``payload`` when nothing is left for another attempt to say."""

    default_code = "nothing_left"


class StreamExchange(_Exchange):
    """A request with ``stream``. ``hold_s``: how long the headers wait for the first content, and afterwards
    how long silence lasts before a comment shows that the stream is alive."""

    def __init__(
        self, works: Works, work: Work, asked: Asked, cycle: HotCycle, loop: asyncio.AbstractEventLoop,
        hold_s: float,
    ) -> None:  # fmt: skip
        super().__init__(works, work, asked, cycle)
        made = _ID_PREFIX[work.kind] + work.id
        self._chunks = Chunks(work.kind, work.model, made, int(time.time()), asked.include_usage)
        self._sent = _Sent() if work.resumable else None
        self._attempt: int | None = None
        self._held: list[bytes] = []
        self._has_content = False
        self._seam: _Seam | None = None
        self._emitted_tokens = 0
        self._last = b""  # The engine's output as last written: a finish reason is there or nowhere.
        self._ended_as: str | None = None  # Set when we end the stream, with this finish reason.
        self._loop = loop
        self._hold_s = hold_s
        self._quiet = True
        self._timer = loop.call_later(hold_s, self._beat)

    def payload(self, offer: Offer) -> Payload:
        if not offer.emitted_tokens or self._sent is None:
            return Payload(offer.kind, self._asked.body)
        text = self._sent.text()
        self._emitted_tokens = offer.emitted_tokens
        facts = self._asked.facts
        if self._sent.finish_reason is not None:
            raise self._over(None)  # All was said; only the end was lost.
        if facts.max_tokens and offer.emitted_tokens >= facts.max_tokens:
            raise self._over("length")
        if self._sent.bound:
            raise UpstreamError(
                "The stream was interrupted and cannot be continued.", code="stream_interrupted"
            )
        body = dict(self._asked.body)
        if facts.max_tokens:
            body["max_tokens"] = facts.max_tokens - offer.emitted_tokens
        if facts.min_tokens:
            body["min_tokens"] = max(0, facts.min_tokens - offer.emitted_tokens)
        return Payload(offer.kind, body, emitted=Emitted(text, offer.emitted_tokens))

    def deliver(self, output: Output, data: bytes) -> None:
        if output.attempt != self._attempt:
            self._begin_attempt(output.attempt)
        if not self._has_content:
            self._held.append(data)
            if not output.tokens and output.resumable and len(self._held) < HELD_FRAMES_MAX:
                return
            self._has_content = True
            data = b"".join(self._held)
            self._held.clear()
        self._pass_on(data)

    def finish(self, finish: Finish, error: GroundswellError | None) -> None:
        self.on_end(self._work.id)
        self._timer.cancel()
        if self._cycle is None:
            return
        if finish.state is WorkState.DONE:
            try:
                self._let_go()
                if finish.fault is not None:
                    self._close_choice()
            except UpstreamError as broken:
                self._fail(Finish(self._work.id, WorkState.FAILED, broken.code), broken)
                return
        elif self._ended_as is None:
            self._fail(finish, error)
            return
        last = b""
        if self._asked.include_usage:
            last = self._chunks.usage_chunk(self._totals(finish))
        self._end(last + DONE)

    def _let_go(self) -> None:
        """What was held back until now is all that comes. Raises ``UpstreamError`` if it is malformed."""
        if self._held:
            self._pass_on(b"".join(self._held))
        if self._seam is not None:
            self._write(self._seam.rest())

    def _close_choice(self) -> None:
        """The engine was lost when only the end of the answer was missing: say why it ends, if it did not."""
        if _FINISH_REASON.search(self._last) is not None:
            return
        if self._asked.facts.choices > 1:  # Which of them have ended is not known here.
            raise UpstreamError(
                "The stream was interrupted and cannot be continued.", code="stream_interrupted"
            )
        self._write(self._chunks.finish_chunk("length"))

    def gone(self) -> None:
        self._timer.cancel()
        super().gone()

    def pause(self) -> None:
        """The same bytes wait in the connection's buffer now; here their text will do."""
        super().pause()
        if self._sent is not None:
            with contextlib.suppress(UpstreamError):  # It is raised again where it can be answered.
                self._sent.condense()

    def _begin_attempt(self, attempt: int) -> None:
        self._attempt = attempt
        self._held.clear()
        if not self._has_content:
            return
        self._chunks.splice()
        if self._asked.stops and self._sent is not None:
            longest = max(len(stop) for stop in self._asked.stops)
            self._seam = _Seam(self._sent.text()[-longest:], self._asked.stops)

    def _pass_on(self, data: bytes) -> None:
        if self._seam is not None:
            self._across(self._seam, data)
            return
        text = self._chunks.text(data)
        if text is not None:
            if self._sent is not None:
                self._sent.add_text(text)
            self._last = self._chunks.around(text)
            self._write(self._last)
            return
        out = self._chunks.rewrite(data)
        if self._sent is not None:
            self._sent.add(data)
        self._last = out or self._last
        self._write(out)

    def _across(self, seam: _Seam, data: bytes) -> None:
        """The first output after a seam, while a stop string may still begin before it."""
        out = seam.take(self._chunks.parsed(data))
        if self._sent is not None and out:
            self._sent.add(out)
        self._last = out or self._last
        self._write(out)
        if seam.stopped:
            self._seam = None
            self._over("stop")
            # The engine does not know that it is done: the work is taken from it, and ends here.
            self._works.cancel(self._work.id)
        elif seam.closed:
            self._seam = None

    def _over(self, reason: str | None) -> _Over:
        self._ended_as = reason or "sent"
        if reason is not None:
            self._write(self._chunks.finish_chunk(reason))
        return _Over("The answer is complete.")

    def _totals(self, finish: Finish) -> dict[str, Any]:
        if self._chunks.usage is not None and not finish.continued:
            return self._chunks.usage
        if finish.usage == Usage():
            return _usage(Usage(self._work.prompt_tokens, self._emitted_tokens))
        return _usage(finish.usage)

    def _write(self, data: bytes) -> None:
        if not data or self._cycle is None:
            return
        self._quiet = False
        if self._cycle.started:
            self._cycle.write(data)
        else:
            self._cycle.open(_STREAM_HEADERS, data)

    def _end(self, last: bytes) -> None:
        self._write(last)
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.end()

    def _beat(self) -> None:
        if self._cycle is None:
            return
        if self._quiet and not self._cycle.paused:
            self._write(KEEP_ALIVE)
        self._quiet = True
        self._timer = self._loop.call_later(self._hold_s, self._beat)


class _Seam:
    """Watches for a stop string that begins in what was sent and ends in what comes."""

    def __init__(self, tail: str, stops: tuple[str, ...]) -> None:
        self._tail = tail
        self._stops = stops
        self._text = ""
        self._held: list[chunks.Event] = []
        self.closed = False
        self.stopped = False

    def take(self, events: list[chunks.Event]) -> bytes:
        """New events in; those that may go out by now, encoded."""
        for event in events:
            self._text += chunks.text_of(event)
        self._held += events
        if continuation.stop_across_seam(self._tail, self._text, self._stops) is not None:
            self._held.clear()
            self.stopped = True
            return b""
        if continuation.may_span(self._tail, self._text, self._stops):
            return b""
        self.closed = True
        return self.rest()

    def rest(self) -> bytes:
        held, self._held = self._held, []
        return b"".join([chunks.encode(event) for event in held])
