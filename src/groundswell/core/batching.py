"""A continuous-batching engine, as a machine: what a vLLM-like server does with its requests, step by step.

The engine works in steps. A step takes every decoding sequence one token further and, within a budget of
tokens, prefills the prompts of others in chunks; it takes

    c0 + b*sum(w) + a2*sum(w*(p + w/2)) + d*n + e*K    seconds

where w are the prefill chunks, p the context before each, n the decoding sequences and K the sum of their
contexts (``core.profiles`` has the coefficients). Requests are admitted first come, first served, while there
is a free place and their whole prompt fits into free KV blocks. The step that ends a prefill makes the first
token. When a decoding sequence needs a block and none is free, the newest sequence is sent back to the head
of the queue; its blocks are freed and all its tokens are computed again.

The caller adds and cancels requests and calls ``step(now_s)`` when asked to: it gets the steps that have
ended by then and the time to come back. Nothing here knows what a token is.

The rules are those of vLLM's v1 scheduler, except that a prompt's blocks are taken at admission and that
there is no prefix cache. Identical decode steps are not coalesced: a step's cost grows with its sequences.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from groundswell.core.profiles import BLOCK_TOKENS, Profile
from groundswell.model.errors import BadRequest, Overloaded
from groundswell.model.value import value

WAITING_MAX = 65_536  # beyond it a request is refused; a real server would have run out of sockets


@value
class StepEnded:
    """One step that is over: who got a token at ``at_s``, who has all of them, who was sent back."""

    at_s: float
    tokens: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()


@value
class Happened:
    """The steps that ended, in order, and when to come back (None: only when a request is added)."""

    steps: tuple[StepEnded, ...]
    wake_s: float | None


@value
class Load:
    """How full the engine is."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks: int


@dataclass(slots=True, eq=False)  # One of a thousand is found by identity: by value it takes a millisecond.
class _Sequence:
    """A request in the engine. ``computed`` tokens are in the KV cache; at ``target`` it decodes."""

    id: str
    ready_s: float
    prompt_tokens: int
    output_tokens: int
    target: int
    computed: int = 0
    generated: int = 0
    blocks: int = 0

    @property
    def decoding(self) -> bool:
        return self.computed >= self.target


@value
class _Step:
    """A step in progress."""

    ends_s: float
    decoding: tuple[_Sequence, ...]
    chunks: tuple[tuple[_Sequence, int], ...]
    preempted: tuple[str, ...]


