"""A local text model behind the OpenAI HTTP interface.

What our own engines share: reading and checking requests, streams, stop strings, log-probabilities, usage.
The model gives tokens (``TextModel``); everything between tokens and JSON is here, once.

Continuation is exact. The text that an earlier attempt has already sent is handed over as the *prefix*; it
counts as generated, so that seeds and penalties go on as if nothing had happened, and the answer holds only
what follows. ``max_tokens`` and ``completion_tokens`` count new tokens, ``prompt_tokens`` the prefix too.

* chat: vLLM's fields: the last message is the assistant's, with ``continue_final_message: true`` and
  ``add_generation_prompt: false``.
* completions: the prefix is appended to ``prompt``, and our field ``continue_from`` says after how many
  characters (Unicode code points) of ``prompt`` it begins.
"""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from groundswell.engines.server import App, Handler, Request
from groundswell.model.errors import BadRequest, NotFound, Overloaded

STOPS_MAX = 16
STOP_CHARACTERS_MAX = 1024
TOP_LOGPROBS_MAX = 20
IN_FLIGHT_MAX = 1024  # a gateway never sends more than slots allow; this only bounds memory
COMPLETION_TOKENS = 16  # OpenAI's max_tokens of a completion that gives none; a chat may fill the context


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads: token ids, of which the last ``generated`` are the prefix of a continuation."""

    tokens: tuple[int, ...]
    generated: int = 0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request, checked. ``seed`` is always set; ``temperature`` 0 means greedy; ``top_k`` 0 means all.

    ``max_tokens`` already fits the context; it and ``min_tokens`` count new tokens. Penalties count tokens
    of the prefix as generated.
    """

    prompt: Prompt
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None  # None: no log-probabilities wanted


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural log-probability of a chosen token, and of the likeliest ones at its place, best first."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What came out: the bytes of ``tokens`` tokens, which may end inside a UTF-8 character.

    The last piece has a ``finish_reason``, "stop" (the model ended) or "length", and may be empty; nothing
    comes after it. The end-of-text token is not counted.
    """

    data: bytes
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


class TextModel(Protocol):
    """What an engine must offer. ``generate`` is closed at once when nobody listens any more."""

    name: str
    fingerprint: str
    profile: str
    context_tokens: int
    slots: int

    def chat_prompt(self, messages: list[dict[str, str]], prefix: str) -> Prompt:
        """Render messages ({"role", "content"}, content a string), open the assistant's turn, and append the
        prefix as generated tokens. Raises ``BadRequest`` for a role it does not know."""

    def text_prompt(self, text: str, prefix: str) -> Prompt:
        """The tokens of a plain text and of the prefix that was generated after it."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """Yield pieces as they are made: an asynchronous generator function."""


class OpenAIApp(App):
    """The ASGI application of one model. ``routes`` adds an engine's own paths."""

    def __init__(self, model: TextModel, routes: Mapping[tuple[str, str], Handler] | None = None) -> None:
        super().__init__(
            {
                ("GET", "/health"): self._health,
                ("GET", "/v1/models"): self._models,
                ("POST", "/v1/chat/completions"): self._chat,
                ("POST", "/v1/completions"): self._completion,
                **(routes or {}),
            }
        )
        self._model = model
        self._created = int(time.time())
        self._in_flight = 0

    async def _health(self, request: Request) -> None:
        await request.answer({"status": "ok"})

    async def _models(self, request: Request) -> None:
        model = self._model
        entry = {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "groundswell",
            "context_length": model.context_tokens,
            "groundswell": {
                "fingerprint": model.fingerprint,
                "continuation": "exact",
                "slots": model.slots,
                "profile": model.profile,
            },
        }
        await request.answer({"object": "list", "data": [entry]})

    async def _chat(self, request: Request) -> None:
        body = _Fields(request.object())
        messages = _messages(body)
        prefix = ""
        if body.boolean("continue_final_message"):
            if body.boolean("add_generation_prompt", True):
                raise BadRequest(
                    "continue_final_message needs add_generation_prompt: false", param="add_generation_prompt"
                )
            if messages[-1]["role"] != "assistant":
                raise BadRequest(
                    "continue_final_message needs a last message of the assistant", param="messages"
                )
            prefix = messages.pop()["content"]
        await self._run(request, body, self._model.chat_prompt(messages, prefix), _ChatShape())

    async def _completion(self, request: Request) -> None:
        body = _Fields(request.object())
        text = body.take("prompt")
        if isinstance(text, list) and len(text) == 1:
            text = text[0]
        if not isinstance(text, str):
            raise BadRequest("prompt must be one string", param="prompt")
        if body.boolean("echo") or body.take("suffix"):
            raise BadRequest("echo and suffix are not supported", param="echo")
        start = int(body.number("continue_from", len(text), 0, len(text)))
        await self._run(
            request, body, self._model.text_prompt(text[:start], text[start:]), _CompletionShape()
        )

    async def _run(self, request: Request, body: _Fields, prompt: Prompt, shape: _Shape) -> None:
        model = body.take("model")
        if model != self._model.name:
            raise NotFound(f"the model {model!r} is not served here", code="model_not_found", param="model")
        if self._in_flight >= IN_FLIGHT_MAX:
            raise Overloaded("too many requests wait for this engine", retry_after_s=1.0)
        asked = _generate_request(body, prompt, self._model.context_tokens, shape)
        answer = _Answer(shape, self._model, asked, _stops(body))
        stream = body.boolean("stream")
        options = _Fields(body.take("stream_options") or {})
        usage, running = options.boolean("include_usage"), options.boolean("continuous_usage_stats")
        self._in_flight += 1
        try:
            if stream:
                await answer.stream(request, usage, running)
            else:
                await answer.whole(request)
        finally:
            self._in_flight -= 1


