"""Metrics, traces and logs tell what happened and never what was said or by which key."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from groundswell.core.contract import Finish
from groundswell.model.money import Usage
from groundswell.model.work import Kind, Work, WorkState
from groundswell.telemetry.logs import configure_logging, request_id
from groundswell.telemetry.metrics import LABEL_VALUES_MAX, OTHER, Metrics
from groundswell.telemetry.traces import Tracer

WORK = Work("work_1", Kind.CHAT, "small", "acme", 60.0, streaming=True, output_tokens_max=64)
DONE = Finish(
    "work_1", WorkState.DONE, node_id="node-1", engine_id="builtin", usage=Usage(10, 5), attempts=2,
    continued=1, queue_wait_s=0.01, ttft_s=0.2,
)  # fmt: skip
FIRST_MODEL_OUTPUT = {"model": "model-0", "direction": "output"}


def test_a_finished_work_is_counted_everywhere_it_belongs() -> None:
    """The operator's figures come from this one place."""
    metrics = Metrics()
    metrics.finished(WORK, DONE, duration_s=1.0)
    value = metrics.registry.get_sample_value
    ended = {"kind": "chat", "model": "small", "state": "done", "reason": ""}
    assert value("groundswell_works_total", ended) == 1
    assert value("groundswell_tokens_total", {"model": "small", "direction": "output"}) == 5
    assert value("groundswell_attempts_total", {"kind": "chat"}) == 2
    assert value("groundswell_continuations_total", {"model": "small"}) == 1
    assert value("groundswell_ttft_seconds_sum", {"model": "small"}) == pytest.approx(0.2)
    assert value("groundswell_tpot_seconds_sum", {"model": "small"}) == pytest.approx(0.2)
    assert value("groundswell_queue_wait_seconds_sum", {"kind": "chat"}) == pytest.approx(0.01)


def test_the_page_shows_requests_fleet_store_and_jobs() -> None:
    """What a dashboard is built on."""
    metrics = Metrics()
    metrics.http("/v1/chat/completions", 200, 0.5)
    metrics.fleet(3, 4, {"healthy": 2, "dead": 1}, {"healthy": 5})
    metrics.fleet(3, 4, {"healthy": 3}, {"healthy": 5})
    metrics.watch(lambda: 7, lambda: 8, lambda: 9)
    metrics.commit(0.001, 64)
    metrics.job("transcode", "created")
    body, content_type = metrics.render()
    lines = body.decode().splitlines()
    assert content_type.startswith("text/plain")
    for line in (
        'groundswell_requests_total{code="200",endpoint="/v1/chat/completions"} 1.0',
        "groundswell_queue_length 3.0",
        "groundswell_works_open 7.0",
        "groundswell_connections 8.0",
        "groundswell_tasks 9.0",
        'groundswell_nodes{health="healthy"} 3.0',
        "groundswell_store_writes_total 64.0",
        'groundswell_jobs_total{kind="transcode",state="created"} 1.0',
    ):
        assert line in lines
    assert not any('health="dead"' in line for line in lines)


def test_clients_cannot_fill_the_memory_with_labels() -> None:
    """A model or path that somebody invents must not become a time series."""
    metrics = Metrics()
    for i in range(LABEL_VALUES_MAX):  # None of these may use up the bound for models that exist.
        invented = Work(f"w{i}", Kind.CHAT, f"invented-{i}", "acme", 60.0)
        metrics.finished(invented, Finish(f"w{i}", WorkState.REFUSED, "model_not_found"), 0.0)
    for i in range(LABEL_VALUES_MAX * 3):
        work = Work(f"w{i}", Kind.CHAT, f"model-{i}", "acme", 60.0)
        metrics.finished(work, DONE, 1.0)
        metrics.http(f"/path/{i}", 404, 0.0)
    assert metrics.registry.get_sample_value("groundswell_tokens_total", FIRST_MODEL_OUTPUT) == 5
    for label in ("model", "endpoint"):
        values = {
            sample.labels[label] for family in metrics.registry.collect() for sample in family.samples
            if label in sample.labels
        }  # fmt: skip
        assert len(values) <= LABEL_VALUES_MAX + 2
        assert OTHER in values


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A small OpenTelemetry collector: its URL, and the spans that it got."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    spans.extend((self.path, span) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_span_follows_the_genai_conventions(collector: tuple[str, list[Any]]) -> None:
    """Existing dashboards for AI traffic must understand it."""
    url, spans = collector
    tracer = Tracer(url)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    tracer.span_for(WORK, DONE, 1.5, f"00-{trace_id}-b7ad6b7169203331-01")
    tracer.span_for(WORK, Finish("work_1", WorkState.FAILED, "upstream_error"), 0.1, "nonsense")
    tracer.close()
    [(path, done), (_, failed)] = spans
    attributes = {item.key: item.value for item in done.attributes}
    assert path == "/v1/traces"
    assert (done.name, done.trace_id.hex()) == ("chat small", trace_id)
    assert done.end_time_unix_nano - done.start_time_unix_nano == 1_500_000_000
    assert attributes["gen_ai.operation.name"].string_value == "chat"
    assert attributes["gen_ai.request.model"].string_value == "small"
    assert attributes["gen_ai.usage.input_tokens"].int_value == 10
    assert attributes["gen_ai.usage.output_tokens"].int_value == 5
    assert failed.status.message == "upstream_error"
    assert {item.key: item.value for item in failed.attributes}["error.type"].string_value == "upstream_error"


