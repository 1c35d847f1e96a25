"""The dispatcher: holds every accepted work until it has ended, exactly once.

Theory of operation. A work is *waiting* or *running* until it ends, and it ends once: ``Finish`` is sent
where its entry is dropped, and nowhere else. It runs by one lease at a time, number 1, 2, ...; messages of
any other attempt only free slots. What can happen to a lease, and what follows:

    ends well               the work is done (after the frames that the end overtook have come)
    rejected                the work failed: a wrong request is wrong everywhere
    lost                    moves on; the second death without any output is poison: no third node
    broken, stalled         moves on, up to three times; the engine's breaker hears of it
    not answered, refused   moves on; nothing has begun

Moving on is free until content went out. After that the work goes only where the same model can continue
it, with what was emitted counted, or ends with the one reason that says why not. Lost work waits in front
of everybody.

A withdrawn attempt keeps its slot until its node confirms (``core.slots``). Reports also find what one side
forgot: an attempt that two reports in a row lack is lost, one that we do not know is withdrawn.

Nothing scans the open works. Each lease, waiting work, node and breaker has one alarm (``core.timers``); a
free slot looks at the lanes that it can serve (``core.waiting``). Output is the hot path and comes first in
``step``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from groundswell.core.chance import mix
from groundswell.core.continuation import can_continue, combined_usage
from groundswell.core.contract import (
    Arrived,
    Cancelled,
    Deliver,
    Effect,
    Event,
    Finish,
    Left,
    Paused,
    Reason,
    Reported,
    Send,
    Tick,
)
from groundswell.core.estimate import Estimator
from groundswell.core.health import Breaker
from groundswell.core.lease import Entry, Lease
from groundswell.core.membership import Change, Engine, Members, Node, Seat, Standing
from groundswell.core.outliers import Outliers
from groundswell.core.pace import Paces
from groundswell.core.patience import (
    ACCEPT_S,
    GAP_MAX_S,
    GAP_MIN_S,
    HUNG_S,
    LOST_WAIT_S,
    RESUME_WAIT_MAX_S,
    first_limit_s,
)
from groundswell.core.reconcile import Findings, reconcile
from groundswell.core.routing import Ask, PoolKey, Router, fits, need_of, output_expected, pool_keys
from groundswell.core.slots import Slots
from groundswell.core.timers import NEVER, Timers
from groundswell.core.verdict import Verdict, judge
from groundswell.core.waiting import RANK_LOST, RANKS, Lane, WaitingRoom, units_of
from groundswell.model.messages import Accepted, Ended, Fault, Offer, Output, Refusal, Refused, Withdraw
from groundswell.model.money import Price, Usage
from groundswell.model.node import NodeReport
from groundswell.model.work import Kind, WorkState


class Dispatcher:
    """Holds every open work of one gateway.

    ``queue_works_max`` and ``queue_units_max`` (tokens) bound what waits. With several gateways each gives
    its works ids that begin with its own ``id_prefix``, so that none withdraws what belongs to another.
    """

    def __init__(
        self,
        *,
        queue_works_max: int = 1000,
        queue_units_max: int = 8_000_000,
        estimator: Estimator | None = None,
        id_prefix: str = "",
    ) -> None:
        self._timers = Timers()
        self.members = Members(self._timers)
        self.router = Router(estimator)
        self.waiting = WaitingRoom(queue_works_max, queue_units_max)
        self._id_prefix = id_prefix
        self._open: dict[str, Entry] = {}
        self._slots = Slots(self.router)
        self._paces = Paces()
        self._outliers = Outliers(self.members, self.router, self._timers)
        self._unplaced: dict[PoolKey, None] = {}  # Pools for which works began to wait in this step.

    @property
    def wake_s(self) -> float | None:
        """When the dispatcher wants its next ``Tick``; None while nothing can come due."""
        return self._timers.wake_s

    def state(self, work_id: str) -> WorkState | None:
        """Queued or running; None for a work that is not open (any more)."""
        entry = self._open.get(work_id)
        return None if entry is None else WorkState.QUEUED if entry.waiting else WorkState.RUNNING

    def __len__(self) -> int:
        """How many works are open."""
        return len(self._open)

    def keeps(self, output: Output) -> bool:
        """Whether this frame came too early and will be delivered later: keep its bytes until then."""
        entry = self._open.get(output.work_id)
        lease = entry.lease if entry else None
        return lease is not None and lease.attempt == output.attempt and output.index in lease.early

    def step(self, now_s: float, event: Event) -> list[Effect]:
        """Take one event in, hand back everything that should now be done, in order."""
        if type(event) is Output:
            return self._output(now_s, event)
        effects: list[Effect] = []
        self._take(now_s, event, effects)
        if self._slots.freed or self._unplaced:
            self._place_waiting(now_s, effects)
        return effects

    def _take(self, now_s: float, event: Event, effects: list[Effect]) -> None:
        match event:
            case Arrived():
                self._arrived(now_s, event, effects)
            case Ended():
                self._ended(now_s, event, effects)
            case Accepted():
                self._accepted(event, effects)
            case Cancelled():
                entry = self._open.get(event.work_id)
                if entry is not None:
                    self._finish(now_s, entry, WorkState.CANCELLED, Reason.CANCELLED, effects)
            case Reported():
                self._reported(now_s, event.report, effects)
            case Refused():
                self._refused(now_s, event, effects)
            case Left():
                change = self.members.left(event.node_id, event.generation)
                if change is not None:
                    self._changed(now_s, change, effects)
            case Paused():
                self._paused(now_s, event)
            case Tick():
                self._tick(now_s, effects)
            case Output():  # pragma: no cover - ``step`` has taken it
                pass
            case _:
                assert_never(event)

    # --- a work comes, waits, and gets a seat ---

    def _arrived(self, now_s: float, event: Arrived, effects: list[Effect]) -> None:
        work = event.work
        if work.id in self._open:
            return
        need = need_of(work)
        units = units_of(work)
        entry = Entry(work, event.draw, now_s, need, RANKS[work.work_class], units)
        self._open[work.id] = entry
        if need.pool not in self._paces:
            self._finish(now_s, entry, WorkState.REFUSED, Reason.UNKNOWN_MODEL, effects)
        elif not self.waiting.waits(need) and self._place(now_s, entry, None, effects):
            pass
        elif not self.waiting.admits(units):
            self._finish(now_s, entry, WorkState.REFUSED, Reason.QUEUE_FULL, effects)
        elif work.deadline_s <= now_s:
            self._finish(now_s, entry, WorkState.REFUSED, self._why_waiting(entry), effects)
        else:
            self._wait(entry, work.deadline_s)

    def _wait(self, entry: Entry, until_s: float) -> None:
        entry.waiting = True
        self.waiting.add(entry)
        self._timers.set(entry, until_s)
        self._unplaced[entry.need.pool] = None

    def _place_waiting(self, now_s: float, effects: list[Effect]) -> None:
        """Fill what has become free, and find seats for what has begun to wait."""
        freed, self._slots.freed = self._slots.freed, {}
        unplaced, self._unplaced = self._unplaced, {}
        if not self.waiting.works:
            return
        for engine in freed:
            if engine.free:
                self._fill(now_s, pool_keys(engine), engine, effects)
        self._fill(now_s, list(unplaced), None, effects)

    def _fill(self, now_s: float, pools: list[PoolKey], hint: Engine | None, effects: list[Effect]) -> None:
        """Give seats to the works that wait for these pools, most urgent first, until no lane moves."""
        lanes = self.waiting.lanes(pools)
        while lanes and (hint is None or hint.free):
            heads = [(head.rank, head.arrived_s, at) for at, one in enumerate(lanes) if (head := one.head())]
            if not heads:
                return
            at = min(heads)[2]
            if not self._place_next(now_s, lanes[at], hint, effects):
                del lanes[at]

    def _place_next(self, now_s: float, lane: Lane, hint: Engine | None, effects: list[Effect]) -> bool:
        """Seat the first of the lane; who avoids a seat does not keep the others from it."""
        for entry in lane:
            if self._place(now_s, entry, hint, effects):
                return True
            if not entry.avoid:
                return False
        return False

    def _place(self, now_s: float, entry: Entry, hint: Engine | None, effects: list[Effect]) -> bool:
        work = entry.work
        draw = mix(entry.draw + entry.attempts)
        ask = Ask(
            entry.need,
            work.prompt_tokens + entry.emitted,
            output_expected(work, entry.emitted),
            work.pixels,
            work.prefix,
            draw,
            hint,
            entry.avoid,
        )
        seats = self.router.rank(ask)
        if not seats and entry.rank == RANK_LOST and hint is None:
            seats = self._last_resort(now_s, ask)
        if not seats:
            return False
        if entry.waiting:
            self._leave_queue(entry)
        self._offer(now_s, entry, seats[0], ask, effects)
        return True

    def _last_resort(self, now_s: float, ask: Ask) -> list[Seat]:
        """Seats of ejected engines, when a lost work has no others to hope for."""
        pool = self.router.pools.get(ask.need.pool)
        engines = self._outliers.last_resort(now_s, pool, ask) if pool is not None else []
        for engine in engines:
            self._slots.touch(engine)
        return self.router.rank(ask) if engines else []

    def _leave_queue(self, entry: Entry) -> None:
        self.waiting.remove(entry)
        self._timers.off(entry)
        entry.waiting = False

    def _offer(self, now_s: float, entry: Entry, seat: Seat, ask: Ask, effects: list[Effect]) -> None:
        engine, work = seat.engine, entry.work
        entry.attempts += 1
        entry.continued += entry.sent
        entry.started_s = now_s if entry.started_s is None else entry.started_s
        lease = entry.lease = Lease(entry, entry.attempts, seat, now_s)
        lease.limit_s = first_limit_s(self.router, seat, ask, work)
        key = (work.id, lease.attempt)
        self._slots.take(key, engine)
        if work.kind is Kind.TRANSCODE:
            lease.load(0, work.pixels)
        else:
            lease.load(ask.prompt_tokens, ask.prompt_tokens + ask.output_tokens)
        self._timers.set(lease, now_s + ACCEPT_S)
        self.router.memory.sent(now_s, work.prefix, seat)
        offer = Offer(
            work.id,
            lease.attempt,
            engine.node.node_id,
            engine.engine_id,
            work.kind,
            work.model,
            entry.emitted,
            seat.capability.price,
        )
        effects.append(Send(engine.node.node_id, offer))

    # --- an attempt runs ---

    def _output(self, now_s: float, event: Output) -> list[Effect]:
        entry = self._open.get(event.work_id)
        if entry is None:
            return []
        lease = entry.lease
        if lease is None or lease.attempt != event.attempt:
            return []
        if lease.flowing and event.index == lease.next_index and not lease.early and lease.ended is None:
            lease.next_index += 1
            lease.flow(now_s, event)
            return [Deliver(event.work_id, event.attempt, event.index)]
        return self._output_slow(now_s, entry, lease, event)

    def _output_slow(self, now_s: float, entry: Entry, lease: Lease, event: Output) -> list[Effect]:
        """The first frames of an attempt, frames out of order, and those after the end."""
        if not lease.accepted:
            self._mark_accepted(lease)
        effects: list[Effect] = []
        for frame in lease.admit(event):
            if not lease.flowing and (frame.tokens > 0 or not frame.resumable):
                lease.first_content(now_s)
            lease.flow(now_s, frame)
            effects.append(Deliver(frame.work_id, frame.attempt, frame.index))
        ended = lease.ended
        if ended is not None and lease.next_index >= ended.frames:
            self._complete(now_s, entry, lease, ended, effects)
            self._place_waiting(now_s, effects)
        return effects

    def _accepted(self, event: Accepted, effects: list[Effect]) -> None:
        lease = self._lease(event.work_id, event.attempt)
        if lease is not None:
            if not lease.accepted:
                self._mark_accepted(lease)
            return
        engine = self._slots.engine((event.work_id, event.attempt))
        if engine is not None:  # Withdrawn before it was accepted; the first withdrawal may be lost.
            effects.append(Send(engine.node.node_id, Withdraw(event.work_id, event.attempt)))

    def _mark_accepted(self, lease: Lease) -> None:
        lease.accepted = True
        if lease.ended is None and not lease.paused:
            self._timers.set(lease, lease.offered_s + lease.limit_s)

    def _paused(self, now_s: float, event: Paused) -> None:
        entry = self._open.get(event.work_id)
        lease = entry.lease if entry else None
        if lease is None or lease.paused == event.paused:
            return
        lease.paused = event.paused
        if event.paused:
            self._timers.off(lease)
        else:
            lease.last_s = now_s
            self._timers.set(lease, now_s + max(lease.limit_s, GAP_MIN_S))

    # --- an attempt ends, one way or another ---

    def _ended(self, now_s: float, event: Ended, effects: list[Effect]) -> None:
        key = (event.work_id, event.attempt)
        self._slots.release(key)
        lease = self._lease(*key)
        if lease is None or lease.ended is not None:
            return
        if event.fault is not None:
            self._failed(now_s, lease, event.fault, effects)
        elif lease.next_index >= event.frames:
            self._complete(now_s, lease.entry, lease, event, effects)
        else:
            lease.accepted = True
            lease.ended = event
            self._timers.set(lease, now_s + GAP_MAX_S)

    def _complete(
        self, now_s: float, entry: Entry, lease: Lease, ended: Ended, effects: list[Effect]
    ) -> None:
        work = entry.work
        self._slots.touch(self._outliers.good(now_s, lease.engine))
        self._learn(now_s, entry, lease)
        usage = combined_usage(
            entry.emitted, lease.tokens, ended.usage, work.prompt_tokens, work.output_tokens_max
        )
        self._finish(now_s, entry, WorkState.DONE, "", effects, usage=usage)

    def _learn(self, now_s: float, entry: Entry, lease: Lease) -> None:
        """What a finished attempt teaches about its engine, and about the pace of its pool."""
        work, seat = entry.work, lease.seat
        busy_s = max(now_s - lease.offered_s, 1e-3)
        if work.kind is Kind.TRANSCODE:
            self.router.estimator.observe_transcode(seat.key, work.pixels, busy_s)
            units = entry.units
        else:
            units = work.prompt_tokens + entry.emitted + lease.tokens
            if lease.first_s != NEVER and work.streaming and seat.capability.warm:
                tpot_s = (lease.last_s - lease.first_s) / max(1, lease.tokens - 1)
                self.router.estimator.observe(
                    seat.key,
                    seat.capability.profile,
                    work.prompt_tokens + entry.emitted,
                    max(1, lease.tokens),
                    lease.first_s - lease.offered_s,
                    tpot_s if lease.tokens > 1 else 0.0,
                    lease.sequences,
                )
        self._paces.learn(entry.need.pool, units, busy_s)

    def _refused(self, now_s: float, event: Refused, effects: list[Effect]) -> None:
        """Our view was old: believe the node until its next report."""
        key = (event.work_id, event.attempt)
        engine = self._slots.engine(key)
        self._slots.release(key)
        lease = self._lease(*key)
        if engine is None or lease is None:
            return
        match event.reason:
            case Refusal.FULL:
                engine.others = max(engine.others, engine.slots - len(engine.held))
                self.router.refresh(engine)
            case Refusal.NO_ENGINE:
                engine.healthy = False
                self.router.refresh(engine)
                self._last_hope(engine.seats.values())
            case Refusal.DRAINING:
                engine.node.draining = True
                for one in engine.node.engines.values():
                    self.router.refresh(one)
                    self._last_hope(one.seats.values())
        entry = lease.entry
        entry.continued -= entry.sent
        self._drop(now_s, lease, effects)
        self._move_on(now_s, lease, effects)

    def _failed(self, now_s: float, lease: Lease, fault: Fault, effects: list[Effect]) -> None:
        """This attempt is over by a fault: tell the breaker, free what it had, and decide how it goes on."""
        entry = lease.entry
        entry.avoid |= {lease.identity}
        if fault is Fault.LOST:
            entry.deaths += 1
        elif not lease.accepted:
            entry.unanswered += 1
        else:
            entry.failures += 1
        self._drop(now_s, lease, effects)
        if fault is Fault.REJECTED:
            self._finish(now_s, entry, WorkState.FAILED, Reason.REJECTED, effects, fault=fault)
            return
        if fault is not Fault.CANCELLED:
            self._slots.touch(self._outliers.bad(now_s, lease.engine))
        self._move_on(now_s, lease, effects, fault)

    def _move_on(self, now_s: float, lease: Lease, effects: list[Effect], fault: Fault | None = None) -> None:
        """The work has no attempt any more: it is done after all, out of tries, or waits in front."""
        entry, work = lease.entry, lease.entry.work
        verdict = judge(entry, lease, self._resumable_somewhere)
        if verdict is Verdict.COMPLETE:
            self._finish(now_s, entry, WorkState.DONE, "", effects, fault=fault)
        elif verdict is not Verdict.AGAIN:
            self._finish(now_s, entry, WorkState.FAILED, verdict.value, effects, fault=fault)
        else:
            if work.streaming:
                entry.emitted += lease.tokens
                lease.tokens = 0
            # A refusal is no loss: nothing has begun, and the client's deadline holds as it did.
            if fault is not None and (entry.lost_s == -NEVER or lease.flowing):
                entry.lost_s = now_s
            entry.rank = RANK_LOST
            entry.need = need_of(work, entry.fingerprint)
            again_s = max(now_s, entry.lost_s + LOST_WAIT_S)
            self._wait(entry, again_s if entry.sent else max(work.deadline_s, again_s))

    def _resumable_somewhere(self, entry: Entry, lease: Lease) -> bool:
        """Whether a seat is known, or may come back, on which the stream could go on."""
        exact = entry.work.needs_exact_resume
        if can_continue(lease.seat.capability, entry.fingerprint, exact):
            return True
        return self._known_seat(entry)

    def _known_seat(self, entry: Entry) -> bool:
        """Whether any node that is not dead has, or had until its engine went down, a seat for a stream."""
        need = need_of(entry.work, entry.fingerprint)
        pool = self.router.pools.get(need.pool)
        return pool is not None and bool(entry.fingerprint) and any(fits(seat, need) for seat in pool)

    def _drop(self, now_s: float, lease: Lease, effects: list[Effect]) -> None:
        """Fence the attempt off. If the node may still run it, ask it to stop; the slot is its until then."""
        engine, entry = lease.engine, lease.entry
        key = (entry.work.id, lease.attempt)
        entry.lease = None
        entry.last = lease
        lease.early.clear()
        self._timers.off(lease)
        lease.unload()
        if self._slots.withdraw(now_s, key, engine):
            effects.append(Send(engine.node.node_id, Withdraw(*key)))

    def _lease(self, work_id: str, attempt: int) -> Lease | None:
        """The lease of this attempt if it is the one that counts."""
        entry = self._open.get(work_id)
        lease = entry.lease if entry else None
        return lease if lease is not None and lease.attempt == attempt else None

    def _finish(
        self,
        now_s: float,
        entry: Entry,
        state: WorkState,
        reason: str,
        effects: list[Effect],
        *,
        fault: Fault | None = None,
        usage: Usage | None = None,
    ) -> None:
        """The one place where a work ends."""
        if entry.waiting:
            self._leave_queue(entry)
        if entry.lease is not None:
            self._drop(now_s, entry.lease, effects)
        del self._open[entry.work.id]
        last = entry.last
        engine = last.engine if last else None
        started_s = now_s if entry.started_s is None else entry.started_s
        overload = state is WorkState.REFUSED and reason != Reason.UNKNOWN_MODEL
        effects.append(
            Finish(
                entry.work.id,
                state,
                reason,
                fault,
                engine.node.node_id if engine else "",
                engine.engine_id if engine else "",
                self._usage_so_far(entry) if usage is None else usage,
                last.seat.capability.price if last else Price(),
                entry.attempts,
                entry.continued,
                entry.emitted,
                self._retry_after_s(entry) if overload else None,
                started_s - entry.arrived_s,
                entry.ttft_s,
                now_s - entry.arrived_s,
            )
        )

    def _usage_so_far(self, entry: Entry) -> Usage:
        """What the client got of a work that did not end well; the prompt is charged only with output."""
        last = entry.last.tokens if entry.last and entry.work.streaming else 0
        emitted = entry.emitted + last
        return Usage(entry.work.prompt_tokens if emitted else 0, emitted)

    def _retry_after_s(self, entry: Entry) -> float:
        """When what waits now will be gone, in seconds, 1 to 120; the draw spreads the clients out."""
        key = entry.need.pool
        pool = self.router.pools.get(key)
        slots = pool.slots if pool else 0
        return self._paces.retry_after_s(key, self.waiting.pool_units(key), slots, entry.draw)

    # --- nodes report, fall silent, leave ---

    def _reported(self, now_s: float, report: NodeReport, effects: list[Effect]) -> None:
        change = self.members.report(now_s, report)
        if change is None:
            return
        listed = set(report.attempts)
        running = {one.engine_id: one.running for one in report.engines}
        self._reseat(change)
        lost: list[Lease] = []
        for engine in self.members.nodes[report.node_id].engines.values():
            ours = sum(1 for key in engine.held if key in listed)
            engine.others = max(0, running[engine.engine_id] - ours)
            restarted = engine in change.restarted
            found = reconcile(now_s, engine, listed, self._lease, restarted=restarted)
            lost += self._found(found, report.node_id, effects)
        self._lose(now_s, change, lost, effects)
        for key in report.attempts:
            if self._slots.engine(key) is not None or self._lease(*key) is not None:
                continue  # Ours; also when its end was heard and frames of it are still under way.
            if key[0].startswith(self._id_prefix):
                effects.append(Send(report.node_id, Withdraw(*key)))

    def _found(self, found: Findings, node_id: str, effects: list[Effect]) -> list[Lease]:
        """Act on what a report showed; what is lost is left for the caller to move."""
        for key in found.freed:
            self._slots.release(key)
        for lease in found.running:
            self._mark_accepted(lease)
        effects += [Send(node_id, Withdraw(*key)) for key in found.repeat]
        return found.lost

    def _changed(self, now_s: float, change: Change, effects: list[Effect]) -> None:
        """Take a change of membership over that no report brought."""
        self._reseat(change)
        self._lose(now_s, change, [], effects)

    def _reseat(self, change: Change) -> None:
        """Seats first: whatever is decided next must see them."""
        for seat in change.removed:
            self.router.remove(seat)
        for seat in change.added:
            for kind in sorted(seat.capability.kinds):
                self._paces.meet((kind, seat.capability.model))
            self.router.add(seat)

    def _lose(self, now_s: float, change: Change, lost: list[Lease], effects: list[Effect]) -> None:
        """Free all that was lost before any of it moves on, so that none goes where another just died."""
        for engine in change.gone:
            leases = (self._lease(*key) for key in self._slots.lose(engine))
            lost += [lease for lease in leases if lease is not None]
        for engine in change.touched:
            self._slots.touch(engine)
            if not engine.available:
                self._last_hope(engine.seats.values())
        self._last_hope(change.removed)
        for lease in lost:
            self._failed(now_s, lease, Fault.LOST, effects)

    def _last_hope(self, seats: Iterable[Seat]) -> None:
        """These take nothing now, being down or ejected: lost work that fits nothing else looks for its last
        resort. An ejected engine may be that resort, when it is there again under a new name."""
        for seat in seats:
            for kind in sorted(seat.capability.kinds):
                pool = (kind, seat.capability.model)
                if self.waiting.lost(pool):
                    self._unplaced[pool] = None

    # --- time passes ---

    def _tick(self, now_s: float, effects: list[Effect]) -> None:
        for alarm in self._timers.due(now_s):
            match alarm:
                case Lease():
                    if alarm.entry.lease is alarm and not alarm.paused:
                        self._stalled(now_s, alarm, effects)
                case Entry():
                    if alarm.waiting:
                        self._waited(now_s, alarm, effects)
                case Node():
                    if alarm.standing is not Standing.DEAD:
                        self._changed(now_s, self.members.silent(now_s, alarm), effects)
                case Breaker():
                    self._slots.touch(self._outliers.relent(alarm))

    def _stalled(self, now_s: float, lease: Lease, effects: list[Effect]) -> None:
        """An attempt was silent for too long. If every stream of its engine is silent, it is the engine: one
        ejection and one decision for all of them."""
        engine = lease.engine
        leases = [one for key in engine.held if (one := self._lease(*key)) is not None and not one.paused]
        flowing = [one for one in leases if one.flowing]
        # One that has ended and waits for a lost frame is no sign of its engine, and holds no slot there.
        hung = (
            lease.ended is None
            and lease.flowing
            and len(flowing) > 1
            and all(now_s - one.last_s >= HUNG_S for one in flowing)
        )
        if not hung:
            self._failed(now_s, lease, Fault.STALLED, effects)
            return
        self._slots.touch(self._outliers.eject(now_s, engine))
        for one in leases:
            if one.entry.work.streaming and now_s - one.last_s >= HUNG_S:
                one.entry.avoid |= {one.identity}
                one.entry.failures += 1
                self._drop(now_s, one, effects)
                self._move_on(now_s, one, effects, Fault.STALLED)

    def _waited(self, now_s: float, entry: Entry, effects: list[Effect]) -> None:
        """A work has waited as long as it may."""
        if not entry.sent:
            state = WorkState.FAILED if entry.attempts else WorkState.REFUSED
            self._finish(now_s, entry, state, self._why_waiting(entry), effects)
        elif not self._known_seat(entry):
            self._finish(now_s, entry, WorkState.FAILED, Reason.NOT_RESUMABLE, effects)
        elif now_s - entry.lost_s >= RESUME_WAIT_MAX_S:
            self._finish(now_s, entry, WorkState.FAILED, Reason.NO_NODE, effects)
        else:
            self._timers.set(entry, now_s + LOST_WAIT_S)

    def _why_waiting(self, entry: Entry) -> str:
        """Too busy, or nobody there."""
        pool = self.router.pools.get(entry.need.pool)
        return Reason.DEADLINE if pool is not None and pool.available else Reason.NO_NODE