class BatchingEngine:
    """One engine replica. All times are on the caller's clock, in seconds."""

    def __init__(self, profile: Profile, waiting_max: int = WAITING_MAX) -> None:
        self.profile = profile
        self._waiting_max = waiting_max
        self._free_blocks = profile.kv_blocks
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []  # oldest first
        self._sequences: dict[str, _Sequence] = {}
        self._step: _Step | None = None

    def add(self, now_s: float, request_id: str, prompt_tokens: int, output_tokens: int) -> None:
        """Take a request in; call ``step(now_s)`` afterwards.

        Raises ``Overloaded`` when too many wait and ``BadRequest`` when it would never fit the KV cache.
        """
        if request_id in self._sequences or prompt_tokens < 1 or output_tokens < 1:
            raise ValueError("a request needs an id of its own, a prompt and an output")
        if _blocks(prompt_tokens + output_tokens) > self.profile.kv_blocks:
            raise BadRequest(
                "the request needs more KV cache than the engine has", code="context_length_exceeded"
            )
        if len(self._waiting) >= self._waiting_max:
            raise Overloaded("the engine's queue is full", retry_after_s=1.0)
        ready_s = now_s + self.profile.ingress_s
        sequence = _Sequence(request_id, ready_s, prompt_tokens, output_tokens, target=prompt_tokens)
        self._sequences[request_id] = sequence
        self._waiting.append(sequence)

    def cancel(self, request_id: str) -> None:
        """Forget a request; its place and blocks are free for the next step. Idempotent."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return
        if sequence in self._running:
            self._running.remove(sequence)
            self._release(sequence)
        else:
            self._waiting.remove(sequence)

    def step(self, now_s: float) -> Happened:
        """End every step that is over by ``now_s`` and begin the next; back to back while there is work."""
        ended: list[StepEnded] = []
        while self._step is not None and self._step.ends_s <= now_s:
            step = self._step
            ended.append(self._end(step))
            self._step = self._begin(step.ends_s)
        if self._step is None:
            self._step = self._begin(now_s)
        if self._step is not None:
            return Happened(tuple(ended), self._step.ends_s)
        return Happened(tuple(ended), self._waiting[0].ready_s if self._waiting else None)

    def load(self) -> Load:
        """How full the engine is now."""
        blocks = self.profile.kv_blocks
        return Load(len(self._running), len(self._waiting), blocks - self._free_blocks, blocks)

    def _begin(self, now_s: float) -> _Step | None:
        """Choose what the next step does: decodes first, then prefill in what is left of the budget."""
        preempted: list[_Sequence] = []
        decoding = self._decodes(preempted)
        budget = self.profile.step_tokens_max - len(decoding)
        chunks: list[tuple[_Sequence, int]] = []
        for sequence in self._running:
            if not sequence.decoding and budget > 0:
                chunks.append((sequence, min(budget, sequence.target - sequence.computed)))
                budget -= chunks[-1][1]
        # What was just sent back must not take the blocks again that it was sent back for.
        while budget > 0 and not preempted and (admitted := self._admit(now_s)) is not None:
            chunks.append((admitted, min(budget, admitted.target)))
            budget -= chunks[-1][1]
        if not decoding and not chunks:
            return None
        ends_s = now_s + self._duration_s(decoding, chunks)
        return _Step(ends_s, tuple(decoding), tuple(chunks), tuple(sequence.id for sequence in preempted))

    def _decodes(self, preempted: list[_Sequence]) -> list[_Sequence]:
        """The sequences that decode, oldest first, each with the block for its next token."""
        decoding: list[_Sequence] = []
        # The list shrinks from its end while we walk it: whoever is sent back is never reached.
        for sequence in self._running:
            if not sequence.decoding:
                continue
            while _blocks(sequence.computed + 1) > sequence.blocks and self._free_blocks == 0:
                preempted.append(self._send_back())
                if preempted[-1] is sequence:
                    return decoding
            if _blocks(sequence.computed + 1) > sequence.blocks:
                sequence.blocks += 1
                self._free_blocks -= 1
            decoding.append(sequence)
        return decoding

    def _send_back(self) -> _Sequence:
        """Preempt the newest sequence: it waits at the head of the queue and starts from nothing."""
        sequence = self._running.pop()
        self._release(sequence)
        sequence.target = sequence.prompt_tokens + sequence.generated
        sequence.computed = 0
        self._waiting.appendleft(sequence)
        return sequence

    def _admit(self, now_s: float) -> _Sequence | None:
        """The next in the queue, if it is there, has a place, and blocks for all that it must compute."""
        if not self._waiting or len(self._running) >= self.profile.sequences_max:
            return None
        sequence = self._waiting[0]
        if sequence.ready_s > now_s or _blocks(sequence.target) > self._free_blocks:
            return None
        self._waiting.popleft()
        sequence.blocks = _blocks(sequence.target)
        self._free_blocks -= sequence.blocks
        self._running.append(sequence)
        return sequence

    def _duration_s(self, decoding: list[_Sequence], chunks: list[tuple[_Sequence, int]]) -> float:
        profile = self.profile
        prefill = sum(chunk for _, chunk in chunks)
        pairs = sum(chunk * (sequence.computed + chunk / 2) for sequence, chunk in chunks)
        context = sum(sequence.computed + 1 for sequence in decoding)
        return (
            profile.c0_s
            + profile.b_s * prefill
            + profile.a2_s * pairs
            + profile.d_s * len(decoding)
            + profile.e_s * context
        )

    def _end(self, step: _Step) -> StepEnded:
        made: list[_Sequence] = []
        for sequence, tokens in (*((sequence, 1) for sequence in step.decoding), *step.chunks):
            # It may have been cancelled while the step ran, and its id used again.
            if self._sequences.get(sequence.id) is not sequence:
                continue
            sequence.computed += tokens
            if sequence.decoding:
                sequence.generated += 1
                made.append(sequence)
        finished = [sequence for sequence in made if sequence.generated == sequence.output_tokens]
        for sequence in finished:
            self.cancel(sequence.id)
        return StepEnded(
            step.ends_s,
            tuple(sequence.id for sequence in made),
            tuple(sequence.id for sequence in finished),
            step.preempted,
        )

    def _release(self, sequence: _Sequence) -> None:
        self._free_blocks += sequence.blocks
        sequence.blocks = 0
        assert self._free_blocks <= self.profile.kv_blocks, "more blocks were freed than taken"


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
