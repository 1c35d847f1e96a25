"""Prometheus metrics. Labels are bounded: a model or endpoint beyond the bound counts as ``other``."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from groundswell.core.contract import Finish
from groundswell.core.measure import tpot_s
from groundswell.model.work import Work, WorkState

LABEL_VALUES_MAX = 100
OTHER = "other"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
_COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


class Metrics:
    """The metrics of one process, in a registry of their own. Every method is quick and never raises."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seen: defaultdict[str, set[str]] = defaultdict(set)
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
        seen = self._seen[label]
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
