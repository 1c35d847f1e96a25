"""Swarm options: everything that a seed decides before the run begins, drawn once and printable.

Each run draws *which* kinds of trouble it has, not only how much (swarm testing: Groce, Zhang, Eide, Chen and
Regehr, 2012), so that rare combinations get runs of their own and some runs have no trouble at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from groundswell.model.messages import Fault
from groundswell.model.money import Price
from groundswell.model.node import Capability, Continuation
from groundswell.model.work import Kind, Work, WorkClass
from groundswell.sim.faults import Trouble, draw_troubles

# A run ends when everything is over, at the latest this long after the faults have stopped. Works that break
# what they touch are a fault that does not stop with the others; runs that have some get the time of one more
# wait of lost work.
LIVENESS_S = 30.0
LIVENESS_ODD_S = 60.0
TEXT = frozenset({Kind.CHAT, Kind.COMPLETION})


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One engine: what it can do and how fast it is."""

    engine_id: str
    slots: int
    capabilities: tuple[Capability, ...]
    gap_s: float
    prefill_s: float
    boot_s: float


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One machine: its engines, how far away it is, and how much it is trusted."""

    node_id: str
    engines: tuple[EnginePlan, ...]
    delay_s: float
    jitter_s: float
    trust: int
    region: str
    joins_s: float


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """One work: when it arrives, what its whole answer is, when its client gives up or does not read."""

    work: Work
    arrives_s: float
    prompt: int
    length: int
    frame_tokens: int
    cancel_after_s: float | None
    pause_s: tuple[float, float] | None
    unresumable_from: int
    fault: Fault | None
    poison: bool


@dataclass(frozen=True, slots=True)
class Scenario:
    """One whole run."""

    seed: int
    nodes: tuple[NodePlan, ...]
    works: tuple[WorkPlan, ...]
    troubles: tuple[Trouble, ...]
    queue_works_max: int
    calm_s: float

    @property
    def odd(self) -> bool:
        """Whether some works break, or are refused by, whatever runs them."""
        return any(plan.poison or plan.fault for plan in self.works)

    @property
    def end_s(self) -> float:
        """When everything must have ended."""
        return self.calm_s + (LIVENESS_ODD_S if self.odd else LIVENESS_S)

    def summary(self) -> str:
        """One line for a person who has to reproduce it."""
        slots = sum(engine.slots for node in self.nodes for engine in node.engines)
        kinds = sorted({type(trouble).__name__ for trouble in self.troubles})
        return (
            f"seed {self.seed}: {len(self.nodes)} nodes, {slots} slots, {len(self.works)} works, "
            f"{len(self.troubles)} troubles ({', '.join(kinds) or 'none'}), calm at {self.calm_s:.1f} s"
        )


def draw_scenario(seed: int) -> Scenario:
    """All options of a run from its seed."""
    chance = Random(seed)  # noqa: S311  Chance here has to be repeatable.
    calm_s = chance.uniform(8.0, 30.0)
    models = ("owl",) if chance.random() < 0.5 else ("owl", "wren")
    nodes = tuple(_draw_node(chance, index, models, calm_s) for index in range(chance.randint(1, 5)))
    works = _draw_works(chance, models, nodes, calm_s)
    engines = {node.node_id: [engine.engine_id for engine in node.engines] for node in nodes}
    return Scenario(
        seed, nodes, works, draw_troubles(chance, engines, calm_s), chance.choice((2, 6, 1000)), calm_s
    )


def _draw_node(chance: Random, index: int, models: tuple[str, ...], calm_s: float) -> NodePlan:
    engines = tuple(
        _draw_engine(chance, f"e{number}", models) for number in range(1 if chance.random() < 0.7 else 2)
    )
    return NodePlan(
        node_id=f"n{index}",
        engines=engines,
        delay_s=chance.choice((0.0, 0.001, 0.01, 0.05)),
        jitter_s=chance.choice((0.0, 0.001, 0.02)),
        trust=chance.choice((1, 1, 1, 2)),
        region=chance.choice(("", "eu")),
        joins_s=0.0 if chance.random() < 0.8 else chance.uniform(0.0, calm_s / 2),
    )


def _draw_engine(chance: Random, engine_id: str, models: tuple[str, ...]) -> EnginePlan:
    return EnginePlan(
        engine_id=engine_id,
        slots=chance.choice((1, 1, 2, 3, 4)),
        capabilities=_draw_capabilities(chance, models),
        gap_s=chance.choice((0.02, 0.05, 0.1, 0.2)),
        prefill_s=chance.choice((0.01, 0.1, 0.4)),
        boot_s=chance.uniform(0.1, 1.5),
    )


def _draw_capabilities(chance: Random, models: tuple[str, ...]) -> tuple[Capability, ...]:
    if chance.random() < 0.12:
        return (Capability("ladder", "ffmpeg", frozenset({Kind.TRANSCODE})),)
    served = [model for model in models if chance.random() < 0.7] or [models[0]]
    return tuple(
        Capability(
            model=model,
            engine_model=model,
            kinds=TEXT if chance.random() < 0.8 else TEXT | {Kind.EMBEDDING},
            fingerprint=f"{model}-{chance.choice(('q4', 'q4', 'q4', 'q8'))}",
            continuation=chance.choice((Continuation.EXACT, Continuation.EXACT, *Continuation)),
            price=Price(output_nano=chance.choice((0, 50, 900))),
        )
        for model in served
    )


def _draw_works(
    chance: Random, models: tuple[str, ...], nodes: tuple[NodePlan, ...], calm_s: float
) -> tuple[WorkPlan, ...]:
    """Arrivals are spread evenly or in one burst; the rest differs from work to work."""
    count = chance.choice((3, 8, 12, 20, 30))
    burst_s = chance.uniform(0.5, calm_s - 1.0) if chance.random() < 0.25 else None
    cancelling = chance.choice((0.0, 0.1, 0.4))
    erring = chance.choice((0.0, 0.0, 0.0, 0.1))
    poison = chance.choice((0.0, 0.0, 0.0, 0.05))
    ladder = any(c.model == "ladder" for n in nodes for e in n.engines for c in e.capabilities)
    plans = []
    for number in range(count):
        if burst_s is None:
            arrives_s = chance.uniform(0.0, calm_s - 0.5)
        else:
            arrives_s = burst_s + chance.uniform(0.0, 0.3)
        model = "ladder" if ladder and chance.random() < 0.2 else chance.choice(models)
        plans.append(_draw_work(chance, f"w{number}", model, arrives_s, cancelling, erring, poison, calm_s))
    return tuple(sorted(plans, key=lambda plan: plan.arrives_s))


def _draw_work(
    chance: Random,
    work_id: str,
    model: str,
    arrives_s: float,
    cancelling: float,
    erring: float,
    poison: float,
    calm_s: float,
) -> WorkPlan:
    kind = (
        Kind.TRANSCODE
        if model == "ladder"
        else chance.choice((Kind.CHAT,) * 6 + (Kind.COMPLETION, Kind.EMBEDDING))
    )
    text = kind in TEXT
    length = chance.randint(1, chance.choice((8, 30, 30, 45))) if text else chance.randint(1, 4)
    work = Work(
        id=work_id,
        kind=kind,
        model="auk" if chance.random() < 0.01 else model,
        tenant=chance.choice(("ann", "bob", "cy")),
        deadline_s=arrives_s + chance.choice((0.5, 5.0, 12.0, 12.0)),
        work_class=chance.choice(tuple(WorkClass)),
        prompt_tokens=chance.randint(1, 400),
        output_tokens_max=length + chance.choice((0, 10)) if text else 0,
        prefix=(chance.randrange(4), chance.randrange(4)) if text and chance.random() < 0.5 else (),
        streaming=text and chance.random() < 0.8,
        resumable=text and chance.random() < 0.85,
        needs_exact_resume=chance.random() < 0.15,
        price_max=chance.choice((None, None, None, 100)),
        trust_min=1 if chance.random() < 0.9 else 2,
        region=None if chance.random() < 0.93 else "eu",
    )
    fault = chance.choice((Fault.REJECTED, Fault.BROKEN)) if chance.random() < erring else None
    return WorkPlan(
        work=work,
        arrives_s=arrives_s,
        prompt=chance.getrandbits(64),
        length=length,
        frame_tokens=chance.choice((1, 1, 2, 4)),
        cancel_after_s=chance.uniform(0.0, chance.choice((0.1, 0.5, 4.0)))
        if chance.random() < cancelling
        else None,
        pause_s=_draw_pause(chance, arrives_s, calm_s) if work.streaming and chance.random() < 0.1 else None,
        unresumable_from=chance.randint(1, length) if chance.random() < 0.1 else length + 1,
        fault=fault,
        poison=chance.random() < poison,
    )


def _draw_pause(chance: Random, arrives_s: float, calm_s: float) -> tuple[float, float]:
    """From when to when a client does not read; all of them read on when the calm begins."""
    start_s = arrives_s + chance.uniform(0.0, 1.5)
    return start_s, max(start_s, min(start_s + chance.choice((0.3, 5.0, 12.0)), calm_s))