class _Fields:
    """A JSON object whose fields are taken with a check. Unknown fields are ignored, as engines do."""

    def __init__(self, values: Any) -> None:
        if not isinstance(values, dict):
            raise BadRequest("an object was expected")
        self._values: dict[str, Any] = values

    def take(self, name: str) -> Any:
        return self._values.get(name)

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadRequest(f"{name} must be true or false", param=name)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise BadRequest(f"{name} must be a number from {low:g} to {high:g}", param=name)
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.number(name, default, low, high)
        if value != int(value):
            raise BadRequest(f"{name} must be a whole number", param=name)
        return int(value)


def _messages(body: _Fields) -> list[dict[str, str]]:
    messages = body.take("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    return [_message(message) for message in messages]


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest("each message must be an object with a role", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRequest("this model takes text only", param="messages", code="unsupported_content")
        content = "".join(str(part.get("text", "")) for part in content)
    if content is not None and not isinstance(content, str):
        raise BadRequest("content must be a string or a list of parts", param="messages")
    return {"role": message["role"], "content": content or ""}


def _stops(body: _Fields) -> tuple[str, ...]:
    stops = body.take("stop")
    stops = [stops] if isinstance(stops, str) else stops or []
    if (
        not isinstance(stops, list)
        or len(stops) > STOPS_MAX
        or not all(isinstance(stop, str) and len(stop) <= STOP_CHARACTERS_MAX for stop in stops)
    ):
        raise BadRequest(f"stop must be a string or up to {STOPS_MAX} strings", param="stop")
    return tuple(stop for stop in stops if stop)


def _generate_request(body: _Fields, prompt: Prompt, context_tokens: int, shape: _Shape) -> GenerateRequest:
    if body.whole("n", 1, 1, 128) != 1:
        raise BadRequest("this engine makes one choice per request: n must be 1", param="n")
    if (body.take("response_format") or {"type": "text"}) != {"type": "text"}:
        raise BadRequest("this model has no structured output", param="response_format")
    if body.take("tools") and body.take("tool_choice") != "none":
        raise BadRequest("this model calls no tools", param="tools")
    room = context_tokens - len(prompt.tokens)
    if room < 1:
        raise BadRequest(
            f"the prompt has {len(prompt.tokens)} tokens, the context of this model {context_tokens}",
            code="context_length_exceeded",
            param="messages",
        )
    name = "max_completion_tokens" if body.take("max_completion_tokens") is not None else "max_tokens"
    default = max(1, shape.tokens_max - prompt.generated) if shape.tokens_max else room
    bias = body.take("logit_bias") or {}
    try:
        logit_bias = {int(token): float(value) for token, value in bias.items()}
    except (AttributeError, TypeError, ValueError):
        raise BadRequest("logit_bias must map token ids to numbers", param="logit_bias") from None
    seed = body.take("seed")
    if seed is not None:
        seed = body.whole("seed", 0, -(2**63), 2**63 - 1)
    return GenerateRequest(
        prompt=prompt,
        max_tokens=min(room, body.whole(name, default, 1, 2**31)),
        min_tokens=body.whole("min_tokens", 0, 0, 2**31),
        ignore_eos=body.boolean("ignore_eos"),
        temperature=body.number("temperature", 1.0, 0.0, 2.0),
        top_p=body.number("top_p", 1.0, 0.0, 1.0),
        top_k=max(0, body.whole("top_k", 0, -1, 2**31)),
        seed=int.from_bytes(os.urandom(8), "big") >> 1 if seed is None else seed,
        presence_penalty=body.number("presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=body.number("frequency_penalty", 0.0, -2.0, 2.0),
        logit_bias=logit_bias,
        top_logprobs=shape.logprobs(body),
    )


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are a beginning of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True, slots=True)
class _Out:
    """Text that can be sent: one token, or a few that share a character.

    ``tokens`` counts all that are out with it, ``offset`` is where it begins, in characters.
    """

    text: str
    tokens: int
    logprobs: list[TokenLogprob]
    offset: int


class _Text:
    """From pieces of bytes to text that can be sent: whole tokens, none of which may begin a stop string.

    What was sent always ends where a token ends (except at a stop string, which is the end). So whoever goes
    on from the text that was sent finds the same tokens in it.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._held = ""
        self._sent = 0  # characters
        self._tokens = 0
        self._ends: list[tuple[int, int]] = []  # of held tokens: the character, and all tokens up to there
        self._logprobs: list[tuple[int, TokenLogprob]] = []
        self.stopped = False

    def feed(self, piece: Piece) -> list[_Out]:
        """The text that this piece sets free: its own, and what was held back before it."""
        read = self._sent + len(self._held)
        self._logprobs += [(read, logprob) for logprob in piece.logprobs]
        self._tokens += piece.tokens
        ended = piece.finish_reason is not None
        self._held += self._decoder.decode(piece.data, final=ended)
        if not self._decoder.getstate()[0]:
            self._ends.append((self._sent + len(self._held), self._tokens))
        found = min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=-1)
        self.stopped = found >= 0
        if self.stopped:
            limit = self._sent + found
            self._ends = [end for end in self._ends if end[0] < limit] + [(limit, self._tokens)]
        else:
            limit = self._sent + len(self._held) - (0 if ended else self._may_stop())
        return [self._send(*self._ends.pop(0)) for end in list(self._ends) if end[0] <= limit]

    def _may_stop(self) -> int:
        """How many of the held characters may be the beginning of a stop string."""
        return max((_overlap(self._held, stop) for stop in self._stops), default=0)

    def _send(self, end: int, tokens: int) -> _Out:
        text, self._held = self._held[: end - self._sent], self._held[end - self._sent :]
        offset, self._sent = self._sent, end
        free = [logprob for at, logprob in self._logprobs if at < end]
        self._logprobs = [entry for entry in self._logprobs if entry[0] >= end]
        return _Out(text, tokens, free, offset)


class _Shape(Protocol):
    """What differs between chat and completions on the wire."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    tokens_max: int  # when the client gives none; 0: what the context has room for

    def logprobs(self, body: _Fields) -> int | None: ...
    def opening(self) -> dict[str, Any] | None: ...
    def delta(self, text: str) -> dict[str, Any]: ...
    def message(self, text: str) -> dict[str, Any]: ...
    def render(self, outs: list[_Out]) -> dict[str, Any]: ...


class _ChatShape:
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    tokens_max = 0

    def logprobs(self, body: _Fields) -> int | None:
        top = body.whole("top_logprobs", 0, 0, TOP_LOGPROBS_MAX)
        return top if body.boolean("logprobs") else None

    def opening(self) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": ""}}

    def delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def message(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def render(self, outs: list[_Out]) -> dict[str, Any]:
        content = [
            {**_token(entry.token, entry.logprob), "top_logprobs": [_token(*top) for top in entry.top]}
            for out in outs
            for entry in out.logprobs
        ]
        return {"content": content, "refusal": None}


class _CompletionShape:
    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"
    tokens_max = COMPLETION_TOKENS

    def logprobs(self, body: _Fields) -> int | None:
        return None if body.take("logprobs") is None else body.whole("logprobs", 0, 0, TOP_LOGPROBS_MAX)

    def opening(self) -> dict[str, Any] | None:
        return None

    def delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def message(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def render(self, outs: list[_Out]) -> dict[str, Any]:
        tokens: list[str] = []
        offsets: list[int] = []
        values: list[float] = []
        tops: list[dict[str, float]] = []
        for out in outs:
            at = out.offset
            for entry in out.logprobs:
                tokens.append(entry.token.decode(errors="replace"))
                offsets.append(at)
                values.append(entry.logprob)
                tops.append({token.decode(errors="replace"): value for token, value in entry.top})
                at += len(tokens[-1])
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


class _Answer:
    """One answer, as a stream of chunks or as a whole."""

    def __init__(
        self, shape: _Shape, model: TextModel, asked: GenerateRequest, stops: tuple[str, ...]
    ) -> None:
        self._shape = shape
        self._model = model
        self._asked = asked
        self._text = _Text(stops)
        self._tokens = 0
        self._sent_tokens = 0  # without what is held back
        self._reason = ""
        self._head = {
            "id": shape.id_prefix + os.urandom(12).hex(),
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }

    async def stream(self, request: Request, include_usage: bool, running_usage: bool) -> None:
        """Chunks: the role, the text as it comes, the finish reason, the usage if wanted, [DONE]."""
        head = {**self._head, "object": self._shape.chunk_object}

        def chunk(choice: dict[str, Any] | None) -> dict[str, Any]:
            event = {**head, "choices": [] if choice is None else [choice]}
            if include_usage or running_usage:
                event["usage"] = self._usage() if running_usage or choice is None else None
            return event

        opening = self._shape.opening()
        async with aclosing(self._outs()) as outs:
            async for out in outs:
                # The role waits for the first token: until then an error can still be a proper status.
                if opening is not None:
                    await request.event(chunk(self._choice(opening, None, None)))
                    opening = None
                if out.text or out.logprobs:
                    logprobs = self._render([out])
                    await request.event(chunk(self._choice(self._shape.delta(out.text), logprobs, None)))
        await request.event(chunk(self._choice(self._shape.delta(""), None, self._reason)))
        if include_usage:
            await request.event(chunk(None))
        await request.event("[DONE]")
        await request.end()

    async def whole(self, request: Request) -> None:
        """One JSON object when all is done."""
        async with aclosing(self._outs()) as outs:
            parts = [out async for out in outs]
        message = self._shape.message("".join(part.text for part in parts))
        choice = self._choice(message, self._render(parts), self._reason)
        head = {**self._head, "object": self._shape.whole_object}
        await request.answer({**head, "choices": [choice], "usage": self._usage()})

    async def _outs(self) -> AsyncGenerator[_Out, None]:
        async with aclosing(self._model.generate(self._asked)) as pieces:
            async for piece in pieces:
                outs = self._text.feed(piece)
                self._reason = "stop" if self._text.stopped else piece.finish_reason or ""
                for out in outs:
                    self._sent_tokens = out.tokens
                    yield out
                self._tokens += piece.tokens
                if self._reason:
                    self._sent_tokens = self._tokens
                    return
        raise RuntimeError("the model ended without a finish reason")

    def _render(self, outs: list[_Out]) -> dict[str, Any] | None:
        return None if self._asked.top_logprobs is None else self._shape.render(outs)

    def _choice(
        self, content: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": logprobs, "finish_reason": reason}

    def _usage(self) -> dict[str, int]:
        prompt = len(self._asked.prompt.tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._sent_tokens,
            "total_tokens": prompt + self._sent_tokens,
        }
