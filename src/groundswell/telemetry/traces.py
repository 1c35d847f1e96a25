"""OpenTelemetry traces, off unless an endpoint is set.

They follow the GenAI semantic conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/).
"""

from __future__ import annotations

import time
from typing import Any

from groundswell.core.contract import Finish
from groundswell.model.errors import BadRequest
from groundswell.model.work import Kind, Work, WorkState

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
