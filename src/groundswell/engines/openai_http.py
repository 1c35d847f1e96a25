"""Any OpenAI-compatible server as an engine: vLLM, SGLang, llama.cpp, Ollama, LM Studio, TGI, and our own.

Bytes are relayed as they come. A stream is cut into complete events and looked at by searching, not by
parsing: how many tokens a block brings, whether it can still be continued elsewhere, whether it is the end.
Only the event with the usage, and errors, are parsed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from groundswell.engines.openai_fields import PATHS, request_body
from groundswell.engines.openai_probe import (
    ProbeSettings,
    Server,
    inspect,
    loaded_by_ollama,
    models_of,
)
from groundswell.model.errors import BadRequest, GroundswellError, NotFound, TooLarge, UpstreamError
from groundswell.model.messages import Fault
from groundswell.model.money import Price, Usage
from groundswell.model.node import Capability
from groundswell.ports import EngineInfo, Payload, Sink
from groundswell.wire.http_client import Headers, HttpClient, HttpError, Request, Template, split_url
from groundswell.wire.sse import EventSplitter, EventTemplate, EventTooLarge, payloads

STREAM_BYTES_MAX: Final = 64 << 20  # A million tokens with log-probabilities fit.
WHOLE_BYTES_MAX: Final = 64 << 20  # 2,048 embeddings of 4,096 floats as text.
ERROR_BYTES_MAX: Final = 64 << 10
MESSAGE_CHARACTERS_MAX: Final = 500
FRAME_BYTES: Final = 256 << 10
LINGER_S: Final = 2.0
# Besides two for each slot: one at work and one that has ended and lingers. A thousand clients that leave
# at once pass through the slots in one turn of the loop; their connections count until they are closed.
CONNECTIONS_SPARE: Final = 1024

_FLAWED = "The engine sent a malformed answer."
_TOOL_CALL = re.compile(rb'"(?:tool_calls"\s*:\s*\[\s*\{|function_call"\s*:\s*\{)')
_REASONING = re.compile(rb'"reasoning(?:_content)?"\s*:\s*"[^"]')
_ERROR = re.compile(rb'(?:^|[\r\n])(?:data|error): ?\s*\{\s*"(?:error"|object"\s*:\s*"error")')
_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]")
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_TOO_LONG = re.compile(
    r"context (?:length|size|window)|maximum (?:model|context) len|exceeds? the (?:model|available)", re.I
)
_ADDRESS = re.compile(r"https?://\S+|(?:/[\w.\-]+){2,}|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")


class OpenAIHttpEngine:
    """One server at ``base_url`` (with or without ``/v1``).

    ``aliases`` maps public names to the engine's; a model with aliases is offered under those only. ``slots``
    None or 0 and an empty ``profile`` or ``fingerprint`` mean: as the probe finds it. Raises ``ValueError``
    for an address that is none. Must be made on a running event loop.
    """

    def __init__(
        self,
        engine_id: str,
        base_url: str,
        *,
        api_key: str | None = None,
        aliases: Mapping[str, str] | None = None,
        price: Price | None = None,
        slots: int | None = None,
        profile: str = "",
        fingerprint: str = "",
    ) -> None:
        self.engine_id = engine_id
        self._client = HttpClient()
        self._origin, path = split_url(base_url)
        self._path = path.removesuffix("/v1")
        self._headers: tuple[tuple[str, str], ...] = (("Accept", "*/*"),)
        if api_key:
            self._headers += (("Authorization", f"Bearer {api_key}"),)
        self._settings = ProbeSettings(aliases or {}, price or Price(), slots or 0, profile, fingerprint)
        self._server = Server(self._client, self._origin, self._path, self._headers, bool(api_key))
        headers = (*self._headers, ("Content-Type", "application/json"))
        self._templates = {
            kind: Template.of(self._origin, "POST", self._path + path, headers)
            for kind, path in PATHS.items()
        }
        self._models: list[dict[str, Any]] | None = None
        self._loaded: dict[str, int] = {}
        self._info = EngineInfo(0, ())
        self._running: set[_Attempt] = set()

    async def probe(self) -> EngineInfo:
        """What it is. The first probe asks all; later ones ask for the list of models, which is enough to
        know that it answers, and all again when that has changed.

        Raises ``UpstreamError``."""
        models = await models_of(self._server)
        loaded = self._loaded
        if self._info.flavour == "ollama":
            loaded = await loaded_by_ollama(self._server)
        if models != self._models or loaded != self._loaded:
            self._info = await inspect(self._server, models, self._settings)
            self._models = models
            self._client.connections_max = 2 * self._info.slots + CONNECTIONS_SPARE
            if self._info.flavour == "ollama":
                self._loaded = loaded or await loaded_by_ollama(self._server)
        return self._info

    async def gateway_instance(self) -> str:
        """Which gateway this is, if it is one of ours and no engine; asked without needing a key."""
        return str((await self._server.object_at("/healthz")).get("instance") or "")

    def start(self, capability: Capability, payload: Payload, sink: Sink) -> _Attempt:
        """Send one request; see ``ports.Engine``."""
        streams = bool(payload.body.get("stream"))
        attempt = _StreamAttempt(sink) if streams else _WholeAttempt(sink)
        try:
            body = msgspec.json.encode(request_body(self._info.flavour, capability, payload))
        except GroundswellError as error:
            attempt.end(Usage(), Fault.BROKEN, error)
            return attempt
        self._running.add(attempt)
        attempt.on_over = self._running.discard
        attempt.request = self._client.send(self._templates[payload.kind], attempt, body)
        return attempt

    async def close(self) -> None:
        """Cancel what runs, close every connection."""
        for attempt in list(self._running):
            attempt.cancel()
        await self._client.close()


class _Answer(msgspec.Struct):
    """What is looked at in a whole answer; the rest of it is passed on unread."""

    error: Any = None
    object: Any = None
    usage: Any = None


_ANSWER = msgspec.json.Decoder(_Answer)


class _Attempt:
    """One request to the engine: hears its response, tells the sink. ``cancel`` at any moment."""

    def __init__(self, sink: Sink) -> None:
        self.request: Request | None = None
        self.on_over: Callable[[_Attempt], None] | None = None
        self._sink = sink
        self._over = False
        self._status = 0
        self._headers: Headers = []
        self._body = bytearray()
        self._size = 0

    def cancel(self) -> None:
        self._finish()
        if self.request is not None:
            self.request.cancel()

    def pause(self) -> None:
        if self.request is not None:
            self.request.pause()

    def resume(self) -> None:
        if self.request is not None:
            self.request.resume()

    def end(self, usage: Usage, fault: Fault | None = None, error: GroundswellError | None = None) -> None:
        """It is over; the sink hears so, once. What still comes of a faulty response is not waited for."""
        if self._over:
            return
        self._finish()
        if self.request is not None and not self.request.over:
            if fault is not None:
                self.request.cancel()
            else:
                # All was said. The connection is used again if the response ends properly, soon.
                self.request.resume()
                asyncio.get_running_loop().call_later(LINGER_S, self.request.cancel)
        self._sink.ended(usage, fault, error)

    def on_head(self, status: int, headers: Headers) -> None:
        self._status, self._headers = status, headers

    def on_body(self, data: bytes) -> None:
        if self._over:
            return
        self._size += len(data)
        if self._status != 200:
            if self._size <= ERROR_BYTES_MAX:
                self._body += data
            return
        self._on_content(data)

    def on_end(self) -> None:
        if self._over:
            return
        if self._status != 200:
            fault, error = refusal_of(self._status, bytes(self._body), self._headers)
            self.end(Usage(), fault, error)
            return
        self._on_complete()

    def on_error(self, error: HttpError) -> None:
        """Lost: the engine died, was cut off, or is not there; that says nothing about the work."""
        self.end(Usage(), Fault.LOST, UpstreamError("The engine's connection was lost."))

    def _on_content(self, data: bytes) -> None:
        raise NotImplementedError

    def _on_complete(self) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        self._over = True
        if self.on_over is not None:
            self.on_over(self)


class _WholeAttempt(_Attempt):
    """One JSON answer."""

    def _on_content(self, data: bytes) -> None:
        if self._size > WHOLE_BYTES_MAX:
            self.end(Usage(), Fault.BROKEN, UpstreamError("The engine's answer is too large."))
            return
        self._body += data

    def _on_complete(self) -> None:
        body = bytes(self._body)
        try:
            answer = _ANSWER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.end(Usage(), Fault.BROKEN, UpstreamError(_FLAWED))
            return
        if answer.error or answer.object == "error":
            self.end(Usage(), *_error_of(_decoded(body)))
            return
        usage = _usage_in(answer.usage)
        last = len(body) - 1
        for start in range(0, len(body), FRAME_BYTES):
            whole = start + FRAME_BYTES > last
            self._sink.output(body[start : start + FRAME_BYTES], usage.output_tokens if whole else 0)
            if self._over:
                return
        self.end(usage)


class _StreamAttempt(_Attempt):
    """A stream of events."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._events = EventSplitter()
        self._usage: Usage | None = None
        self._tokens = 0
        self._finished = False
        self._resumable = True
        self._template: EventTemplate | None = None

    def _on_content(self, data: bytes) -> None:
        if self._size > STREAM_BYTES_MAX:
            self.end(self._usage_so_far(), Fault.BROKEN, UpstreamError("The engine's answer is too large."))
            return
        template = self._template
        if template is not None and self._events.between and template.text(data) is not None:
            self._tokens += 1
            self._sink.output(data, 1, self._resumable)
            return
        try:
            block = self._events.feed(data)
        except EventTooLarge:
            self.end(self._usage_so_far(), Fault.BROKEN, UpstreamError(_FLAWED))
            return
        if block:
            self._pass_on(block)

    def _on_complete(self) -> None:
        if self._finished:
            self.end(self._usage_so_far())
        else:
            lost = UpstreamError("The engine ended its stream before the answer was complete.")
            self.end(self._usage_so_far(), Fault.LOST, lost)

    def on_error(self, error: HttpError) -> None:
        if self._finished:
            self.end(self._usage_so_far())
        else:
            super().on_error(error)

    def _pass_on(self, block: bytes) -> None:
        failed = None
        if b"error" in block and (at := _ERROR.search(block)):
            block, failed = _cut_at(block, at.end())
        if self._resumable and (
            (b"_call" in block and _TOOL_CALL.search(block))
            or (b'"reasoning' in block and _REASONING.search(block))
        ):
            self._resumable = False
        if b'"finish_reason":"' in block or b'"finish_reason": "' in block:
            self._finished = True
        if b'"usage":{' in block or b'"usage": {' in block:
            self._read_usage(block)
        done = b"[DONE]" in block and _DONE.search(block) is not None
        tokens = content_tokens(block)
        self._tokens += tokens
        plain = tokens == 1 and failed is None and not done and not self._finished
        # Such an event changes nothing that is remembered here; those after it need no look.
        if plain and self._resumable and self._usage is None:
            self._template = EventTemplate.of(block)
        if block:
            self._sink.output(block, tokens, self._resumable)
        if self._over:
            return
        if failed is not None:
            self.end(self._usage_so_far(), *failed)
        elif done:
            # The rest of the response is its framing; the connection takes care of itself.
            self.end(self._usage_so_far())

    def _read_usage(self, block: bytes) -> None:
        for data in payloads(block):
            if b'"usage"' in data:
                answer = _decoded(data)
                if isinstance(answer, dict) and answer.get("usage"):
                    self._usage = usage_of(answer)

    def _usage_so_far(self) -> Usage:
        return self._usage or Usage(output_tokens=self._tokens)