def test_opentelemetry_is_not_needed_until_it_is_asked_for() -> None:
    """It is an extra; without it the word is what to install, not a stack of imports."""
    code = (
        "import sys; sys.modules['opentelemetry.exporter'] = None\n"
        "from groundswell.telemetry.traces import Tracer\n"
        "assert not any(m.startswith('opentelemetry.sdk') for m in sys.modules)\n"
        "try:\n    Tracer('http://x')\n"
        "except Exception as error:\n    print(error.code, error.message)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith("missing_extra ")
    assert 'pip install "groundswell[otel]"' in output


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_is_json_with_its_request_id(log: io.StringIO) -> None:
    """One grep finds all that happened to one request."""
    token = request_id.set("req_1")
    logging.getLogger("groundswell.x").info("node %s left", "a\r\nb\x1b[31m", extra={"node_id": "a", "n": 3})
    logging.getLogger("groundswell.x").debug("not this")
    request_id.reset(token)
    [line] = log.getvalue().splitlines()
    fields = json.loads(line)
    assert (fields["request_id"], fields["node_id"], fields["n"]) == ("req_1", "a", 3)
    assert (fields["level"], fields["message"]) == ("info", "node a\r\nb\x1b[31m left")
    assert "\x1b" not in line


@pytest.mark.parametrize(
    "text",
    [
        "key gsw_CANARYabcdefgh1234567890 used",
        "{'authorization': 'Bearer CANARYabcdefgh'}",
        "Authorization: Basic CANARYabcdefgh==",
        "http://user:CANARY@box:11434/v1 failed",
        "GET /x?api_key=CANARY&y=1",
        "engine key sk-CANARYabcdefghijkl",
    ],
)
@pytest.mark.parametrize("format", ["json", "text"])
def test_no_secret_reaches_the_log(log: io.StringIO, text: str, format: str) -> None:
    """In the message, in a field, or in an exception: logs are read by more people than keys are for."""
    configure_logging("info", format, log)
    logger = logging.getLogger("groundswell.x")
    logger.warning(text)
    logger.warning("%s", text, extra={"detail": text, "headers": {"h": text}})
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("failed")
    assert "failed" in log.getvalue()
    assert "CANARY" not in log.getvalue()


def test_a_line_for_people_cannot_be_forged(log: io.StringIO) -> None:
    """A client's text must not look like a line of ours, nor colour the terminal."""
    configure_logging("info", "text", log)
    logging.getLogger("x").info("a\n2026-01-01 info groundswell: all is well\x1b[2J")
    assert len(log.getvalue().splitlines()) == 1
    assert "\x1b" not in log.getvalue()


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_group_of_rows_is_a_line_for_each_as_safe_as_any_other(log: io.StringIO, format: str) -> None:
    """The access log is written in groups; a secret sent as a request id must not show there either."""
    configure_logging("info", format, log)
    rows = [
        (1.5, {"request_id": "req_1", "n": 1}),
        (2.5, {"request_id": "sk-CANARYabcdefghijkl", "t": "ä\n"}),
    ]
    logging.getLogger("x").info("request", extra={"rows": rows})
    first, second = log.getvalue().splitlines()
    assert "CANARY" not in second
    if format == "json":
        assert json.loads(first) == {
            "time": "1970-01-01T00:00:01.500+00:00", "level": "info", "logger": "x", "message": "request",
            "request_id": "req_1", "n": 1,
        }  # fmt: skip
        assert json.loads(second)["t"] == "ä\n"
        assert second.isascii()
