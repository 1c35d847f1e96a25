"""Links between the gateway and the nodes: they delay, reorder, duplicate, drop, cut and heal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Any

from groundswell.sim.clock import Clock


class Cut(StrEnum):
    """Whether a direction carries anything."""

    OPEN = "open"
    DROPS = "drops"  # what is sent is lost, as by a broker that nobody listens to
    HOLDS = "holds"  # what is sent arrives after the cut, as by TCP that retransmits


@dataclass(slots=True)
class Weather:
    """The state of one direction to or from one machine; faults change it, healing resets it."""

    delay_s: float
    jitter_s: float
    cut: Cut = Cut.OPEN
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    spread_s: float = 0.0
    held: list[tuple[Link, tuple[Any, ...]]] = field(default_factory=list)

    def heal(self) -> None:
        """All faults of this direction end; what was held goes out in order."""
        self.cut, self.drop, self.duplicate, self.reorder, self.spread_s = Cut.OPEN, 0.0, 0.0, 0.0, 0.0
        held, self.held = self.held, []
        for link, parcel in held:
            link.send(*parcel)


class Link:
    """One connection in one direction: in order, unless the weather reorders."""

    __slots__ = ("_arrive", "_chance", "_clock", "_last_s", "weather")

    def __init__(self, clock: Clock, chance: Random, weather: Weather, arrive: Callable[..., None]) -> None:
        self.weather = weather
        self._clock, self._chance, self._arrive = clock, chance, arrive
        self._last_s = 0.0

    def send(self, *parcel: Any) -> None:
        """Fire and forget: ``arrive(*parcel)`` is called once, later, twice or never."""
        weather, chance = self.weather, self._chance
        if weather.cut is Cut.DROPS or (weather.drop and chance.random() < weather.drop):
            return
        if weather.cut is Cut.HOLDS:
            weather.held.append((self, parcel))
            return
        arrive_s = self._clock.now_s + weather.delay_s + weather.jitter_s * chance.random()
        if weather.reorder and chance.random() < weather.reorder:
            arrive_s += weather.spread_s * chance.random()
        else:
            arrive_s = self._last_s = max(arrive_s, self._last_s)
        self._clock.at(arrive_s, self._arrive, *parcel)
        if weather.duplicate and chance.random() < weather.duplicate:
            self._clock.at(arrive_s + weather.spread_s * chance.random(), self._arrive, *parcel)
