"""A node at work: it drives the agent, and gives its decisions hands.

The agent (``core.agent``) decides what runs, what is launched and what is told. Here engines' processes are
started and probed, attempts are begun and stopped, and output goes to the link with its number. Each engine
has one task, its keeper, which brings it up and then watches it until it is down; whether and when it is
brought up again is the agent's to say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from groundswell.core.agent import (
    Agent,
    Begin,
    Drain,
    Drained,
    Effect,
    EngineDown,
    EngineUp,
    Event,
    Launch,
    Reply,
    Report,
    Stop,
    Tick,
)
from groundswell.driver import Driver
from groundswell.model.errors import GroundswellError, UpstreamError
from groundswell.model.messages import Accepted, Ended, Fault, Offer, Output, ToNode
from groundswell.model.money import Usage
from groundswell.node.processes import STOP_GRACE_S, EngineProcess
from groundswell.ports import Engine, EngineInfo, NodeLink, Payload, Running

_log = logging.getLogger(__name__)

PROBE_EVERY_S = 1.0
PROBE_TIMEOUT_S = 1.0
PROBE_MISSES_MAX = 3  # Three in a row: one may fall into a long prefill.
READY_EVERY_S = 0.1  # While an engine starts: the first answer should not wait for a second's tick.
READY_TIMEOUT_S = 180.0  # Listening, but still loading its model.
FIRST_PROBE_TIMEOUT_S = 20.0  # It asks several questions, and one of them makes the engine generate.

EXIT_NOTICE_S = 0.05  # How long after its sockets a process itself may end.

_Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine of a node. ``connect`` makes the adapter for its base URL.

    Either ``argv`` starts it as a child process that says its port, or ``url`` is where it runs already.
    """

    engine_id: str
    connect: Callable[[str], Engine]
    argv: tuple[str, ...] = ()
    url: str = ""


