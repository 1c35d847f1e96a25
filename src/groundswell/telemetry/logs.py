"""Logs: JSON for machines or lines for people, without anything that looks like a key or a password."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

import msgspec

request_id: ContextVar[str] = ContextVar("request_id", default="")

LINE_CHARACTERS_MAX = 8_192


def configure_logging(level: str = "info", format: str = "json", stream: TextIO | None = None) -> None:
    """Send all logs of this process to ``stream`` (stderr), one line each, without anything secret."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line for each request that we make says nothing that a metric does not.
    for noisy in ("httpx", "httpcore", "uvicorn.access", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, and what came in ``extra``.

    A record with ``rows``, each a time and fields, is a line for each of them."""

    def format(self, record: logging.LogRecord) -> str:
        if rows := getattr(record, "rows", None):
            return "\n".join([_json(_row(record, at_s, fields)) for at_s, fields in rows])
        fields = _fields(record)
        if record.exc_info:
            fields["exception"] = redacted(self.formatException(record.exc_info))
        return _json(fields)


class TextFormatter(logging.Formatter):
    """The same for people. Control characters are escaped, so that no message can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        if rows := getattr(record, "rows", None):
            return "\n".join([_text(_row(record, at_s, fields)) for at_s, fields in rows])
        line = _text(_fields(record))
        if record.exc_info:
            line += "\n" + redacted(self.formatException(record.exc_info))
        return line


def _json(fields: dict[str, Any]) -> str:
    line = msgspec.json.encode(fields, enc_hook=lambda value: redacted(str(value))).decode()
    return line if line.isascii() else json.dumps(json.loads(line))


def _text(fields: dict[str, Any]) -> str:
    head = f"{fields.pop('time')} {fields.pop('level'):7} {fields.pop('logger')}: {fields.pop('message')}"
    line = " ".join((head, *(f"{name}={value}" for name, value in fields.items())))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


_OWN_ID = re.compile(r"req_[0-9a-f]{24}\Z")
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}
_SECRETS = (
    # Our own keys: enough is left to find the same key again, too little to use it.
    (re.compile(r"gsw_[A-Za-z0-9]{8,}"), lambda match: f"gsw_[{_mark(match[0])}]"),
    (re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?)(?:\w+ )?[^\s\"',}]+"), r"\1[redacted]"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 [redacted]"),
    (re.compile(r"\b(sk|hf|ghp|nvapi)[-_][A-Za-z0-9_-]{12,}"), r"\1-[redacted]"),
    (re.compile(r"(://)[^/\s@:]*:[^/\s@]*@"), r"\1[redacted]@"),
    (re.compile(r"(?i)([?&](?:key|api_key|token|signature|sig)=)[^&\s\"']+"), r"\1[redacted]"),
)


def redacted(text: str) -> str:
    """The text without what looks like a key or password, cut at ``LINE_CHARACTERS_MAX``."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text if len(text) <= LINE_CHARACTERS_MAX else text[:LINE_CHARACTERS_MAX] + "..."


@lru_cache(1024)
def _redacted_before(text: str) -> str:
    """``redacted``, remembered: most fields have few values."""
    return redacted(text)


def _mark(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:4]


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "time": _iso(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": redacted(record.getMessage()),
    }
    if identifier := request_id.get():
        fields["request_id"] = identifier
    for name, value in vars(record).items():
        if name not in _STANDARD_FIELDS:
            fields[name] = _plain(value)
    return fields


def _row(record: logging.LogRecord, at_s: float, fields: Mapping[str, Any]) -> dict[str, Any]:
    head = {
        "time": _iso(at_s),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    for name, value in fields.items():
        head[name] = _plain(value)
    return head


def _iso(at_s: float) -> str:
    whole_s = int(at_s)
    return f"{_iso_second(whole_s)}.{int((at_s - whole_s) * 1000):03}+00:00"


@lru_cache(4)
def _iso_second(whole_s: int) -> str:
    return datetime.fromtimestamp(whole_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _plain(value: Any) -> Any:
    """A field as it may be written."""
    if type(value) is str:
        # Our own request ids are in most lines, each in one, and hold no secret.
        return value if _OWN_ID.match(value) else _redacted_before(value)
    return value if value is None or isinstance(value, bool | int | float) else redacted(str(value))
