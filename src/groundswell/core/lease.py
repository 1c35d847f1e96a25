"""What the dispatcher keeps of a work that has not ended, and of its current attempt.

Theory of operation. An entry lives from arrival to end. While it waits its alarm is its deadline; while it
runs the alarm of its lease is the stall limit. A lease is also the fence: frames of any other attempt do
not count, and its own count once, in order. Links may reorder and repeat, so frames that came too early are
held, by index, in a bounded window; what is further ahead is dropped, and the gap that this leaves ends the
attempt when the stall limit is reached.
"""

from __future__ import annotations

from typing import Final

from groundswell.core.membership import Engine, Identity, Seat
from groundswell.core.patience import GAP_MAX_S, GAP_MIN_S
from groundswell.core.routing import Need
from groundswell.core.timers import NEVER, Alarm
from groundswell.model.messages import Ended, Output
from groundswell.model.work import Work

WINDOW_FRAMES: Final = 256  # How far ahead of the next frame a frame is still held; a link of 2 s at 128 Hz.


class Lease(Alarm):
    """One attempt that counts.

    ``flowing`` turns true with the first content; ``limit_s`` is then the stall limit between frames.
    ``left`` is the part of its token-work that still stands in the engine's backlog. ``ended`` is a clean end
    that waits for frames it overtook. ``missing`` counts reports in a row that should list it and do not.
    """

    __slots__ = (
        "accepted",
        "attempt",
        "early",
        "ended",
        "engine",
        "entry",
        "first_s",
        "flowing",
        "identity",
        "last_s",
        "left",
        "limit_s",
        "missing",
        "next_index",
        "offered_s",
        "paused",
        "prefill_tokens",
        "seat",
        "sequences",
        "tokens",
    )  # fmt: skip

    def __init__(self, entry: Entry, attempt: int, seat: Seat, now_s: float) -> None:
        self.due_s = self.queued_s = NEVER
        self.entry = entry
        self.attempt = attempt
        self.seat = seat
        self.engine: Engine = seat.engine
        self.identity = seat.engine.identity
        self.offered_s = now_s
        self.last_s = now_s
        self.first_s = NEVER
        self.limit_s = 0.0
        self.accepted = False
        self.flowing = False
        self.paused = False
        self.next_index = 0
        self.early: dict[int, Output] = {}
        self.ended: Ended | None = None
        self.tokens = 0
        self.left = 0
        self.prefill_tokens = 0
        self.sequences = 0
        self.missing = 0

    def admit(self, output: Output) -> list[Output]:
        """The frames that are now next in order: none when this one came twice or too early."""
        ahead = output.index - self.next_index
        if ahead < 0 or ahead > WINDOW_FRAMES or output.index in self.early:
            return []
        self.early[output.index] = output
        ready = []
        while self.next_index in self.early:
            ready.append(self.early.pop(self.next_index))
            self.next_index += 1
        return ready

    def load(self, prompt_tokens: int, left: int) -> None:
        """The attempt was sent: its work stands in the engine's backlog from now on."""
        engine = self.engine
        self.prefill_tokens, self.left = prompt_tokens, left
        self.sequences = len(engine.held) + engine.others
        engine.prefill_tokens += prompt_tokens
        engine.backlog += left

    def unload(self) -> None:
        """The attempt is over: what it has not done leaves the backlog."""
        engine = self.engine
        engine.backlog -= self.left
        engine.prefill_tokens -= self.prefill_tokens
        self.left = self.prefill_tokens = 0

    def first_content(self, now_s: float) -> None:
        """The prompt is done; a stream flows from now on."""
        engine, entry = self.engine, self.entry
        engine.prefill_tokens -= self.prefill_tokens
        prompt = min(self.prefill_tokens, self.left)
        engine.backlog -= prompt
        self.left -= prompt
        self.prefill_tokens = 0
        if self.first_s == NEVER:
            self.first_s = self.last_s = now_s
        if entry.work.streaming:
            self.flowing = True
            self.limit_s = GAP_MAX_S
            if not entry.sent:
                entry.sent = True
                entry.ttft_s = now_s - entry.arrived_s
                entry.fingerprint = self.seat.capability.fingerprint

    def flow(self, now_s: float, frame: Output) -> None:
        """One frame in order: put the stall limit off, count.

        The limit follows 10x the median gap by steps of a tenth, up for a longer gap and down for a shorter
        one, which balances where half of the gaps are longer: the median, at the cost of one comparison.
        """
        if self.flowing:
            limit_s = self.limit_s
            if 10.0 * (now_s - self.last_s) > limit_s:
                self.limit_s = limit_s = min(limit_s * 1.1, GAP_MAX_S)
            elif limit_s > GAP_MIN_S:
                self.limit_s = limit_s = max(limit_s / 1.1, GAP_MIN_S)
            self.due_s = now_s + limit_s
        self.last_s = now_s
        tokens = frame.tokens
        self.tokens += tokens
        left = self.left
        if left:
            done = tokens if tokens < left else left
            self.left = left - done
            self.engine.backlog -= done
        if not frame.resumable:
            self.entry.resumable = False


class Entry(Alarm):
    """One open work. ``rank`` 0 is work that was lost and goes first; 1 to 4 are the classes.

    ``emitted`` counts the tokens that the client was sent by attempts before the current one, ``sent`` is
    true once any content went out. ``avoid`` are the processes on which an attempt failed.
    """

    __slots__ = (
        "arrived_s", "attempts", "avoid", "continued", "deaths", "draw", "emitted", "failures", "fingerprint",
        "last", "lease", "lost_s", "need", "rank", "resumable", "sent", "started_s", "ttft_s",
        "unanswered", "units", "waiting", "work",
    )  # fmt: skip

    def __init__(self, work: Work, draw: int, now_s: float, need: Need, rank: int, units: int) -> None:
        self.due_s = self.queued_s = NEVER  # As Alarm has them, without a call for each work.
        self.work = work
        self.draw = draw
        self.arrived_s = now_s
        self.started_s: float | None = None
        self.ttft_s: float | None = None
        self.need = need
        self.rank = rank
        self.units = units
        self.lease: Lease | None = None
        self.last: Lease | None = None
        self.attempts = 0
        self.deaths = 0
        self.failures = 0
        self.unanswered = 0
        self.continued = 0
        self.emitted = 0
        self.sent = False
        self.resumable = work.resumable
        self.fingerprint = ""
        self.lost_s = -NEVER
        self.waiting = False
        self.avoid: frozenset[Identity] = frozenset()
