"""Chat, completions and embeddings: from a request's bytes to an accepted work.

This is where the few numbers that the brain decides on are read off a request: how long the prompt is, what
its leading blocks are, how much output it may make, and whether its stream could be continued.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from groundswell.core import continuation
from groundswell.core.affinity import BLOCKS_MAX
from groundswell.driver import Chance
from groundswell.gateway import schema
from groundswell.gateway.exchange import Account, AnswerExchange, Asked, StreamExchange, Works
from groundswell.gateway.hot import HotCycle, HotPaths
from groundswell.gateway.pipeline import Access, Observe, Pipeline, unobserved
from groundswell.gateway.schema import ChatRequest, CompletionRequest, EmbeddingRequest
from groundswell.model.errors import GroundswellError, Overloaded
from groundswell.model.value import value
from groundswell.model.work import Kind, Work, WorkClass
from groundswell.ports import Exchange
from groundswell.store.keys import Scope

KINDS = {
    "/v1/chat/completions": Kind.CHAT,
    "/v1/completions": Kind.COMPLETION,
    "/v1/embeddings": Kind.EMBEDDING,
}
BODY_BYTES_MAX = 8 << 20
INLINE_BYTES_MAX = 128 << 10  # Read at once: about 20 ms at the worst, and far less for what people send.
QUEUE_WAIT_S = 60.0
HOLD_S = 10.0
BLOCK_CHARACTERS = 512
BYTES_PER_TOKEN = 4


class Submits(Works, Protocol):
    """What this needs of ``relay.Relay``."""

    def submit(self, work: Work, exchange: Exchange) -> None: ...


@value
class Understood:
    """What a body says, before anybody is asked to serve it."""

    model: str
    asked: Asked
    streaming: bool
    resumable: bool
    prompt_tokens: int
    prefix: tuple[int, ...]


class TextPaths:
    """Turns complete requests into works. ``begin`` is what the protocol calls.

    ``queue_wait_s``: how long a work may wait to start. ``hold_s``: how long the headers of a stream wait for
    its first content.
    """

    def __init__(
        self,
        works: Submits,
        pipeline: Pipeline,
        *,
        body_bytes_max: int = BODY_BYTES_MAX,
        queue_wait_s: float = QUEUE_WAIT_S,
        hold_s: float = HOLD_S,
        continues: bool = True,
        observe: Observe = unobserved,
        work_id: Callable[[], str] | None = None,
    ) -> None:
        self._works = works
        self._queue_wait_s = queue_wait_s
        self._hold_s = hold_s
        self._continues = continues
        chance = Chance()
        self._work_id = work_id or (lambda: chance.take(12).hex())
        self._loop = asyncio.get_running_loop()
        self._accounts: dict[str, Account] = {}
        # One thread: a second would only wait for the interpreter's lock, and hold memory of its own.
        self._reader = ThreadPoolExecutor(1, "bodies")
        self._reading: set[asyncio.Task[None]] = set()
        self.draining = False
        access = Access(Scope.INFERENCE, body_bytes_max)
        self.paths = HotPaths(pipeline, KINDS, access, self.begin, observe)

    def account(self, work_id: str) -> Account | None:
        """Who pays for a work; known from its submission until its ``on_finish`` has returned."""
        return self._accounts.get(work_id)

    def begin(self, cycle: HotCycle) -> None:
        """Accept a complete request. Raises what the client is to see."""
        if self.draining:
            raise Overloaded("This server is shutting down.", code="shutting_down")
        if len(cycle.body) > INLINE_BYTES_MAX:
            # Large enough to hold up every other stream of this loop.
            task = self._loop.create_task(self._begin_later(cycle, cycle.body))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
            return
        self._accept(cycle, understand(cycle.kind, cycle.body))

    async def _begin_later(self, cycle: HotCycle, raw: bytearray) -> None:
        """As ``begin``, for a body that is read in a thread."""
        try:
            understood = await self._loop.run_in_executor(self._reader, understand, cycle.kind, raw)
            if not cycle.disconnected:
                self._accept(cycle, understood)
        except GroundswellError as error:
            cycle.fail(error)
        except Exception:
            cycle.fail_as_defect()

    def _accept(self, cycle: HotCycle, understood: Understood) -> None:
        assert cycle.principal is not None, "a request begins only after its caller is known"
        caller = cycle.principal
        asked = understood.asked
        resumable = self._continues and understood.resumable
        work = Work(
            id=self._work_id(),
            kind=cycle.kind,
            model=understood.model,
            tenant=caller.tenant,
            deadline_s=self._loop.time() + self._queue_wait_s,
            work_class=WorkClass.INTERACTIVE,
            prompt_tokens=understood.prompt_tokens,
            output_tokens_max=asked.facts.max_tokens * asked.facts.choices,
            prefix=understood.prefix,
            streaming=understood.streaming,
            resumable=resumable,
            needs_exact_resume=resumable and continuation.needs_exact(asked.facts),
        )
        account = Account(caller.tenant, caller.key_id, cycle.request_id, cycle.traceparent)
        self._submit(work, asked, cycle, account)

    def _submit(self, work: Work, asked: Asked, cycle: HotCycle, account: Account) -> None:
        exchange: AnswerExchange | StreamExchange
        if work.streaming:
            exchange = StreamExchange(self._works, work, asked, cycle, self._loop, self._hold_s)
        else:
            exchange = AnswerExchange(self._works, work, asked, cycle)
        self._accounts[work.id] = account
        exchange.on_end = self._forget
        cycle.client = exchange
        self._works.submit(work, exchange)

    def _forget(self, work_id: str) -> None:
        # Later in this turn of the loop the ledger may still ask who pays.
        self._loop.call_soon(self._accounts.pop, work_id, None)


def understand(kind: Kind, raw: bytes | bytearray) -> Understood:
    """Read a request's body; for any thread. Raises ``BadRequest``."""
    request, body = schema.parse(kind, raw)
    asked = _asked(kind, request, body)
    streaming = not isinstance(request, EmbeddingRequest) and bool(request.stream)
    text, tokens = _prompt(request)
    return Understood(
        request.model, asked, streaming, streaming and _resumable(request, asked), tokens,
        _blocks(request.model, text),
    )  # fmt: skip


