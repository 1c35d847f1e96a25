"""Whatever happens, in any order: each work ends once, no frame is lost or doubled, no slot is overrun."""

from __future__ import annotations

from typing import Any

from fleet import chat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundswell.core.agent import (
    Agent,
    Begin,
    Drain,
    Drained,
    EngineDown,
    EngineUp,
    Launch,
    Reply,
    Report,
    Stop,
)
from groundswell.core.agent import Tick as AgentTick
from groundswell.core.contract import Arrived, Cancelled, Deliver, Finish, Left, Paused, Reported, Send, Tick
from groundswell.core.dispatch import Dispatcher
from groundswell.model.messages import Ended, Fault, Offer, Output
from groundswell.model.money import Usage
from groundswell.model.node import Capability, Continuation
from groundswell.model.work import Kind, WorkState

NODES = ("a", "b", "c")
SLOTS = 2
TOKENS = 6
CAPABILITY = Capability(
    "m", "m", frozenset({Kind.CHAT, Kind.COMPLETION}), fingerprint="f", continuation=Continuation.EXACT
)


class World:
    """Three nodes and one gateway under a made-up clock; the test says what happens next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.desk = Dispatcher(queue_works_max=8)
        self.agents: dict[str, Agent] = {}
        self.generation = 0
        self.up_wire: list[Any] = []
        self.down_wire: list[tuple[str, Any]] = []
        self.running: dict[str, dict[tuple[str, int], list[int]]] = {}
        self.arrived: dict[str, bool] = {}
        self.finished: dict[str, Finish] = {}
        self.attempt: dict[str, int] = {}
        self.delivered: dict[tuple[str, int], int] = {}
        self.tokens: dict[str, int] = {}
        for node_id in NODES:
            self.start(node_id)

    def start(self, node_id: str) -> None:
        self.generation += 1
        self.agents[node_id] = Agent(node_id, self.generation, {"e": SLOTS})
        self.running[node_id] = {}
        self.tell(node_id, AgentTick())
        self.tell(node_id, EngineUp("e", 9, (CAPABILITY,)))

    def tell(self, node_id: str, event: Any) -> None:
        """One event for an agent, and what follows on its node."""
        for effect in self.agents[node_id].step(self.now_s, event):
            match effect:
                case Reply(message):
                    self.up_wire.append(message)
                case Report(told):
                    self.up_wire.append(Reported(told))
                case Begin(offer):
                    key = (offer.work_id, offer.attempt)
                    assert key not in self.running[node_id], "started twice"
                    self.running[node_id][key] = [0, TOKENS - offer.emitted_tokens]
                case Stop(work_id, attempt):
                    del self.running[node_id][(work_id, attempt)]
                case Launch() | Drained():
                    pass
        assert len(self.running[node_id]) == self.agents[node_id].running <= SLOTS

    def step(self, event: Any) -> None:
        """One event for the dispatcher; every effect is checked."""
        for effect in self.desk.step(self.now_s, event):
            match effect:
                case Send(node_id, message):
                    if isinstance(message, Offer):
                        assert message.work_id not in self.finished
                        assert message.attempt == self.attempt.get(message.work_id, 0) + 1
                        self.attempt[message.work_id] = message.attempt
                        streamed = self.arrived[message.work_id]
                        assert message.emitted_tokens == (self.tokens[message.work_id] if streamed else 0)
                    self.down_wire.append((node_id, message))
                case Deliver(work_id, attempt, index):
                    assert work_id not in self.finished
                    assert attempt == self.attempt[work_id], "a dead attempt was delivered"
                    assert index == self.delivered.get((work_id, attempt), 0), "a frame lost or doubled"
                    self.delivered[(work_id, attempt)] = index + 1
                    self.tokens[work_id] += 1
                case Finish():
                    assert effect.work_id not in self.finished, "ended twice"
                    self.finished[effect.work_id] = effect
                    if effect.state is WorkState.DONE and self.arrived[effect.work_id]:
                        assert self.tokens[effect.work_id] == TOKENS == effect.usage.output_tokens
        self.check()

    def check(self) -> None:
        desk = self.desk
        held = [key for engine in desk.members.engines() for key in engine.held]
        assert sorted(held) == sorted(desk._slots._engines)
        for engine in desk.members.engines():
            assert len(engine.held) <= max(engine.slots, 0)
            leases = [one for key in engine.held if (one := desk._lease(*key))]
            left = sum(one.left for one in desk_leases(desk) if one.engine is engine)
            assert engine.backlog == left >= 0
            assert engine.prefill_tokens >= 0
            assert len(leases) <= engine.slots
        waiting = [one for one in desk._open.values() if one.waiting]
        assert len(waiting) == desk.waiting.works
        assert sum(one.units for one in waiting) == desk.waiting.units
        for entry in desk._open.values():
            assert entry.waiting == (entry.lease is None)
        for pool in desk.router.pools.values():
            seats = [one for one in pool.seats if one is not None]
            assert pool.free == sum(one.engine.free for one in seats)
            assert pool.available == sum(one.engine.available for one in seats)
        open_or_ended = set(desk._open) | set(self.finished)
        assert open_or_ended == set(self.arrived)

    def carry_up(self, at: int, copy: bool = False) -> None:
        if self.up_wire:
            at %= len(self.up_wire)
            self.step(self.up_wire[at] if copy else self.up_wire.pop(at))

    def carry_down(self, at: int, copy: bool = False) -> None:
        if self.down_wire:
            at %= len(self.down_wire)
            node_id, message = self.down_wire[at] if copy else self.down_wire.pop(at)
            self.tell(node_id, message)

    def emit(self, node_id: str, at: int) -> None:
        """One of the node's attempts makes a token, or ends."""
        running = self.running[node_id]
        if not running:
            return
        key = sorted(running)[at % len(running)]
        done, budget = running[key]
        if done < budget:
            self.up_wire.append(Output(*key, index=done, tokens=1))
            running[key][0] += 1
        else:
            del running[key]
            self.tell(node_id, Ended(*key, frames=done, usage=Usage(output_tokens=done)))

    def pass_time(self, seconds: float) -> None:
        """Time goes on; alarms ring when they are due."""
        until_s = self.now_s + seconds
        while True:
            wakes = [(agent.wake_s, node_id) for node_id, agent in self.agents.items()]
            wakes.append((self.desk.wake_s, ""))
            due = [
                (max(when, self.now_s), who) for when, who in wakes if when is not None and when <= until_s
            ]
            if not due:
                break
            self.now_s, who = min(due)
            if who:
                self.tell(who, AgentTick())
            else:
                self.step(Tick())
        self.now_s = until_s


