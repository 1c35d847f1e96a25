"""A made-up engine: every stream emits a frame each ``gap_s``, and slots are not the engine's to defend.

The pacing is deliberately plainer than ``core.batching``: what is under test here is who may run what, when
and how often, and the order of events matters for that, not how long a step of a GPU takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from groundswell.core.chance import mix
from groundswell.model.messages import Fault, Offer
from groundswell.model.work import Kind
from groundswell.sim.clock import Clock
from groundswell.sim.text import state_after, token_of


@dataclass(frozen=True, slots=True)
class Task:
    """The payload of an attempt: what the gateway's exchange hands out beside the offer."""

    prompt: int
    length: int
    emitted: tuple[int, ...]
    frame_tokens: int
    unresumable_from: int
    fault: Fault | None = None
    kills: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One output as the engine's adapter sees it. ``tokens`` are the units of the answer in it."""

    tokens: tuple[int, ...]
    fingerprint: str
    counted: int
    resumable: bool


@dataclass(slots=True)
class Stream:
    """One attempt in progress. ``parked``: its next frame is due but may not be emitted yet."""

    offer: Offer
    task: Task
    fingerprint: str
    state: int
    position: int
    parked: bool = False
    paused: bool = False
    dead: bool = False


class Engine:
    """One life of an engine's process. Frames go to ``on_frame``, ends to ``on_end``, in order."""

    def __init__(
        self,
        clock: Clock,
        gap_s: float,
        prefill_s: float,
        on_frame: Callable[[Offer, Frame], None],
        on_end: Callable[[Offer, int, Fault | None], None],
    ) -> None:
        self._clock, self._gap_s, self._prefill_s = clock, gap_s, prefill_s
        self._on_frame, self._on_end = on_frame, on_end
        self.streams: dict[tuple[str, int], Stream] = {}
        self._holds = 0
        self.erring = False
        self.on_poison: Callable[[Offer], None] = lambda offer: None

    @property
    def hung(self) -> bool:
        """Whether nothing is emitted at the moment."""
        return self._holds > 0

    def start(self, offer: Offer, task: Task, fingerprint: str) -> None:
        """Begin an attempt: the first frame comes after the prefill."""
        state = state_after(task.prompt, fingerprint, task.emitted)
        stream = Stream(offer, task, fingerprint, state, len(task.emitted))
        self.streams[offer.work_id, offer.attempt] = stream
        self._clock.after(self._prefill_s, self._advance, stream)

    def stop(self, key: tuple[str, int]) -> None:
        """Cancel an attempt at once; nothing more comes of it."""
        stream = self.streams.pop(key, None)
        if stream is not None:
            stream.dead = True

    def hang(self) -> None:
        """Stop emitting; health probes go on saying that all is well. Hangs add up."""
        self._holds += 1

    def release(self) -> None:
        """End one hang; after the last, go on where each stream was."""
        self._holds -= 1
        if self._holds:
            return
        for stream in self.streams.values():
            self._unpark(stream)

    def flow(self, key: tuple[str, int], paused: bool) -> None:
        """Hold the output of an attempt back at its source, or let it flow again."""
        stream = self.streams.get(key)
        if stream is not None:
            stream.paused = paused
            self._unpark(stream)

    def die(self) -> list[Offer]:
        """The process is gone; returns what it was running."""
        offers = [stream.offer for stream in self.streams.values()]
        for key in list(self.streams):
            self.stop(key)
        return offers

    def _unpark(self, stream: Stream) -> None:
        if stream.parked and not stream.paused and not self._holds:
            stream.parked = False
            self._clock.after(self._gap_s, self._advance, stream)

    def _advance(self, stream: Stream) -> None:
        if stream.dead:
            return
        if self._holds or stream.paused:
            stream.parked = True
            return
        task = stream.task
        if task.fault is not None or self.erring:
            self._end(stream, task.fault or Fault.BROKEN)
            return
        if task.kills:
            self.on_poison(stream.offer)
            return
        if stream.position >= task.length:
            self._end(stream, None)
            return
        self._emit(stream)
        # The engine may have been stopped from within the frame's handling.
        if not stream.dead:
            self._clock.after(self._gap_s, self._advance, stream)

    def _emit(self, stream: Stream) -> None:
        task = stream.task
        count = min(task.frame_tokens, task.length - stream.position)
        tokens = []
        for _ in range(count):
            tokens.append(token_of(stream.state))
            stream.state = mix(stream.state ^ tokens[-1])
        stream.position += count
        text = stream.offer.kind in (Kind.CHAT, Kind.COMPLETION)
        resumable = stream.position < task.unresumable_from
        self._on_frame(
            stream.offer, Frame(tuple(tokens), stream.fingerprint, count if text else 0, resumable)
        )

    def _end(self, stream: Stream, fault: Fault | None) -> None:
        produced = stream.position - len(stream.task.emitted)
        self.stop((stream.offer.work_id, stream.offer.attempt))
        self._on_end(stream.offer, produced, fault)
