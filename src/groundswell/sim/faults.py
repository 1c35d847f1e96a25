"""What goes wrong in a run, as values: who, when, for how long. All of it is over when the calm begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from groundswell.model.node import NodeReport
from groundswell.sim.links import Cut


@dataclass(frozen=True, slots=True)
class Crash:
    """A machine dies with all its engines and starts again as a new generation after ``down_s``.

    The link says goodbye for it after ``noticed_s`` (None: it never does, and only silence tells), possibly
    when the next generation is already up. ``ghost_s`` > 0: the old life did not die but is cut off from what
    is sent to it, and goes on talking for that long.
    """

    node_id: str
    at_s: float
    down_s: float
    noticed_s: float | None
    ghost_s: float


@dataclass(frozen=True, slots=True)
class Freeze:
    """A machine stops (SIGSTOP) with all its engines, and goes on later as if nothing had happened."""

    node_id: str
    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class EngineCrash:
    """An engine's process ends; its node notices at once."""

    node_id: str
    engine_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class EngineHang:
    """An engine stops emitting while its health says fine. ``found_s``: when its node's probe finds out."""

    node_id: str
    engine_id: str
    at_s: float
    for_s: float
    found_s: float | None


@dataclass(frozen=True, slots=True)
class EngineErrs:
    """An engine answers everything with an error of its own."""

    node_id: str
    engine_id: str
    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class LinkCut:
    """One or both directions of a machine's link carry nothing for a while."""

    node_id: str
    at_s: float
    for_s: float
    up: Cut
    down: Cut


@dataclass(frozen=True, slots=True)
class Storm:
    """A link, both ways, drops, duplicates and reorders; what is late is late by up to ``spread_s``."""

    node_id: str
    at_s: float
    for_s: float
    drop: float
    duplicate: float
    reorder: float
    spread_s: float


@dataclass(frozen=True, slots=True)
class Lie:
    """A machine reports a load that it does not have, more slots than it has, and more usage than it made."""

    node_id: str
    at_s: float
    for_s: float
    running: int
    slots_times: int
    usage_times: int

    def told(self, report: NodeReport) -> NodeReport:
        """The report as the liar sends it."""
        engines = tuple(
            replace(engine, running=self.running, slots=engine.slots * self.slots_times)
            for engine in report.engines
        )
        return replace(report, engines=engines)


@dataclass(frozen=True, slots=True)
class Drain:
    """The owner wants the machine back: it finishes what it has, leaves, and comes back after ``down_s``."""

    node_id: str
    at_s: float
    down_s: float


Trouble = Crash | Freeze | EngineCrash | EngineHang | EngineErrs | LinkCut | Storm | Lie | Drain
Engines = Mapping[str, Sequence[str]]


def draw_troubles(chance: Random, engines: Engines, calm_s: float) -> tuple[Trouble, ...]:
    """The troubles of a run, in order of time: a few kinds out of all, each with a rate of its own.

    ``engines`` lists the engine ids of each node id. One run in eight has no trouble at all.
    """
    if chance.random() < 0.125:
        return ()
    troubles: list[Trouble] = []
    for draw in _DRAWS:
        if chance.random() < 0.35:
            for _ in range(chance.randint(1, 3)):
                troubles.append(draw(chance, engines, chance.uniform(0.5, calm_s - 0.5)))
    if chance.random() < 0.1:
        troubles.extend(_swizzle(chance, engines, calm_s))
    return tuple(sorted(troubles, key=lambda trouble: trouble.at_s))


def _swizzle(chance: Random, engines: Engines, calm_s: float) -> list[Trouble]:
    """Cut a random part of the links one by one and heal them in another order (FoundationDB's swizzle)."""
    chosen = chance.sample(sorted(engines), chance.randint(1, len(engines)))
    start_s = chance.uniform(0.5, calm_s / 2)
    heals_s = [start_s + 3.0 + 0.7 * place for place in range(len(chosen))]
    chance.shuffle(heals_s)
    return [
        LinkCut(node_id, start_s + 0.5 * place, heals_s[place] - start_s - 0.5 * place, Cut.HOLDS, Cut.HOLDS)
        for place, node_id in enumerate(chosen)
    ]


def _node(chance: Random, engines: Engines) -> str:
    return chance.choice(sorted(engines))


def _crash(chance: Random, engines: Engines, at_s: float) -> Trouble:
    return Crash(
        _node(chance, engines),
        at_s,
        down_s=chance.choice((0.1, 1.0, 5.0, 15.0)),
        noticed_s=chance.choice((None, 0.0, 0.2, 3.0, 3.0)),
        ghost_s=chance.choice((0.0, 0.0, 4.0, 15.0)),
    )


def _freeze(chance: Random, engines: Engines, at_s: float) -> Trouble:
    return Freeze(_node(chance, engines), at_s, chance.choice((0.5, 3.0, 8.0, 14.0)))


def _engine_crash(chance: Random, engines: Engines, at_s: float) -> Trouble:
    node_id = _node(chance, engines)
    return EngineCrash(node_id, chance.choice(engines[node_id]), at_s)


def _engine_hang(chance: Random, engines: Engines, at_s: float) -> Trouble:
    node_id = _node(chance, engines)
    for_s = chance.choice((1.0, 6.0, 20.0))
    found_s = chance.choice((None, 1.0, 8.0))
    return EngineHang(node_id, chance.choice(engines[node_id]), at_s, for_s, found_s)


def _engine_errs(chance: Random, engines: Engines, at_s: float) -> Trouble:
    node_id = _node(chance, engines)
    return EngineErrs(node_id, chance.choice(engines[node_id]), at_s, chance.uniform(0.5, 5.0))


def _link_cut(chance: Random, engines: Engines, at_s: float) -> Trouble:
    closed = chance.choice((Cut.DROPS, Cut.HOLDS))
    up, down = chance.choice(((closed, closed), (closed, Cut.OPEN), (Cut.OPEN, closed)))
    return LinkCut(_node(chance, engines), at_s, chance.choice((0.5, 3.0, 8.0, 14.0)), up, down)


def _storm(chance: Random, engines: Engines, at_s: float) -> Trouble:
    return Storm(
        _node(chance, engines),
        at_s,
        chance.uniform(1.0, 10.0),
        drop=chance.choice((0.0, 0.0, 0.02, 0.2)),
        duplicate=chance.choice((0.0, 0.1, 0.5)),
        reorder=chance.choice((0.0, 0.1, 0.5)),
        spread_s=chance.choice((0.05, 0.3, 1.0)),
    )


def _lie(chance: Random, engines: Engines, at_s: float) -> Trouble:
    return Lie(
        _node(chance, engines),
        at_s,
        chance.uniform(2.0, 15.0),
        running=chance.choice((0, 0, 1000)),
        slots_times=chance.choice((1, 2, 10)),
        usage_times=chance.choice((1, 10)),
    )


def _drain(chance: Random, engines: Engines, at_s: float) -> Trouble:
    return Drain(_node(chance, engines), at_s, chance.uniform(0.5, 5.0))


_DRAWS: tuple[Callable[[Random, Engines, float], Trouble], ...] = (
    _crash, _freeze, _engine_crash, _engine_hang, _engine_errs, _link_cut, _storm, _lie, _drain,
)  # fmt: skip
