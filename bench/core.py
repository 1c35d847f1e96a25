"""What does a decision cost, and does it grow with the fleet? ``python -m bench.core`` (``make bench-core``).

Fleets of different sizes are built in one process, each with its own ``Dispatcher``, and loaded to 60 % of
their slots with streams of three models. They take turns, a thousand decisions each, so that whatever else
the machine does meets all of them; ratios between them mean more than microseconds. In each turn, as in a
busy gateway, works arrive with prompts that share prefixes, are accepted, say four frames, and others end;
heartbeats come in between with the attempts that the node holds. Only the named call is timed:

    decision    ``Arrived`` until the ``Send`` of its offer is handed back
    routing     ``Router.rank`` alone, for the same works
    frame       ``Output`` until its ``Deliver`` is handed back
    end         ``Ended`` until its ``Finish`` is handed back
    heartbeat   ``Reported`` of a node with its attempts

Memory is what Python allocated, by tracemalloc, for a thousand nodes and for the streams that are open on
them: the brain's part, without sockets and bytes.
"""

from __future__ import annotations

import argparse
import gc
import platform
import random
import sys
import time
import tracemalloc
from collections.abc import Sequence

from groundswell.core.contract import Arrived, Finish, Reported, Send
from groundswell.core.dispatch import Dispatcher
from groundswell.core.measure import percentile
from groundswell.core.routing import Ask, need_of
from groundswell.model.messages import Accepted, Ended, Offer, Output
from groundswell.model.money import Usage
from groundswell.model.node import Capability, Continuation, EngineReport, NodeReport
from groundswell.model.work import Kind, Work

SLOTS = 8
LOAD = 0.6
MODELS = ("small", "medium", "large")
FRAMES = 4
PREFIXES = 2_000  # System prompts and documents that works share; a few of them are most of the traffic.
BLOCKS = 6
PARTS = ("decision", "routing", "frame", "end", "heartbeat")
DECISION_P50_MAX_US = 50.0
GROWTH_MAX = 1.5
TURN = 1_000
MEMORY_NODES = 1_000


