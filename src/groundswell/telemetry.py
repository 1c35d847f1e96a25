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
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

import msgspec
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from groundswell.core.contract import Finish
from groundswell.core.measure import tpot_s
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
        self._open = self._gauge("works_open", "Works that have not ended.")
        self._connections = self._gauge("connections", "Connections of clients that are open now.")
        self._tasks = self._gauge("tasks", "Tasks of the event loop.")
        self._nodes = self._gauge("nodes", "Nodes by health.", "health")
        self._engines = self._gauge("engines", "Engines by health.", "health")
        self._commit_s = self._histogram("store_commit_seconds", "One group commit.", _COMMIT_SECONDS)
        self._writes = self._counter("store_writes", "Operations committed.")
        self._jobs = self._counter("jobs", "Durable jobs by what became of them.", "kind", "state")
        ProcessCollector(registry=self.registry)  # Memory, CPU time and open files, as of any process.

    def http(self, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered. ``endpoint`` is the route's pattern, not the path that was asked for."""
        endpoint = self._bounded("endpoint", endpoint)
        self._requests.add((endpoint, str(status)))
        self._request_s.add((endpoint,), seconds)

    def finished(self, work: Work, finish: Finish, duration_s: float) -> None:
        """A work ended ``duration_s`` after it arrived."""
        # A name that no engine has is the client's invention; it must not become a label.
        model = self._bounded("model", work.model) if finish.engine_id else ""
        kind = work.kind
        self._works.add((kind, model, finish.state, finish.reason))
        self._attempts.add((kind,), finish.attempts)
        self._wait_s.add((kind,), finish.queue_wait_s)
        if finish.continued:
            self._continued.add((model,), finish.continued)
        usage = finish.usage
        if usage.input_tokens:
            self._tokens.add((model, "input"), usage.input_tokens)
        if usage.output_tokens:
            self._tokens.add((model, "output"), usage.output_tokens)
        if usage.pixels:
            self._pixels.add((model,), usage.pixels)
        if finish.ttft_s is not None and finish.state is WorkState.DONE:
            self._ttft_s.add((model,), finish.ttft_s)
            pace_s = tpot_s(finish.ttft_s, max(finish.ttft_s, duration_s), usage.output_tokens)
            if work.streaming and pace_s is not None:
                self._tpot_s.add((model,), pace_s)

    def fleet(self, queued: int, running: int, nodes: dict[str, int], engines: dict[str, int]) -> None:
        """The state now; ``nodes`` and ``engines`` are counts by health (``healthy``, ``suspect``, ...)."""
        self._queued.set(queued)
        self._running.set(running)
        for gauge, counts in ((self._nodes, nodes), (self._engines, engines)):
            gauge.clear()
            for health, count in counts.items():
                gauge.labels(health).set(count)

    def watch(
        self, open_works: Callable[[], int], connections: Callable[[], int], tasks: Callable[[], int]
    ) -> None:
        """Where to ask, at each look at the page, for what must come back to where it was after any load."""
        self._open.set_function(open_works)
        self._connections.set_function(connections)
        self._tasks.set_function(tasks)

    def commit(self, seconds: float, operations: int) -> None:
        """The store committed a group (``Store.on_commit``; any thread)."""
        self._commit_s.add((), seconds)
        self._writes.add((), operations)

    def job(self, kind: str, state: str) -> None:
        """A durable job was created or has ended: ``state`` is ``created``, ``done``, ``failed``, ..."""
        self._jobs.add((kind, state))

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

    def _counter(self, name: str, text: str, *labels: str) -> _Counts:
        counts = _Counts(f"groundswell_{name}", text, labels)
        self.registry.register(counts)
        return counts

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"groundswell_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> _Times:
        times = _Times(f"groundswell_{name}", text, labels, buckets)
        self.registry.register(times)
        return times


class _Counts(Collector):
    """A counter by labels for the hot path: a dictionary. prometheus-client's own takes a lock and four calls
    each time; here its forms are made only for whoever reads the page. One thread counts."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._family = (name, text, None, labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, labels: tuple[str, ...], amount: float = 1) -> None:
        self._values[labels] = self._values.get(labels, 0) + amount

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(*self._family)
        for labels, value in list(self._values.items()):
            family.add_metric(labels, value)
        yield family


class _Times(Collector):
    """A histogram in the same way: for each set of labels the counts by bucket and, last, the sum."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self._family = (name, text, None, None, labels)
        self._bounds = bounds
        self._values: dict[tuple[str, ...], list[float]] = {}
        if not labels:
            self._values[()] = self._zeros()

    def add(self, labels: tuple[str, ...], seconds: float) -> None:
        values = self._values.get(labels)
        if values is None:
            values = self._values[labels] = self._zeros()
        values[bisect_left(self._bounds, seconds)] += 1
        values[-1] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(*self._family)
        for labels, values in list(self._values.items()):
            buckets, seen = [], 0.0
            for bound, count in zip((*self._bounds, float("inf")), values, strict=False):
                seen += count
                buckets.append((floatToGoString(bound), seen))
            family.add_metric(labels, buckets, values[-1])
        yield family

    def _zeros(self) -> list[float]:
        return [0] * (len(self._bounds) + 2)


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
