"""Joins the front door to the dispatcher and the link: it holds bytes and callbacks, and decides nothing.

An ``Output`` arrives with its bytes. The message goes to the dispatcher, and when that answers ``Deliver``
the bytes go to the exchange: in the same call, as a rule, and nothing is kept. Only frames that came too
early are held, within a bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from groundswell.core.contract import (
    Arrived,
    Cancelled,
    Deliver,
    Effect,
    Event,
    Finish,
    Left,
    Paused,
    Reported,
    Send,
    Tick,
)
from groundswell.core.dispatch import Dispatcher
from groundswell.core.membership import DEAD_S
from groundswell.driver import Driver
from groundswell.model.errors import GroundswellError, InternalError
from groundswell.model.messages import Ended, FromNode, Offer, Output, Withdraw
from groundswell.model.node import NodeReport
from groundswell.model.work import Work, WorkState
from groundswell.ports import Exchange, GatewayLink

_log = logging.getLogger(__name__)

# Bytes of one work that came before their turn. The dispatcher bounds the frames; their size is the node's
# to choose, and more than a large segment means that it is broken.
HELD_BYTES_MAX = 64 << 20
HEAR_FIRST_S = 0.5  # After this process was stopped: for nodes' reports, and frames that wait in sockets.


@dataclass(slots=True)
class _Open:
    """One work that has not ended. ``exchange`` is None once its front door has heard the end."""

    work: Work
    exchange: Exchange | None
    nodes: dict[int, str] = field(default_factory=dict)  # attempt -> node, while not withdrawn
    held: dict[tuple[int, int], tuple[Output, bytes]] = field(default_factory=dict)
    held_bytes: int = 0
    error: GroundswellError | None = None
    paused: bool = False


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as the gateway last heard of it, for status pages. ``age_s`` is since its last report."""

    report: NodeReport
    age_s: float

    @property
    def state(self) -> str:
        """``up``, ``draining`` or ``silent``: for so long that the dispatcher counts it dead."""
        if self.age_s >= DEAD_S:
            return "silent"
        return "draining" if self.report.draining else "up"


