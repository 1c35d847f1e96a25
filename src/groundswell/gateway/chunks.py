"""The chunks of a stream on their way from an engine to a client.

Nearly every chunk passes as the bytes it came in, with one replacement (the public model name for the
engine's); where only the text differs from an earlier chunk, all but the text is taken from that one. What is
odd about a block shows in a few byte patterns; only then is it parsed: the usage chunk (held back until the
end), ``[DONE]`` (ours is written at the end, and never after an error), fields that only engines know, and
everything that a second attempt sends, since that must carry the first one's id.

A pattern cannot match inside the model's own text: there each quote is escaped.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from groundswell.model.errors import UpstreamError
from groundswell.model.work import Kind
from groundswell.wire.sse import EventTemplate, payloads

DONE = b"data: [DONE]\n\n"

_PRIVATE_NAMES = (
    rb"timings|__verbose|prompt_token_ids|token_ids|kv_transfer_params|prompt_logprobs|stop_reason"
    rb"|matched_stop|hidden_states"
)
_ODD = re.compile(rb'\[DONE\]|"(?:usage|error|' + _PRIVATE_NAMES + rb')"\s*:\s*(?!null)')
_PRIVATE = re.compile(rb'"(?:' + _PRIVATE_NAMES + rb')"\s*:')
_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
_STRING = msgspec.json.Decoder(str)
_TOP = frozenset({"id", "object", "created", "model", "choices", "system_fingerprint", "service_tier"})
_CHOICE = frozenset({"index", "delta", "text", "logprobs", "finish_reason"})
_OBJECT = {Kind.CHAT: "chat.completion.chunk", Kind.COMPLETION: "text_completion"}

Event = dict[str, Any]


def events(data: bytes) -> list[Event]:
    """The JSON events in complete SSE blocks; comments and ``[DONE]`` left out.

    Raises ``UpstreamError`` for what is not JSON, or has no objects as choices.
    """
    found: list[Event] = []
    for text in payloads(data):
        if not text.strip() or text.strip() == b"[DONE]":
            continue
        try:
            event = msgspec.json.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise UpstreamError("The engine sent a chunk that is not JSON.") from None
        if isinstance(event, dict):
            if not _is_sound(event.get("choices")):
                raise UpstreamError("The engine sent a chunk whose choices are none.")
            found.append(event)
    return found


def _is_sound(choices: Any) -> bool:
    """Whether what reads an event finds objects where the interface has them."""
    return choices is None or (
        isinstance(choices, list)
        and all(isinstance(one, dict) and isinstance(one.get("delta"), dict | None) for one in choices)
    )


def encode(event: Event) -> bytes:
    """One event as it goes out."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def text_of(event: Event) -> str:
    """The text that an event adds to the first choice; works are resumable only when there is one choice."""
    choices = event.get("choices")
    if not choices:
        return ""
    delta = choices[0].get("delta")
    text = choices[0].get("text") if delta is None else delta.get("content")
    return text if isinstance(text, str) else ""


