"""A machine: the place where one life of a node follows another, and where troubles strike."""

from __future__ import annotations

from collections.abc import Callable

from groundswell.core import agent as brain
from groundswell.model.messages import ToNode
from groundswell.sim.engine import Engine, Task
from groundswell.sim.faults import (
    Crash,
    Drain,
    EngineCrash,
    EngineErrs,
    EngineHang,
    Freeze,
    Lie,
    LinkCut,
    Storm,
    Trouble,
)
from groundswell.sim.life import Life, Setting
from groundswell.sim.links import Link, Weather
from groundswell.sim.scenario import NodePlan

# For this long after a trouble its late consequences (missed heartbeats, held messages) excuse a machine.
AFTERMATH_S = 4.0
HELLO_S = 0.1  # A new life's first report has arrived by then; its engines take at least as long to start.


class Machine:
    """One machine of the made-up world. ``hear_at_gateway`` is where its connections end."""

    def __init__(
        self, setting: Setting, plan: NodePlan, calm_s: float, hear_at_gateway: Callable[..., None]
    ) -> None:
        self._setting, self._calm_s = setting, calm_s
        self.plan = plan
        self._hear_at_gateway = hear_at_gateway
        self._up = Weather(plan.delay_s, plan.jitter_s)
        self._down = Weather(plan.delay_s, plan.jitter_s)
        self.life: Life | None = None
        self._generation = 0
        self._to_life: Link | None = None
        self._to_life_flow: Link | None = None
        setting.clock.at(plan.joins_s, self._start)

    def send(self, message: ToNode, task: Task | None) -> None:
        """The gateway sends something to whoever lives here now."""
        if self._to_life is not None:
            self._to_life.send(message, task)

    def flow(self, work_id: str, attempt: int, paused: bool) -> None:
        """The gateway's client is slow, or reads again."""
        if self._to_life_flow is not None:
            self._to_life_flow.send(work_id, attempt, paused)

    def afflict(self, trouble: Trouble) -> None:
        """The trouble strikes now."""
        setting, clock = self._setting, self._setting.clock
        setting.log("TROUBLE ", str(trouble))
        ends_s = clock.now_s
        match trouble:
            case Crash():
                # What begins on the next life has no excuse in the death, or the ghost, of the last one.
                setting.checks.excuse(self.plan.node_id, self._crash(trouble) + HELLO_S)
                return
            case Drain():
                ends_s = self._calm_s
                if self.life is not None and not self.life.frozen:
                    self.life.step(brain.Drain())
                    clock.at(self._until_s(trouble.down_s + 5.0), self._replace, self.life)
            case EngineCrash(engine_id=engine_id):
                ends_s += 3.0
                if self.life is not None and not self.life.frozen:
                    self.life.crash_engine(engine_id)
            case LinkCut(up=up, down=down):
                self._up.cut, self._down.cut = up, down
                ends_s = self._lasts(trouble.for_s, self._heal)
            case Storm():
                for weather in (self._up, self._down):
                    weather.drop, weather.duplicate = trouble.drop, trouble.duplicate
                    weather.reorder, weather.spread_s = trouble.reorder, trouble.spread_s
                ends_s = self._lasts(trouble.for_s, self._heal)
            case Freeze() | EngineHang() | EngineErrs() | Lie():
                ends_s = self._lame(trouble)
        setting.checks.excuse(self.plan.node_id, ends_s + AFTERMATH_S)

    def streams(self) -> list[tuple[str, str, int]]:
        """What really runs here now, as (engine id, work id, attempt); ghosts are not counted."""
        if self.life is None:
            return []
        return [
            (engine_id, *key) for engine_id, engine in self.life.engines.items() for key in engine.streams
        ]

    def _start(self) -> None:
        self._generation += 1
        setting = self._setting
        setting.log("", f"start {self.plan.node_id} generation {self._generation}")
        if self._generation > 1:
            setting.checks.excuse(self.plan.node_id, setting.clock.now_s + HELLO_S)
        up = Link(setting.clock, setting.chance, self._up, self._hear_at_gateway)
        self.life = life = Life(setting, self.plan, self._generation, up)
        self._to_life = Link(setting.clock, setting.chance, self._down, life.hear)
        self._to_life_flow = Link(setting.clock, setting.chance, self._down, life.flow)

    def _crash(self, crash: Crash) -> float:
        life, clock = self.life, self._setting.clock
        if life is None:
            return clock.now_s
        self.life = self._to_life = self._to_life_flow = None
        if crash.noticed_s is not None:
            clock.after(crash.noticed_s, self._setting.left, self.plan.node_id, life.generation)
        if crash.ghost_s:
            clock.at(self._until_s(crash.ghost_s), life.die)
        else:
            life.die()
        back_s = self._until_s(crash.down_s)
        clock.at(back_s, self._start)
        return back_s

    def _replace(self, old: Life) -> None:
        """A drained life ends and the next one begins, unless a crash came first."""
        if self.life is old:
            old.die()
            self._start()

    def _lame(self, trouble: Freeze | EngineHang | EngineErrs | Lie) -> float:
        life = self.life
        if life is None:
            return self._setting.clock.now_s
        match trouble:
            case Freeze():
                life.freeze()
                return self._lasts(trouble.for_s, life.thaw)
            case Lie():
                life.lie = trouble
                self._setting.checks.lied(self.plan.node_id)
                return self._lasts(trouble.for_s, setattr, life, "lie", None)
        engine = life.engines.get(trouble.engine_id)
        if engine is None:
            return self._setting.clock.now_s
        if isinstance(trouble, EngineErrs):
            engine.erring = True
            return self._lasts(trouble.for_s, setattr, engine, "erring", False)
        return self._hang(life, engine, trouble)

    def _hang(self, life: Life, engine: Engine, hang: EngineHang) -> float:
        engine.hang()
        if hang.found_s is not None:
            self._setting.clock.after(hang.found_s, life.find_hung, hang.engine_id, engine)
        return self._lasts(hang.for_s, engine.release)

    def _lasts(self, for_s: float, end: Callable[..., None], *arguments: object) -> float:
        """End a trouble after its time, or when the calm begins; returns when that is."""
        until_s = self._until_s(for_s)
        self._setting.clock.at(until_s, end, *arguments)
        return until_s

    def _until_s(self, for_s: float) -> float:
        return min(self._setting.clock.now_s + for_s, self._calm_s)

    def _heal(self) -> None:
        self._up.heal()
        self._down.heal()