class Fleet:
    """One dispatcher with its nodes and the streams that run on them, under a clock that the turns move."""

    def __init__(self, nodes: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now_s = 0.0
        self.desk = Dispatcher()
        self.nodes = nodes
        self.sequence = 0
        self.works = 0
        self.running: list[Offer] = []
        self.held: dict[str, dict[tuple[str, int], None]] = {f"node-{at}": {} for at in range(nodes)}
        self.spent_ns: dict[str, list[int]] = {part: [] for part in PARTS}

    def join(self) -> None:
        """Every node says hello."""
        for node_id in self.held:
            self.desk.step(self.now_s, Reported(self.report(node_id)))

    def report(self, node_id: str) -> NodeReport:
        """What the node would say now. It has two of the three models, as a machine with two servers has."""
        self.sequence += 1
        at = int(node_id[5:])
        models = [MODELS[at % 3], MODELS[(at + 1) % 3]]
        capabilities = tuple(
            Capability(
                model, model, frozenset({Kind.CHAT, Kind.COMPLETION}), fingerprint=model,
                continuation=Continuation.TEXT, profile="h100-8b",
            )
            for model in models
        )  # fmt: skip
        attempts = tuple(self.held[node_id])
        engine = EngineReport("engine", 1, SLOTS, len(attempts), healthy=True, capabilities=capabilities)
        return NodeReport(node_id, 1, self.sequence, (engine,), attempts)

    def work(self) -> Work:
        """A streamed chat. The first blocks of its prompt are often somebody else's first blocks, too."""
        self.works += 1
        shared = int(PREFIXES * self.chance.random() ** 3)
        prefix = (*tuple(shared * BLOCKS + at for at in range(BLOCKS - 1)), -self.works)
        return Work(
            f"work-{self.works}", Kind.CHAT, self.chance.choice(MODELS), "tenant", self.now_s + 60.0,
            prompt_tokens=self.chance.randrange(50, 2_000), output_tokens_max=512, prefix=prefix,
            streaming=True, resumable=True,
        )  # fmt: skip

    def begin(self, keep: bool = True) -> None:
        """A work arrives, is offered, accepted, and says its first frames."""
        work = self.work()
        arrived = Arrived(work, self.chance.getrandbits(64))
        start_ns = time.perf_counter_ns()
        effects = self.desk.step(self.now_s, arrived)
        spent_ns = time.perf_counter_ns() - start_ns
        (sent,) = effects
        assert isinstance(sent, Send)
        assert isinstance(sent.message, Offer)
        offer = sent.message
        self.running.append(offer)
        self.held[offer.node_id][offer.work_id, offer.attempt] = None
        self.desk.step(self.now_s, Accepted(offer.work_id, offer.attempt))
        for index in range(FRAMES):
            self.now_s += 1e-5
            frame = Output(offer.work_id, offer.attempt, index, 1)
            start_ns = time.perf_counter_ns()
            self.desk.step(self.now_s, frame)
            if index and keep:
                self.spent_ns["frame"].append(time.perf_counter_ns() - start_ns)
        if keep:
            self.spent_ns["decision"].append(spent_ns)
            self._route(work)

    def _route(self, work: Work) -> None:
        draw = self.chance.getrandbits(64)
        ask = Ask(need_of(work), work.prompt_tokens, 256, 0, work.prefix, draw)
        start_ns = time.perf_counter_ns()
        self.desk.router.rank(ask)
        self.spent_ns["routing"].append(time.perf_counter_ns() - start_ns)

    def end(self) -> None:
        """One of those that run, whichever, is done."""
        at = self.chance.randrange(len(self.running))
        self.running[at], self.running[-1] = self.running[-1], self.running[at]
        offer = self.running.pop()
        del self.held[offer.node_id][offer.work_id, offer.attempt]
        ended = Ended(offer.work_id, offer.attempt, FRAMES, Usage(100, FRAMES))
        start_ns = time.perf_counter_ns()
        effects = self.desk.step(self.now_s, ended)
        self.spent_ns["end"].append(time.perf_counter_ns() - start_ns)
        assert isinstance(effects[0], Finish)

    def beat(self) -> None:
        """A heartbeat of some node. Each that comes is of another moment, so that it proves what it lists."""
        report = self.report(f"node-{self.chance.randrange(self.nodes)}")
        start_ns = time.perf_counter_ns()
        effects = self.desk.step(self.now_s, Reported(report))
        self.spent_ns["heartbeat"].append(time.perf_counter_ns() - start_ns)
        assert effects == []

    def fill(self) -> None:
        """To the load at which everything is measured."""
        for _ in range(int(self.nodes * SLOTS * LOAD)):
            self.begin(keep=False)

    def turn(self) -> None:
        """A thousand works come and as many go."""
        for number in range(TURN):
            self.end()
            self.begin()
            if not number % 4:
                self.beat()


def memory() -> tuple[float, float]:
    """Bytes of one node, and of one open stream on it."""
    fleet = Fleet(MEMORY_NODES, 1)
    tracemalloc.start()
    empty = tracemalloc.get_traced_memory()[0]
    fleet.join()
    gc.collect()
    joined = tracemalloc.get_traced_memory()[0]
    fleet.fill()
    gc.collect()
    filled = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (joined - empty) / MEMORY_NODES, (filled - joined) / len(fleet.running)


def measure(sizes: Sequence[int], turns: int, seed: int) -> list[Fleet]:
    """Build the fleets, then let them take turns."""
    fleets = [Fleet(nodes, seed) for nodes in sizes]
    for fleet in fleets:
        fleet.join()
        fleet.fill()
    gc.collect()
    gc.freeze()  # As a gateway does once it has started.
    for number in range(turns):
        for fleet in fleets[number % len(fleets) :] + fleets[: number % len(fleets)]:
            fleet.turn()
    return fleets


def percentile_us(spent_ns: list[int], percent: float) -> float:
    """In microseconds."""
    return percentile(spent_ns, percent) / 1e3


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Exit status 0 when both bounds hold."""
    parser = argparse.ArgumentParser(prog="bench.core", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 1_000, 10_000])
    parser.add_argument("--turns", type=int, default=20, help=f"of {TURN} decisions for each fleet")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    print(
        f"Python {platform.python_version()}, {platform.machine()}; {SLOTS} slots a node, {LOAD:.0%} of them"
    )
    print(f"taken; {len(MODELS)} models, 2 a node; {BLOCKS} prefix blocks; {options.turns} turns of {TURN}")
    fleets = measure(options.nodes, options.turns, options.seed)
    print(
        f"{'p50 / p99, µs':<14}"
        + "".join(f"{fleet.nodes:>16,} nodes" for fleet in fleets)
        + "   growth of p50"
    )
    growth = {}
    for part in PARTS:
        p50s = [percentile_us(fleet.spent_ns[part], 50) for fleet in fleets]
        p99s = [percentile_us(fleet.spent_ns[part], 99) for fleet in fleets]
        growth[part] = p50s[-1] / p50s[0]
        cells = "".join(f"{p50:>14.1f} / {p99:<5.0f}" for p50, p99 in zip(p50s, p99s, strict=True))
        print(f"{part:<14}{cells}   {growth[part]:.2f}x")
    worst_us = max(percentile_us(fleet.spent_ns["decision"], 50) for fleet in fleets)
    node_bytes, stream_bytes = memory()
    print(
        f"memory of the brain: {node_bytes / 1e3:.1f} kB a node, {stream_bytes / 1e3:.1f} kB an open stream"
    )
    holds = worst_us <= DECISION_P50_MAX_US and growth["decision"] <= GROWTH_MAX
    print(
        f"decision p50 at most {worst_us:.1f} µs (bound {DECISION_P50_MAX_US:.0f}), growth "
        f"{growth['decision']:.2f}x (bound {GROWTH_MAX}): {'both hold' if holds else 'NOT REACHED'}"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