def content_tokens(block: bytes) -> int:
    """How many events in a block bring text; a token each, as engines stream.

    Text inside of text has its quotes escaped, so that these patterns match only the fields themselves."""
    tokens = (
        block.count(b'"content":"') - block.count(b'"content":""')
        + block.count(b'"text":"') - block.count(b'"text":""')
    )  # fmt: skip
    if b'": "' in block:  # JSON as Python writes it.
        tokens += (
            block.count(b'"content": "') - block.count(b'"content": ""')
            + block.count(b'"text": "') - block.count(b'"text": ""')
        )  # fmt: skip
    return tokens


def _decoded(data: bytes) -> Any:
    """The JSON that an engine sent; None when it is none, or is nested without end."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def usage_of(answer: Any) -> Usage:
    """The usage object of an answer or event; zeros where it says nothing that can be used."""
    return _usage_in(answer.get("usage") if isinstance(answer, dict) else None)


def _usage_in(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def refusal_of(status: int, body: bytes, headers: Headers) -> tuple[Fault, GroundswellError]:
    """What an engine's error status means for the work.

    4xx says that the request is wrong, and no other engine would take it; 408, 409, 425 and 429 are about the
    moment, and 401 and 403 about our key, so those and 5xx may go elsewhere."""
    answer = _decoded(body)
    message, code, param = _said(answer)
    if status in (401, 403):
        return Fault.BROKEN, UpstreamError("The engine does not accept the gateway's key.")
    if status in (408, 409, 425, 429) or not 400 <= status < 500:
        return Fault.BROKEN, _failure(message, _retry_after_s(headers))
    if status == 404 and "model" not in message.lower():
        return Fault.BROKEN, UpstreamError("The engine does not offer this kind of request.")
    return Fault.REJECTED, _bad_request(status, message, code, param)


def _error_of(answer: dict[str, Any]) -> tuple[Fault, GroundswellError]:
    """An error that came with status 200."""
    message, code, param = _said(answer)
    error = answer.get("error")
    status = error.get("code") if isinstance(error, dict) else answer.get("code")
    kind = str(error.get("type")) if isinstance(error, dict) else ""
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 409, 425, 429):
        return Fault.REJECTED, _bad_request(status, message, code, param)
    if kind in ("invalid_request_error", "BadRequestError") or code == "context_length_exceeded":
        return Fault.REJECTED, _bad_request(400, message, code, param)
    return Fault.BROKEN, _failure(message)


def _failure(message: str, retry_after_s: float | None = None) -> UpstreamError:
    """The engine's own reason is the only one there is: a tool call that it could not read, or no memory."""
    return UpstreamError(
        f"The engine failed: {message}" if message else "The engine failed.", retry_after_s=retry_after_s
    )