def _asked(kind: Kind, request: schema.Request, body: dict[str, Any]) -> Asked:
    if isinstance(request, EmbeddingRequest):
        return Asked(continuation.Request(kind), body)
    stop = request.stop
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    options = request.stream_options
    facts = continuation.Request(
        kind=kind,
        choices=max(request.n or 1, getattr(request, "best_of", None) or 1),
        structured=_structured(body),
        logprobs=request.logprobs is not None and request.logprobs is not False,
        greedy=request.temperature == 0,
        seeded=request.seed is not None,
        penalised=bool(request.presence_penalty or request.frequency_penalty)
        or request.repetition_penalty not in (None, 1.0)
        or request.repeat_penalty not in (None, 1.0),
        max_tokens=body.get("max_tokens") or 0,
        min_tokens=request.min_tokens or 0,
    )
    return Asked(facts, body, stops, options is not None and bool(options.include_usage))


def _structured(body: dict[str, Any]) -> bool:
    """Whether a grammar binds the output: a format other than plain text, or a tool call that must come."""
    response_format = body.get("response_format")
    if response_format is not None and response_format.get("type") != "text":
        return True
    free = (None, "auto", "none")
    return body.get("tool_choice") not in free or body.get("function_call") not in free


def _resumable(request: schema.Request, asked: Asked) -> bool:
    """Whether another attempt can be told where to go on: there must be one text, and a prompt of text."""
    if continuation.obstacle(asked.facts) is not None:
        return False
    if isinstance(request, ChatRequest):
        return True
    if isinstance(request, EmbeddingRequest):
        return False
    prompt = request.prompt
    is_text = isinstance(prompt, str) or (len(prompt) == 1 and isinstance(prompt[0], str))
    return is_text and not request.echo and not request.suffix


def _prompt(request: schema.Request) -> tuple[str, int]:
    """The leading text of the prompt as every gateway would write it, and about how many tokens it has."""
    if isinstance(request, ChatRequest):
        parts: list[str] = []
        media = 0
        for message in request.messages:
            parts.append(message.role)
            if isinstance(message.content, str):
                parts.append(message.content)
                continue
            for part in message.content or ():
                text = part.get("text")
                if isinstance(text, str):
                    parts.append(text)
                else:
                    media += 1
        joined = "\0".join(parts)
        return joined, _tokens(joined) + 256 * media + 4 * len(request.messages)
    value = request.prompt if isinstance(request, CompletionRequest) else request.input
    if isinstance(value, str):
        return value, _tokens(value)
    if isinstance(value[0], int):
        return ",".join(map(str, value[: BLOCK_CHARACTERS * 2])), len(value)
    entries: list[Any] = list(value)
    tokens = sum(_tokens(item) if isinstance(item, str) else len(item) for item in entries)
    first = value[0]
    return first if isinstance(first, str) else "", tokens


def _tokens(text: str) -> int:
    """A guess that is good enough to route by; usage comes from the engine."""
    size = len(text) if text.isascii() else len(text.encode())
    return size // BYTES_PER_TOKEN + 1


def _blocks(model: str, text: str) -> tuple[int, ...]:
    """Chained hashes of the leading whole blocks; a prompt shorter than a block is one block."""
    state = hashlib.blake2b(model.encode(), digest_size=8)
    blocks: list[int] = []
    end = min(max(len(text) // BLOCK_CHARACTERS, 1), BLOCKS_MAX)
    for index in range(end):
        state.update(text[index * BLOCK_CHARACTERS : (index + 1) * BLOCK_CHARACTERS].encode())
        blocks.append(int.from_bytes(state.digest(), "big"))
    return tuple(blocks)