class NodeRuntime:
    """Runs one node on the current event loop: ``start``, later ``stop``.

    ``engines`` must be those that the agent was made with.
    """

    def __init__(
        self,
        agent: Agent,
        engines: Sequence[EngineSpec],
        link: NodeLink,
        *,
        probe_every_s: float = PROBE_EVERY_S,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        self._agent = agent
        self._link = link
        self.send = link.send  # Output goes straight to the link.
        self._keepers = {
            spec.engine_id: _Keeper(spec, self, probe_every_s, probe_timeout_s) for spec in engines
        }
        self._payloads: dict[_Key, Payload] = {}
        self._attempts: dict[_Key, _Attempt] = {}
        self._errors: dict[_Key, GroundswellError] = {}
        self._drained = asyncio.Event()
        self._an_engine_came_up = asyncio.Event()
        self._driver: Driver[Event, Effect] = Driver(agent, self._perform, Tick())

    def start(self) -> None:
        """Say hello and bring the engines up; returns at once."""
        self._link.listen(self._on_message, self._on_flow)
        self._driver.feed(Tick())

    async def up_within(self, timeout_s: float) -> bool:
        """Whether an engine has come up, and the gateway was told, in this time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._an_engine_came_up.wait()
        except TimeoutError:
            return False

    async def stop(self, drain_timeout_s: float = 30.0) -> None:
        """Take nothing new, let what runs end, say goodbye, end the engines."""
        self._driver.feed(Drain())
        try:
            async with asyncio.timeout(drain_timeout_s):
                await self._drained.wait()
        except TimeoutError:
            _log.warning("the node stops with works running", extra={"running": self._agent.running})
        self._link.leave()
        self._driver.close()
        for attempt in list(self._attempts.values()):
            attempt.cancel()
        await asyncio.gather(*(keeper.close() for keeper in self._keepers.values()))

    def pids(self) -> dict[str, int]:
        """The process of each local engine that runs, for status pages and chaos tests."""
        return {name: keeper.pid for name, keeper in self._keepers.items() if keeper.pid}

    def attempts(self) -> list[tuple[str, int]]:
        """The attempts that run here now, as (work id, attempt number)."""
        return list(self._attempts)

    @property
    def engine_ids(self) -> frozenset[str]:
        """Its engines."""
        return frozenset(self._keepers)

    def log_tail(self, engine_id: str) -> str:
        """The last lines a local engine wrote, for operators."""
        return self._keepers[engine_id].log_tail

    # --- from the link ---

    def _on_message(self, message: ToNode, payload: Payload | None) -> None:
        if isinstance(message, Offer):
            key = (message.work_id, message.attempt)
            if payload is not None and key not in self._attempts:
                self._payloads[key] = payload
        self._driver.feed(message)

    def _on_flow(self, work_id: str, attempt: int, paused: bool) -> None:
        running = self._attempts.get((work_id, attempt))
        if running is not None:
            running.flow(paused)

    # --- from engines ---

    def up(self, engine_id: str, info: EngineInfo) -> None:
        """A keeper found its engine ready, or changed."""
        self._driver.feed(EngineUp(engine_id, info.slots, info.capabilities))
        self._an_engine_came_up.set()

    def down(self, engine_id: str, *, hung: bool) -> None:
        """A keeper lost its engine."""
        self._driver.feed(EngineDown(engine_id, hung))

    def ended(self, message: Ended, error: GroundswellError | None, engine_id: str) -> None:
        """An attempt is over. A lost one is told only when it is known whether its engine is lost, too: the
        gateway would send the next attempt into the same grave."""
        if message.fault is Fault.LOST:
            self._keepers[engine_id].examine(lambda: self._tell(message, error))
        else:
            self._tell(message, error)

    def _tell(self, message: Ended, error: GroundswellError | None) -> None:
        key = (message.work_id, message.attempt)
        if self._attempts.pop(key, None) is None:
            return
        if error is not None:
            self._errors[key] = error
        self._driver.feed(message)

    # --- what the agent wants ---

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Begin(offer):
                self._begin(offer)
            case Stop(work_id, attempt):
                running = self._attempts.pop((work_id, attempt), None)
                if running is not None:
                    running.cancel()
            case Reply(Accepted() as accepted):
                self._link.send(accepted)
            case Reply(message):
                key = (message.work_id, message.attempt)
                self._payloads.pop(key, None)  # If it was never begun, it never will be.
                self._link.send(message, error=self._errors.pop(key, None))
            case Launch(engine_id, _, kill):
                self._keepers[engine_id].launch(kill)
            case Report(report):
                self._link.report(report)
            case Drained():
                self._drained.set()

    def _begin(self, offer: Offer) -> None:
        key = (offer.work_id, offer.attempt)
        attempt = self._attempts[key] = _Attempt(offer, self)
        payload = self._payloads.pop(key, None)
        if payload is None:
            # Only a link that lost it can do this; another node may fare better.
            attempt.ended(Usage(), Fault.LOST, UpstreamError("The request was lost on its way to the node."))
            return
        self._keepers[offer.engine_id].begin(offer, payload, attempt)


class _Attempt:
    """One attempt that runs here: the sink that its engine writes to. Output gets its numbers here."""

    __slots__ = (
        "_engine_id",
        "_frames",
        "_node",
        "_over",
        "_paused",
        "_running",
        "_send",
        "attempt",
        "work_id",
    )

    def __init__(self, offer: Offer, node: NodeRuntime) -> None:
        self.work_id = offer.work_id
        self.attempt = offer.attempt
        self._engine_id = offer.engine_id
        self._node = node
        self._send = node.send
        self._frames = 0
        self._over = False
        self._paused = False
        self._running: Running | None = None

    def run(self, running: Running) -> None:
        """It was started; it may be over already."""
        self._running = running
        if self._over:
            running.cancel()
        elif self._paused:
            running.pause()

    def output(self, data: bytes, tokens: int, resumable: bool = True) -> None:
        if not self._over:
            index = self._frames
            self._frames = index + 1
            self._send(Output(self.work_id, self.attempt, index, tokens, resumable), data)

    def ended(self, usage: Usage, fault: Fault | None = None, error: GroundswellError | None = None) -> None:
        if not self._over:
            self._over = True
            detail = error.code if error is not None else ""
            message = Ended(self.work_id, self.attempt, self._frames, usage, fault, detail=detail)
            self._node.ended(message, error, self._engine_id)

    def cancel(self) -> None:
        self._over = True
        if self._running is not None:
            self._running.cancel()

    def flow(self, paused: bool) -> None:
        self._paused = paused
        if self._running is not None:
            (self._running.pause if paused else self._running.resume)()


class _Keeper:
    """Brings one engine up and watches it."""

    def __init__(
        self, spec: EngineSpec, node: NodeRuntime, probe_every_s: float, probe_timeout_s: float
    ) -> None:
        self._spec = spec
        self._node = node
        self._probe_every_s = probe_every_s
        self._probe_timeout_s = probe_timeout_s
        self._process: EngineProcess | None = None
        self._engine: Engine | None = None
        self._info: EngineInfo | None = None
        self._task: asyncio.Task[None] | None = None
        self._examination: asyncio.Task[None] | None = None
        self._asking: list[Callable[[], None]] = []  # Who waits for it; as many as there are attempts.

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def log_tail(self) -> str:
        return self._process.log_tail if self._process is not None else ""

    def begin(self, offer: Offer, payload: Payload, attempt: _Attempt) -> None:
        """Start an attempt on the engine; whatever goes wrong arrives at its sink."""
        capability = None
        for one in self._info.capabilities if self._info else ():
            if one.model == offer.model and offer.kind in one.kinds:
                capability = one
                break
        if self._engine is None or capability is None:
            attempt.ended(Usage(), Fault.LOST, UpstreamError("The engine has just gone down."))
            return
        try:
            running = self._engine.start(capability, payload, attempt)
        except Exception:
            _log.exception("an adapter failed to start", extra={"engine_id": self._spec.engine_id})
            attempt.ended(
                Usage(), Fault.BROKEN, UpstreamError("The request could not be sent to its engine.")
            )
            return
        attempt.run(running)

    def launch(self, kill: bool) -> None:
        """Bring it up (again), in a task."""
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._keep(kill), name=f"keep {self._spec.engine_id}")

    def examine(self, then: Callable[[], None]) -> None:
        """Find out, soon, whether the engine is gone; ``then`` comes after the agent has heard of it."""
        self._asking.append(then)
        if self._examination is None:
            self._examination = asyncio.create_task(self._examine())

    async def close(self) -> None:
        """End the engine, if it is ours to end."""
        tasks = [task for task in (self._task, self._examination) if task is not None]
        self._task = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._clear(kill=False)

    async def _keep(self, kill: bool) -> None:
        """One life of the engine: up, watched, down."""
        try:
            await self._clear(kill)
            info = await self._bring_up()
            self._info = info
            self._node.up(self._spec.engine_id, info)
            await self._watch()
        except (UpstreamError, TimeoutError) as error:
            _log.warning(
                "engine is down", extra={"engine_id": self._spec.engine_id, "reason": str(error) or "timeout"}
            )
        except Exception:
            _log.exception("an adapter failed", extra={"engine_id": self._spec.engine_id})
        self._down(hung=self._process is not None and self._process.alive)

    async def _bring_up(self) -> EngineInfo:
        spec = self._spec
        url = spec.url
        if spec.argv:
            process = self._process = EngineProcess(
                spec.engine_id, spec.argv, lambda status: self._exited(process, status)
            )
            url = f"http://127.0.0.1:{await process.start()}"
        self._engine = spec.connect(url)
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                try:
                    async with asyncio.timeout(FIRST_PROBE_TIMEOUT_S):
                        return await self._engine.probe()
                except (UpstreamError, TimeoutError):
                    await asyncio.sleep(READY_EVERY_S)

    async def _watch(self) -> None:
        """Probe for ever; raises what the last of too many missed probes raised."""
        assert self._engine is not None
        misses = 0
        while True:
            # After a miss the next question comes at once: a stopped process should be known within 4 s.
            await asyncio.sleep(self._probe_every_s if misses == 0 else READY_EVERY_S)
            try:
                async with asyncio.timeout(self._probe_timeout_s):
                    info = await self._engine.probe()
            except (UpstreamError, TimeoutError):
                misses += 1
                if misses >= PROBE_MISSES_MAX:
                    raise
                continue
            misses = 0
            if info != self._info:
                self._info = info
                self._node.up(self._spec.engine_id, info)

    async def _examine(self) -> None:
        try:
            if self._process is not None:
                # Its sockets are closed a moment before its end is known; ``_exited`` does the rest.
                await self._process.ends_within(EXIT_NOTICE_S)
            elif self._engine is not None and self._info is not None:
                async with asyncio.timeout(self._probe_timeout_s):
                    await self._engine.probe()
        except (UpstreamError, TimeoutError):
            if self._task is not None and self._info is not None:
                self._task.cancel()
                self._down(hung=False)
        finally:
            self._examination = None
            asking, self._asking = self._asking, []
            for then in asking:
                then()

    def _exited(self, process: EngineProcess, status: int) -> None:
        """The process ended by itself, or was killed by somebody else."""
        if process is self._process and self._task is not None:
            _log.warning(
                "engine process ended",
                extra={"engine_id": self._spec.engine_id, "exit_status": status, "tail": process.log_tail},
            )
            self._task.cancel()
            self._down(hung=False)

    def _down(self, *, hung: bool) -> None:
        # The agent may launch at once, from inside this call; the task that ends here must not be taken for
        # the one that it starts.
        self._task = None
        self._info = None
        self._node.down(self._spec.engine_id, hung=hung)

    async def _clear(self, kill: bool) -> None:
        """End what is left of an earlier life."""
        engine, self._engine = self._engine, None
        process, self._process = self._process, None
        if process is not None:
            await process.stop(0.0 if kill else STOP_GRACE_S)
        if engine is not None:
            await engine.close()
