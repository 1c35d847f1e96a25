"""The benchmark of the gateway is itself right: what it reports as good was good, what was not is noticed."""

from __future__ import annotations

import os
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench.gateway import measures
from bench.gateway.measures import Lengths, Wrong
from bench.gateway.systems import OURS, Running, running
from bench.gateway.tools import Cores, Rig, build, rig

SHORT = Lengths(closed_s=0.7, open_s=0.7, step_s=1.0, warmup_s=0.2)


@pytest.fixture(scope="module")
def bare_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Freshly compiled tools, and engines that run."""
    folder = tmp_path_factory.mktemp("tools")
    build(folder)
    allowed = sorted(os.sched_getaffinity(0))
    with rig(folder, Cores(allowed[0], allowed[-1])) as one:
        yield one


def test_every_answer_of_the_real_gateway_is_right_and_leaves_one_row(bare_rig: Rig, tmp_path: Path) -> None:
    """The figures are of answers and streams that were checked to the byte, all of them accounted for."""
    with running(OURS, bare_rig.ports, tmp_path, bare_rig.cores) as ours:
        assert measures.requests_per_s(bare_rig, ours, SHORT)["value"] > 0
        assert measures.latency(bare_rig, ours, SHORT, 50)["p50_ms"] > 0
        streams = measures.paced(bare_rig, ours, 400, 1.0, streams=20)
        assert streams["errors"] == 0
        assert streams["delivered"] > 0
        settled = measures.check_settled(ours)
    assert settled is not None
    assert settled["rows"] == settled["requests"] > 20
    served = bare_rig.stats()
    assert served["answers"] + served["streams"] == settled["requests"]


def test_requests_without_a_row_are_noticed(
    tmp_path: Path, bare_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that is fast because it forgets to charge has no figures."""
    monkeypatch.setattr("bench.gateway.systems.SETTLES_S", 1.0)
    with running(OURS, bare_rig.ports, tmp_path, bare_rig.cores) as ours:
        ours.asked += 1
        with pytest.raises(Wrong, match="2 requests, 1 usage rows"):
            measures.check_settled(ours)


class Meddler(socketserver.ThreadingTCPServer):
    """Stands before the backend and changes what it says."""

    daemon_threads = True

    def __init__(self, backend: int, change: Callable[[bytes], bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Relaying)
        self.backend, self.change = backend, change


class Relaying(socketserver.BaseRequestHandler):
    """One connection through a ``Meddler``."""

    server: Meddler

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.backend)) as engine:
            while True:
                for one in select.select([self.request, engine], [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    if one is engine:
                        self.request.sendall(self.server.change(data))
                    else:
                        engine.sendall(data)


@contextmanager
def meddled(one: Rig, change: Callable[[bytes], bytes]) -> Iterator[Running]:
    """The bare backend as a system whose bytes are changed on their way."""
    with Meddler(one.ports[0], change) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Running("meddled", server.server_address[1], "none", None, Path("/nonexistent"))
        server.shutdown()


def test_what_is_unchanged_passes(bare_rig: Rig) -> None:
    """The two tests below fail for what was changed, not for being relayed."""
    with meddled(bare_rig, bytes) as system:
        assert measures.requests_per_s(bare_rig, system, SHORT)["value"] > 0
        assert measures.paced(bare_rig, system, 400, 0.5, streams=5)["delivered"] > 0


def test_an_answer_with_a_changed_letter_is_noticed(bare_rig: Rig) -> None:
    """A relay that mangles bytes has no figures."""
    with (
        meddled(bare_rig, lambda data: data.replace(b"over it the quick", b"over it the quicc")) as system,
        pytest.raises(Wrong, match="not the answer"),
    ):
        measures.requests_per_s(bare_rig, system, SHORT)


def test_a_token_in_the_wrong_place_is_noticed(bare_rig: Rig) -> None:
    """A relay that loses, doubles or swaps tokens has no figures."""
    with (
        meddled(bare_rig, lambda data: data.replace(b".0003.", b".0004.")) as system,
        pytest.raises(Wrong, match="not the next token"),
    ):
        measures.paced(bare_rig, system, 400, 0.5, streams=5)