def desk_leases(desk: Dispatcher) -> list[Any]:
    return [one.lease for one in desk._open.values() if one.lease is not None]


OPS = st.sampled_from(
    ["arrive", "arrive", "up", "up", "up", "up", "up_copy", "up_drop", "down", "down", "down", "down_copy",
     "down_drop", "emit", "emit", "emit", "emit", "emit", "time", "time", "wait", "cancel", "engine_down",
     "engine_up", "engine_up", "crash", "left", "fault", "drain", "pause", "resume"]
)  # fmt: skip


def act(world: World, op: str, number: int) -> None:
    node_id = NODES[number % 3]
    match op:
        case "arrive":
            work_id = f"w{len(world.arrived)}"
            streamed = number % 4 > 0
            world.arrived[work_id] = streamed
            world.tokens[work_id] = 0
            work = chat(
                work_id, deadline_s=world.now_s + 20, output_tokens_max=TOKENS, streaming=streamed,
                resumable=streamed and number % 5 > 0, needs_exact_resume=number % 2 > 0,
            )  # fmt: skip
            world.step(Arrived(work, number * 7919))
        case "up":
            world.carry_up(0 if number % 3 else number)
        case "up_copy":
            world.carry_up(number, copy=True)
        case "up_drop":
            if world.up_wire:
                world.up_wire.pop(number % len(world.up_wire))
        case "down":
            world.carry_down(0 if number % 3 else number)
        case "down_copy":
            world.carry_down(number, copy=True)
        case "down_drop":
            if world.down_wire:
                world.down_wire.pop(number % len(world.down_wire))
        case "emit":
            world.emit(node_id, number // 3)
        case "time":
            world.pass_time(0.3)
        case "wait":
            world.pass_time(1 + number % 12)
        case "cancel":
            world.step(Cancelled(f"w{number % (len(world.arrived) + 1)}"))
        case "engine_down":
            world.tell(node_id, EngineDown("e", hung=number % 2 > 0))
        case "engine_up":
            world.tell(node_id, EngineUp("e", SLOTS, (CAPABILITY,)))
        case "crash":
            world.start(node_id)
        case "left":
            world.step(Left(node_id, world.agents[node_id].generation - number % 2))
        case "fault":
            running = world.running[node_id]
            if running:
                key = sorted(running)[0]
                faults = [Fault.BROKEN, Fault.LOST, Fault.REJECTED, Fault.CANCELLED]
                frames = running.pop(key)[0]
                world.tell(node_id, Ended(*key, frames=frames, fault=faults[number % 4]))
        case "drain":
            world.tell(node_id, Drain())
        case "pause" | "resume":
            world.step(Paused(f"w{number % (len(world.arrived) + 1)}", op == "pause"))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(OPS, st.integers(0, 10_000)), min_size=20, max_size=150))
def test_any_order_of_events_keeps_the_promises(script: list[tuple[str, int]]) -> None:
    """Links that drop, repeat and reorder, nodes that crash: no promise is broken, and all works end."""
    world = World()
    for op, number in script:
        act(world, op, number)
    for work_id in sorted(set(world.arrived) - set(world.finished)):
        world.step(Paused(work_id, False))
    for node_id in NODES:
        world.start(node_id)
    for _ in range(600):
        if set(world.finished) == set(world.arrived) and not world.desk._slots._engines:
            break
        while world.up_wire or world.down_wire:
            while world.up_wire:
                world.carry_up(0)
            while world.down_wire:
                world.carry_down(0)
        for node_id in NODES:
            world.emit(node_id, 0)
            world.tell(node_id, EngineUp("e", SLOTS, (CAPABILITY,)))
        world.pass_time(0.25)
    assert set(world.finished) == set(world.arrived)
    assert not world.desk._slots._engines
    assert len(world.desk) == 0
    assert all(not one.held and not one.backlog for one in world.desk.members.engines())
