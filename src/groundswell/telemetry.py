"""What can be seen from outside: Prometheus metrics, OpenTelemetry traces, logs in JSON.

No prompt, answer or key comes near any of them. Metrics keep a bounded number of labels: a model or endpoint
beyond the bound counts as ``other``. Traces follow the GenAI semantic conventions
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/) and are off unless an endpoint is set.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from groundswell.core.contract import Finish
from groundswell.model.errors import BadRequest
from groundswell.model.work import Kind, Work, WorkState

request_id: ContextVar[str] = ContextVar("request_id", default="")

LABEL_VALUES_MAX = 100
OTHER = "other"
LINE_CHARACTERS_MAX = 8_192

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
_COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


class Metrics:
    """The metrics of one process, in a registry of their own. Every method is quick and never raises."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seen: dict[str, set[str]] = {}
        self._requests = self._counter("requests", "HTTP requests answered.", "endpoint", "code")
        self._request_s = self._histogram(
            "request_seconds", "Until the whole answer was sent.", _SECONDS, "endpoint"
        )
        self._works = self._counter("works", "Works that ended.", "kind", "model", "state", "reason")
        self._tokens = self._counter("tokens", "Tokens used.", "model", "direction")
        self._pixels = self._counter("pixels", "Output pixels made.", "model")
        self._attempts = self._counter("attempts", "Attempts on nodes.", "kind")
        self._continued = self._counter(
            "continuations", "Streams that went on elsewhere in mid-stream.", "model"
        )
        self._ttft_s = self._histogram("ttft_seconds", "Until the first content.", _SECONDS, "model")
        self._tpot_s = self._histogram(
            "tpot_seconds", "For each token after the first.", _TOKEN_SECONDS, "model"
        )
        self._wait_s = self._histogram("queue_wait_seconds", "Waiting for a node.", _SECONDS, "kind")
        self._queued = self._gauge("queue_length", "Works that wait now.")
        self._running = self._gauge("works_running", "Works that run now.")
        self._nodes = self._gauge("nodes", "Nodes by health.", "health")
        self._engines = self._gauge("engines", "Engines by health.", "health")
        self._commit_s = self._histogram("store_commit_seconds", "One group commit.", _COMMIT_SECONDS)
        self._writes = self._counter("store_writes", "Operations committed.")
        self._jobs = self._counter("jobs", "Durable jobs by what became of them.", "kind", "state")

    def http(self, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered. ``endpoint`` is the route's pattern, not the path that was asked for."""
        endpoint = self._bounded("endpoint", endpoint)
        self._requests.labels(endpoint, str(status)).inc()
        self._request_s.labels(endpoint).observe(seconds)

    def finished(self, work: Work, finish: Finish, duration_s: float) -> None:
        """A work ended ``duration_s`` after it arrived."""
        # A name that no engine has is the client's invention; it must not become a label.
        model = self._bounded("model", work.model) if finish.engine_id else ""
        self._works.labels(work.kind.value, model, finish.state.value, finish.reason).inc()
        self._attempts.labels(work.kind.value).inc(finish.attempts)
        self._wait_s.labels(work.kind.value).observe(finish.queue_wait_s)
        if finish.continued:
            self._continued.labels(model).inc(finish.continued)
        usage = finish.usage
        for direction, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            if tokens:
                self._tokens.labels(model, direction).inc(tokens)
        if usage.pixels:
            self._pixels.labels(model).inc(usage.pixels)
        if finish.ttft_s is not None and finish.state is WorkState.DONE:
            self._ttft_s.labels(model).observe(finish.ttft_s)
            if work.streaming and usage.output_tokens > 1:
                rest_s = max(0.0, duration_s - finish.ttft_s)
                self._tpot_s.labels(model).observe(rest_s / (usage.output_tokens - 1))

    def fleet(self, queued: int, running: int, nodes: dict[str, int], engines: dict[str, int]) -> None:
        """The state now; ``nodes`` and ``engines`` are counts by health (``healthy``, ``suspect``, ...)."""
        self._queued.set(queued)
        self._running.set(running)
        for gauge, counts in ((self._nodes, nodes), (self._engines, engines)):
            gauge.clear()
            for health, count in counts.items():
                gauge.labels(health).set(count)

    def commit(self, seconds: float, operations: int) -> None:
        """The store committed a group (``Store.on_commit``; any thread)."""
        self._commit_s.observe(seconds)
        self._writes.inc(operations)

    def job(self, kind: str, state: str) -> None:
        """A durable job was created or has ended: ``state`` is ``created``, ``done``, ``failed``, ..."""
        self._jobs.labels(kind, state).inc()

    def render(self) -> tuple[bytes, str]:
        """The body of ``/metrics`` and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _bounded(self, label: str, value: str) -> str:
        seen = self._seen.setdefault(label, set())
        if value in seen:
            return value
        if len(seen) >= LABEL_VALUES_MAX:
            return OTHER
        seen.add(value)
        return value

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"groundswell_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"groundswell_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"groundswell_{name}", text, labels, registry=self.registry, buckets=buckets)


_OPERATIONS = {Kind.CHAT: "chat", Kind.COMPLETION: "text_completion", Kind.EMBEDDING: "embeddings"}


class Tracer:
    """Writes one span for each work that ended, after the fact, so that the hot path pays nothing for it.

    Made only when an endpoint is configured. Spans are sent by a thread, in groups; of what waits, 2,048 are
    kept and the rest is dropped. ``close`` sends what waits.
    """

    def __init__(self, endpoint: str, share: float = 1.0) -> None:
        """``endpoint`` is the collector's base URL, such as ``http://127.0.0.1:4318``."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ImportError as error:
            raise BadRequest(
                'Traces need an extra that is not installed: pip install "groundswell[otel]".',
                code="missing_extra",
                param="telemetry.otlp_endpoint",
            ) from error
        exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces")
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({"service.name": "groundswell"}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("groundswell")

    def span_for(self, work: Work, finish: Finish, duration_s: float, traceparent: str = "") -> None:
        """Record a work that ended just now. ``traceparent`` is the client's W3C header, if it sent one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        end_ns = time.time_ns()
        operation = _OPERATIONS.get(work.kind, work.kind.value)
        span = self._tracer.start_span(
            f"{operation} {work.model}",
            context=TraceContextTextMapPropagator().extract({"traceparent": traceparent}),
            kind=SpanKind.SERVER,
            attributes=_attributes(work, finish, operation),
            start_time=end_ns - int(duration_s * 1e9),
        )
        if finish.state in (WorkState.FAILED, WorkState.REFUSED):
            span.set_status(Status(StatusCode.ERROR, finish.reason))
        span.end(end_ns)

    def close(self) -> None:
        """Send what waits and end the thread."""
        self._provider.shutdown()


def _attributes(work: Work, finish: Finish, operation: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "groundswell",
        "gen_ai.request.model": work.model,
        "gen_ai.usage.input_tokens": finish.usage.input_tokens,
        "gen_ai.usage.output_tokens": finish.usage.output_tokens,
        "groundswell.work.id": work.id,
        "groundswell.work.state": finish.state.value,
        "groundswell.node.id": finish.node_id,
        "groundswell.engine.id": finish.engine_id,
        "groundswell.attempts": finish.attempts,
        "groundswell.continuations": finish.continued,
        "groundswell.queue_wait_s": finish.queue_wait_s,
    }
    if work.output_tokens_max:
        attributes["gen_ai.request.max_tokens"] = work.output_tokens_max
    if finish.ttft_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = finish.ttft_s
    if finish.reason:
        attributes["error.type"] = finish.reason
    return attributes


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
    """One JSON object a line: time, level, logger, message, request_id, and what came in ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        if record.exc_info:
            fields["exception"] = redacted(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=True, default=lambda value: redacted(str(value)))


class TextFormatter(logging.Formatter):
    """The same for people. Control characters are escaped, so that no message can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        head = f"{fields.pop('time')} {fields.pop('level'):7} {fields.pop('logger')}: {fields.pop('message')}"
        line = " ".join((head, *(f"{name}={value}" for name, value in fields.items())))
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        if record.exc_info:
            line += "\n" + redacted(self.formatException(record.exc_info))
        return line


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


def _mark(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:4]


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": redacted(record.getMessage()),
    }
    if identifier := request_id.get():
        fields["request_id"] = identifier
    for name, value in vars(record).items():
        if name not in _STANDARD_FIELDS:
            plain = value is None or isinstance(value, bool | int | float)
            fields[name] = value if plain else redacted(str(value))
    return fields