class Relay:
    """Runs works: every one that is submitted is finished exactly once.

    ``draw`` gives 64 bits of chance. ``on_finish`` hears of every end, before the exchange does, so that
    what a client knows to be over is already on its way to the ledger.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        link: GatewayLink,
        draw: Callable[[], int],
        on_finish: Callable[[Work, Finish], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._link = link
        self._draw = draw
        self._on_finish = on_finish
        self._open: dict[str, _Open] = {}
        self._arriving: tuple[Output, bytes] | None = None  # The frame that the dispatcher is asked about.
        self._reports: dict[str, tuple[NodeReport, float]] = {}
        self._loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self._empty.set()
        self._driver: Driver[Event, Effect] = Driver(dispatcher, self._perform, Tick(), HEAR_FIRST_S)
        link.listen(self._on_message, self._on_report, self._on_left)

    def submit(self, work: Work, exchange: Exchange) -> None:
        """Hand over an accepted work. ``exchange.finish`` may be called before this returns (a refusal)."""
        if work.id in self._open:
            raise ValueError(f"work {work.id} is open already")
        self._open[work.id] = _Open(work, exchange)
        self._empty.clear()
        self._driver.feed(Arrived(work, self._draw()))

    def cancel(self, work_id: str) -> None:
        """The client went away. Unknown or ended works are ignored."""
        if work_id in self._open:
            self._driver.feed(Cancelled(work_id))

    def pause(self, work_id: str) -> None:
        """The client is slow: hold output back at its source."""
        self._flow(work_id, True)

    def resume(self, work_id: str) -> None:
        """The client reads again."""
        self._flow(work_id, False)

    def nodes(self) -> list[NodeView]:
        """The nodes that have reported and not left, by id."""
        now_s = self._loop.time()
        return [NodeView(report, now_s - seen_s) for _, (report, seen_s) in sorted(self._reports.items())]

    @property
    def queued(self) -> int:
        """How many works wait for an engine."""
        return self._dispatcher.waiting.works

    @property
    def open_works(self) -> int:
        """How many works have not ended."""
        return len(self._open)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until no work is open. False when ``timeout_s`` passed first; nothing is cancelled."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Stop deciding. What is still open is finished as failed, so that no client waits for ever."""
        self._driver.close()
        for entry in list(self._open.values()):
            self._end(entry, Finish(entry.work.id, WorkState.FAILED, "shutting_down"))

    # --- from the link ---

    def _on_message(self, message: FromNode, data: bytes, error: GroundswellError | None) -> None:
        entry = self._open.get(message.work_id)
        if type(message) is Output:
            if entry is None:
                return
            if self._driver.stepping:
                self._hold(entry, message, data)
                self._driver.feed(message)
                return
            self._arriving = (message, data)
            self._driver.feed(message)
            if self._arriving is not None:  # Not asked for yet, or never.
                self._arriving = None
                if self._dispatcher.keeps(message):
                    self._hold(entry, message, data)
            return
        if entry is not None and type(message) is Ended and message.attempt in entry.nodes:
            entry.error = error
        self._driver.feed(message)

    def _on_report(self, report: NodeReport) -> None:
        known = self._reports.get(report.node_id)
        if known is None or known[0].generation <= report.generation:
            self._reports[report.node_id] = (report, self._loop.time())
        self._driver.feed(Reported(report))

    def _on_left(self, node_id: str, generation: int) -> None:
        known = self._reports.get(node_id)
        if known is not None and known[0].generation <= generation:
            del self._reports[node_id]
        self._driver.feed(Left(node_id, generation))

    # --- to the world ---

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Deliver(work_id, attempt, index):
                self._deliver(work_id, attempt, index)
            case Send(node_id, Offer() as offer):
                self._offer(node_id, offer)
            case Send(node_id, Withdraw() as withdraw):
                entry = self._open.get(withdraw.work_id)
                if entry is not None:
                    self._forget(entry, withdraw.attempt)
                self._link.send(node_id, withdraw)
            case Finish(work_id):
                entry = self._open.get(work_id)
                if entry is not None:
                    self._end(entry, effect)

    def _offer(self, node_id: str, offer: Offer) -> None:
        entry = self._open.get(offer.work_id)
        if entry is None or entry.exchange is None:
            return
        try:
            payload = entry.exchange.payload(offer)
        except Exception as error:
            self._fail(entry, error)
            return
        for attempt in list(entry.nodes):
            self._forget(entry, attempt)  # A work runs by one attempt at a time.
        entry.nodes[offer.attempt] = node_id
        entry.error = None
        self._link.send(node_id, offer, payload)
        if entry.paused:
            self._link.pause(node_id, offer.work_id, offer.attempt)
            self._driver.feed(Paused(offer.work_id, True))

    def _deliver(self, work_id: str, attempt: int, index: int) -> None:
        entry = self._open.get(work_id)
        if entry is None or entry.exchange is None:
            return
        frame = self._arriving
        if (
            frame is not None
            and (attempt, index) == (frame[0].attempt, frame[0].index)
            and (work_id == frame[0].work_id)
        ):
            self._arriving = None
        else:
            frame = self._take(entry, (attempt, index))
        if frame is None:
            self._fail(entry, InternalError("A part of the answer was lost inside the gateway."))
            return
        try:
            entry.exchange.deliver(*frame)
        except Exception as error:
            self._fail(entry, error)

    def _fail(self, entry: _Open, error: Exception) -> None:
        """The exchange cannot go on: its client hears so at once; the dispatcher takes the work back."""
        if not isinstance(error, GroundswellError):
            _log.error("an exchange failed", extra={"work_id": entry.work.id}, exc_info=error)
            error = InternalError("The gateway failed on this request.")
        exchange, entry.exchange = entry.exchange, None
        self._finish_exchange(exchange, Finish(entry.work.id, WorkState.FAILED, error.code), error)
        self._driver.feed(Cancelled(entry.work.id))

    def _end(self, entry: _Open, finish: Finish) -> None:
        del self._open[entry.work.id]
        try:
            self._on_finish(entry.work, finish)
        except Exception:
            _log.exception("settling failed", extra={"work_id": entry.work.id})
        exchange, entry.exchange = entry.exchange, None
        self._finish_exchange(exchange, finish, entry.error)
        if not self._open:
            self._empty.set()

    def _finish_exchange(
        self, exchange: Exchange | None, finish: Finish, error: GroundswellError | None
    ) -> None:
        if exchange is None:
            return
        try:
            exchange.finish(finish, error)
        except Exception:
            _log.exception("an exchange failed at its end", extra={"work_id": finish.work_id})
            if finish.state is WorkState.DONE:
                # Its client must not wait for ever: an end as failed writes nothing but the error.
                broken = InternalError("The gateway failed on this request.")
                failed = Finish(finish.work_id, WorkState.FAILED, broken.code)
                self._finish_exchange(exchange, failed, broken)

    # --- what is held ---

    def _hold(self, entry: _Open, message: Output, data: bytes) -> None:
        key = (message.attempt, message.index)
        if message.attempt not in entry.nodes or key in entry.held:
            return  # Withdrawn, or here already: the dispatcher will not ask for these bytes.
        entry.held[key] = (message, data)
        entry.held_bytes += len(data)
        while entry.held_bytes > HELD_BYTES_MAX and len(entry.held) > 1:
            # Were the oldest needed after all, the work fails with an honest error at its delivery.
            self._take(entry, next(iter(entry.held)))

    @staticmethod
    def _take(entry: _Open, key: tuple[int, int]) -> tuple[Output, bytes] | None:
        frame = entry.held.pop(key, None)
        if frame is not None:
            entry.held_bytes -= len(frame[1])
        return frame

    def _forget(self, entry: _Open, attempt: int) -> None:
        """An attempt that was given up: its frames will not be asked for."""
        entry.nodes.pop(attempt, None)
        for key in [key for key in entry.held if key[0] == attempt]:
            self._take(entry, key)

    def _flow(self, work_id: str, paused: bool) -> None:
        entry = self._open.get(work_id)
        if entry is None or entry.paused == paused:
            return
        entry.paused = paused
        tell = self._link.pause if paused else self._link.resume
        for attempt, node_id in entry.nodes.items():
            tell(node_id, work_id, attempt)
        self._driver.feed(Paused(work_id, paused))