def unescaped(text: bytes | bytearray) -> str:
    """A piece of text as it is, from how it stands between the quotes of a JSON string."""
    try:
        return _STRING.decode(b'"%b"' % text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise UpstreamError("The engine sent a chunk that is not JSON.") from None


def has_private(data: bytes) -> bool:
    """Whether the bytes hold a field that only engines know."""
    return _PRIVATE.search(data) is not None


class Chunks:
    """Rewrites the chunks of one stream. ``usage`` is the engine's last word on it, as it said it."""

    def __init__(self, kind: Kind, model: str, id_made: str, created_s: int, include_usage: bool) -> None:
        self._kind = kind
        self._model = model
        self._id = id_made
        self._created_s = created_s
        self._include_usage = include_usage
        self._learned = False
        self._plain = False
        self._replace: tuple[bytes, bytes] | None = None
        self._spliced = False
        self._template: EventTemplate | None = None
        self._before = self._after = b""
        self.usage: dict[str, Any] | None = None

    def splice(self) -> None:
        """What comes from now on is another attempt's: it takes over the ids of the first."""
        self._spliced = True
        self._plain = False
        self._template = None
        self.usage = None

    def text(self, data: bytes) -> bytes | None:
        """The escaped text of an event that differs from an earlier one in nothing else, or None."""
        return self._template.text(data) if self._template is not None else None

    def around(self, text: bytes) -> bytes:
        """The event for the client with this text, which ``text`` has found."""
        return self._before + text + self._after

    def rewrite(self, data: bytes) -> bytes:
        """Complete events in, complete events out; empty when nothing of them is for the client."""
        if not self._learned:
            self._learn(data)
        if not self._plain or _ODD.search(data) is not None:
            return b"".join([encode(event) for event in self.parsed(data)])
        out = data if self._replace is None else data.replace(*self._replace)
        self._template, public = EventTemplate.of(data), EventTemplate.of(out)
        if public is not None:
            self._before, self._after = public.before, public.after
        return out

    def parsed(self, data: bytes) -> list[Event]:
        """As ``rewrite``, before encoding."""
        return [kept for event in events(data) if (kept := self._kept(event)) is not None]

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The one chunk without choices that carries the totals; it comes after the last finish reason."""
        return encode({**self._frame(), "choices": [], "usage": usage})

    def finish_chunk(self, reason: str) -> bytes:
        """A chunk that ends the first choice, where no engine has said so."""
        choice: Event = {"index": 0, "logprobs": None, "finish_reason": reason}
        if self._kind is Kind.CHAT:
            choice["delta"] = {}
        else:
            choice["text"] = ""
        frame = {**self._frame(), "choices": [choice]}
        if self._include_usage:
            frame["usage"] = None
        return encode(frame)

    def _learn(self, data: bytes) -> None:
        """See from the first event whether bytes can pass as they are, and what to replace in them."""
        found = events(data)
        if not found:
            return
        first, self._learned = found[0], True
        match = _MODEL.search(data)
        if not isinstance(first.get("id"), str) or not isinstance(first.get("created"), int) or match is None:
            return
        self._id, self._created_s = first["id"], first["created"]
        if first.get("object") != _OBJECT[self._kind] or not _TOP.issuperset(first.keys() - {"usage"}):
            return
        # The replacement is safe only for the top-level name, spelled as it will be in every chunk.
        try:
            named = msgspec.json.decode(b"{" + match.group() + b"}")
        except (msgspec.MsgspecError, UnicodeDecodeError):  # It stood in a comment, or in a later event.
            return
        if named != {"model": first.get("model")}:
            return
        self._plain = True
        if first["model"] != self._model:
            self._replace = (match.group(), b'"model":' + msgspec.json.encode(self._model))

    def _frame(self) -> Event:
        return {
            "id": self._id,
            "object": _OBJECT[self._kind],
            "created": self._created_s,
            "model": self._model,
        }

    def _kept(self, event: Event) -> Event | None:
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices:
            return None
        kept = [self._choice(choice) for choice in choices if isinstance(choice, dict)]
        kept = [choice for choice in kept if choice is not None]
        if not kept:
            return None
        known = {key: value for key, value in event.items() if key in _TOP}
        frame = {**known, **self._frame(), "choices": kept}
        if self._include_usage:
            frame["usage"] = None
        return frame

    def _choice(self, choice: Event) -> Event | None:
        choice = {key: value for key, value in choice.items() if key in _CHOICE}
        if not self._spliced:
            return choice
        delta = choice.get("delta")
        if isinstance(delta, dict):
            # The client has had its role; an attempt that continues must not begin a second message.
            delta.pop("role", None)
            if not any(delta.values()) and choice.get("finish_reason") is None:
                return None
        elif not choice.get("text") and choice.get("finish_reason") is None:
            return None
        return choice