def _bad_request(status: int, message: str, code: str | None, param: str | None) -> GroundswellError:
    if code == "context_length_exceeded" or _TOO_LONG.search(message) or code == "exceed_context_size_error":
        return BadRequest(
            message or "The prompt is longer than the model's context.",
            code="context_length_exceeded", param=param or "messages",
        )  # fmt: skip
    if status == 404:
        return NotFound(
            "The model is not served by its engine any more.", code="model_not_found", param="model"
        )
    if status == 413:
        return TooLarge(message or "The request is too large for the engine.")
    return BadRequest(message or "The engine refused the request.", param=param)


def _said(answer: Any) -> tuple[str, str | None, str | None]:
    """Message, code and field of an engine's error, in any of the shapes that exist, fit for a client."""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return "", None, None
    message = error.get("message") or error.get("detail") or ""
    if "Traceback (most recent" in str(message):
        message = ""  # Somebody's code and folders, and no reason that a client could use.
    text = _ADDRESS.sub("…", " ".join(str(message).split()))[:MESSAGE_CHARACTERS_MAX]
    code = error.get("code") if isinstance(error.get("code"), str) else error.get("type")
    param = error.get("param")
    return text, code if isinstance(code, str) else None, param if isinstance(param, str) else None


def _cut_at(block: bytes, position: int) -> tuple[bytes, tuple[Fault, GroundswellError]]:
    """The events before the one at ``position``, and the error that this one is."""
    start = 0
    for end in _BLANK_LINE.finditer(block):
        if end.end() >= position:
            break
        start = end.end()
    event = block[start:].replace(b"\rerror:", b"\rdata:").replace(b"\nerror:", b"\ndata:")
    if event.startswith(b"error:"):
        event = b"data:" + event[6:]
    for data in payloads(event):
        answer = _decoded(data)
        if isinstance(answer, dict):
            return block[:start], _error_of(answer)
        break
    return block[:start], (Fault.BROKEN, UpstreamError(_FLAWED))


def _retry_after_s(headers: Headers) -> float | None:
    for name, value in headers:
        if name == b"retry-after":
            try:
                return max(0.0, min(float(value), 120.0))
            except ValueError:
                return None
    return None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0
