"""An OpenAI-compatible server that behaves like a GPU engine, without a GPU.

Time comes from ``core.batching`` under the real clock, divided by a speed factor. Text is a function of what
came before it: each token is chosen by a hash of all tokens before it, the prompt and its roles included, and
of the seed when the temperature is above zero. So any two runs of one request give the same bytes, and a
wrong continuation cannot look right. A token is its text (a space and a short word), and the tokenizer cuts
text at the same places whether it was typed or generated; so what was sent leads back to exactly its tokens.

Faults come on demand: ``POST /faults {"kind", "after_tokens", "streams", "factor"}`` arms one for the next
``streams`` streams, which break after so many tokens each; ``{"kind": "none"}`` disarms. Kinds:

* ``error``  an error of the engine: a status before the first token, an event in the stream after it
* ``cut``    the connection ends in mid-air
* ``hang``   nothing comes any more, and the connection stays open
* ``slow``   from there each token takes ``factor`` times as long
* ``crash``  the process kills itself (SIGKILL)

``GET /load`` says how full the engine is.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import re
import signal
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from groundswell.core.batching import BatchingEngine
from groundswell.core.profiles import PROFILES, Profile
from groundswell.engines.openai_app import (
    GenerateRequest,
    OpenAIApp,
    Piece,
    Prompt,
    TokenLogprob,
)
from groundswell.engines.server import Cut, Request, command_line, serve
from groundswell.model.errors import BadRequest, GroundswellError, NotFound, UpstreamError

OUTPUT_TOKENS_MEAN = 200  # a text ends by itself with this chance, one in so many, at each token
CANDIDATES = 24  # how many words compete at each place; penalties and biases choose among them
LATE_S = 0.25  # behind the clock by more than this (a stopped process), the engine goes on from now
EMBEDDING_SIZE = 384
EMBEDDING_INPUTS_MAX = 2048
FAULTS = frozenset({"none", "error", "cut", "hang", "slow", "crash"})

_TOKEN = re.compile(r" ?[^\s]{1,4}|\s")
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
# Some letters have more than one byte, so that whoever cuts text at bytes is found out.
_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aeiouéöa"


class TokenStream:
    """The text after a prompt, token by token: a chain of hashes."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._salt = b"" if request.temperature == 0 else request.seed.to_bytes(8, "big", signed=True)
        self._counts: dict[int, int] = {}
        self._state = b""
        start = len(request.prompt.tokens) - request.prompt.generated
        for place, token in enumerate(request.prompt.tokens):
            self._push(token, generated=place >= start)
        self._made = 0

    def next(self) -> tuple[str, TokenLogprob] | None:
        """The next token's text and log-probability; None where the text ends by itself."""
        request = self._request
        digest = hashlib.blake2b(self._salt, key=self._state, digest_size=64).digest()
        ends = int.from_bytes(digest[:4], "big") < 2**32 // OUTPUT_TOKENS_MEAN
        if ends and not request.ignore_eos and self._made >= request.min_tokens:
            return None
        ranked = sorted(self._candidates(digest), reverse=True)
        total = math.log(sum(math.exp(score) for score, _ in ranked))
        top = tuple((word.encode(), score - total) for score, word in ranked[: request.top_logprobs or 0])
        score, word = ranked[0]
        self._push(token_id(word), generated=True)
        self._made += 1
        return word, TokenLogprob(word.encode(), score - total, top)

    def _candidates(self, digest: bytes) -> list[tuple[float, str]]:
        """Words with their scores: the chain's own choice, less the penalties, plus the biases."""
        request = self._request
        found: list[tuple[float, str]] = []
        for place in range(CANDIDATES):
            word = _word(digest[4 + 2 * place : 6 + 2 * place])
            token = token_id(word)
            count = self._counts.get(token, 0)
            score = 4.0 - 0.25 * place + request.logit_bias.get(token, 0.0)
            score -= request.frequency_penalty * count + (request.presence_penalty if count else 0.0)
            found.append((score, word))
        return found

    def _push(self, token: int, generated: bool) -> None:
        self._state = hashlib.blake2b(token.to_bytes(4, "big"), key=self._state, digest_size=16).digest()
        if generated:
            self._counts[token] = self._counts.get(token, 0) + 1


def _word(chance: bytes) -> str:
    """A space and three letters, out of 2,048 words; every sixteenth ends a sentence."""
    number = int.from_bytes(chance, "big")
    first, vowel, last = number & 15, number >> 4 & 7, number >> 7 & 15
    stop = "." if number >> 12 == 0 else ""
    return " " + _CONSONANTS[first] + _VOWELS[vowel] + _CONSONANTS[last] + stop


def token_id(text: str) -> int:
    """The id of a token: a hash of its text, 31 bits."""
    return int.from_bytes(hashlib.blake2b(_bytes(text), digest_size=4).digest(), "big") >> 1


def tokenize(text: str) -> tuple[int, ...]:
    """Text as token ids: pieces of up to four characters, with the space before them."""
    return tuple(token_id(piece) for piece in _TOKEN.findall(text))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@dataclass(slots=True)
class Fault:
    """A fault that waits for streams to strike."""

    kind: str
    after_tokens: int = 0
    streams: int = 1
    factor: float = 10.0


@dataclass(frozen=True, slots=True)
class EmulatedOptions:
    """What ``groundswell serve emulated`` can be told."""

    model: str
    profile: str = "h100-8b"
    speed: float = 1.0
    slots: int = 0  # 0: as many as the profile has
    host: str = "127.0.0.1"
    port: int = 0


class EmulatedModel:
    """A text model whose tokens are made up and whose times are those of an engine."""

    def __init__(self, options: EmulatedOptions) -> None:
        profile = PROFILES.get(options.profile)
        if profile is None:
            raise NotFound(
                f"there is no profile {options.profile!r}; there are {', '.join(sorted(PROFILES))}"
            )
        if not 0.001 <= options.speed <= 10_000:
            raise BadRequest("speed must be from 0.001 to 10000", param="speed")
        if options.slots:
            profile = replace(profile, sequences_max=options.slots)
        self.name = options.model
        self.profile = options.profile
        self.fingerprint = f"emulated-1:{options.model}"
        self.context_tokens = profile.context_tokens
        self.slots = profile.sequences_max
        self.fault: Fault | None = None
        self.clock = EngineClock(profile.slower(1.0 / options.speed))
        self._streams = 0

    def chat_prompt(self, messages: list[dict[str, str]], prefix: str) -> Prompt:
        tokens: list[int] = []
        for message in messages:
            if message["role"] not in _ROLES:
                raise BadRequest(f"unknown role {message['role']!r}", param="messages")
            tokens += (token_id(f"<|{message['role']}|>"), *tokenize(message["content"]), token_id("<|end|>"))
        tokens.append(token_id("<|assistant|>"))
        return _prompt(tuple(tokens), prefix)

    def text_prompt(self, text: str, prefix: str) -> Prompt:
        return _prompt(tokenize(text) or (token_id("<|begin|>"),), prefix)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """One token for each that the engine makes, and the armed fault where it strikes."""
        text = TokenStream(request)
        fault, slow = self._take_fault(), 1.0
        made, last_s = 0, 0.0
        self._streams += 1
        stream_id = str(self._streams)
        arrivals = self.clock.add(stream_id, len(request.prompt.tokens), request.max_tokens)
        try:
            while made < request.max_tokens:
                if fault is not None and made == fault.after_tokens:
                    slow = await _strike(fault)
                at_s = await arrivals.get()
                if slow > 1.0 and made:
                    await asyncio.sleep((slow - 1.0) * (at_s - last_s))
                last_s = at_s
                token = text.next()
                if token is None:
                    break
                made += 1
                word, logprob = token
                yield Piece(word.encode(), 1, () if request.top_logprobs is None else (logprob,))
            await asyncio.sleep(self.clock.engine.profile.finish_s)
            yield Piece(b"", 0, finish_reason="length" if made == request.max_tokens else "stop")
        finally:
            self.clock.cancel(stream_id)

    def _take_fault(self) -> Fault | None:
        fault = self.fault
        if fault is None:
            return None
        fault.streams -= 1
        if fault.streams <= 0:
            self.fault = None
        return fault


def _prompt(tokens: tuple[int, ...], prefix: str) -> Prompt:
    generated = tokenize(prefix)
    return Prompt(tokens + generated, len(generated))


async def _strike(fault: Fault) -> float:
    """Do what the fault says. Returns by how much the stream is slower from now on."""
    match fault.kind:
        case "error":
            raise UpstreamError("the emulated engine failed, as it was told to", code="engine_fault")
        case "cut":
            raise Cut
        case "hang":
            await asyncio.Event().wait()
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
    return max(1.0, fault.factor) if fault.kind == "slow" else 1.0


class EngineClock:
    """Drives one ``BatchingEngine`` by the real clock and tells each stream when it has a token."""

    def __init__(self, profile: Profile) -> None:
        self.engine = BatchingEngine(profile)
        self._arrivals: dict[str, asyncio.Queue[float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._behind_s = 0.0

    def now_s(self) -> float:
        """The loop's clock, less the time for which this process did not run at all."""
        return asyncio.get_running_loop().time() - self._behind_s

    def add(self, stream_id: str, prompt_tokens: int, output_tokens: int) -> asyncio.Queue[float]:
        """Take a stream in; its queue gets the time of each of its tokens, at most ``output_tokens``."""
        self.engine.add(self.now_s(), stream_id, prompt_tokens, output_tokens)
        arrivals: asyncio.Queue[float] = asyncio.Queue()
        self._arrivals[stream_id] = arrivals
        self._run()
        return arrivals

    def cancel(self, stream_id: str) -> None:
        """Forget a stream. Idempotent."""
        self._arrivals.pop(stream_id, None)
        self.engine.cancel(stream_id)

    def _run(self, due_s: float | None = None) -> None:
        now_s = self.now_s()
        if due_s is not None and now_s - due_s > LATE_S:
            # A stopped process does not make up for lost time in one burst, and neither does a real engine.
            self._behind_s += now_s - due_s
            now_s = due_s
        happened = self.engine.step(now_s)
        for ended in happened.steps:
            for stream_id in ended.tokens:
                arrivals = self._arrivals.get(stream_id)
                if arrivals is not None:
                    arrivals.put_nowait(ended.at_s)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_s = happened.wake_s
        if wake_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(wake_s + self._behind_s, self._run, wake_s)


class EmulatedApp(OpenAIApp):
    """The HTTP interface: that of every text model, and embeddings, faults and load."""

    def __init__(self, model: EmulatedModel) -> None:
        routes = {
            ("POST", "/v1/embeddings"): self._embeddings,
            ("POST", "/faults"): self._faults,
            ("GET", "/load"): self._load,
        }
        super().__init__(model, routes)
        self._emulated = model

    async def _embeddings(self, request: Request) -> None:
        body = request.object()
        if body.get("model") != self._emulated.name:
            raise NotFound("this model is not served here", code="model_not_found", param="model")
        inputs = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
        if (
            not isinstance(inputs, list)
            or not 1 <= len(inputs) <= EMBEDDING_INPUTS_MAX
            or not all(isinstance(text, str) and text for text in inputs)
        ):
            raise BadRequest("input must be a text or a list of texts, none of them empty", param="input")
        if body.get("encoding_format", "float") != "float":
            raise BadRequest("only encoding_format float is supported", param="encoding_format")
        data = [
            {"object": "embedding", "index": place, "embedding": embedding(text)}
            for place, text in enumerate(inputs)
        ]
        tokens = sum(len(tokenize(text)) for text in inputs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await request.answer({"object": "list", "model": self._emulated.name, "data": data, "usage": usage})

    async def _faults(self, request: Request) -> None:
        body = request.object()
        kind, after, streams = body.get("kind"), body.get("after_tokens", 0), body.get("streams", 1)
        factor = body.get("factor", 10.0)
        if kind not in FAULTS:
            raise BadRequest(f"kind must be one of {', '.join(sorted(FAULTS))}", param="kind")
        if not isinstance(after, int) or not isinstance(streams, int) or not isinstance(factor, int | float):
            raise BadRequest("after_tokens and streams must be whole numbers, factor a number")
        self._emulated.fault = None if kind == "none" else Fault(kind, after, streams, float(factor))
        await request.answer({"kind": kind})

    async def _load(self, request: Request) -> None:
        load = self._emulated.clock.engine.load()
        await request.answer(
            {
                "running": load.running,
                "waiting": load.waiting,
                "kv_blocks_used": load.kv_blocks_used,
                "kv_blocks": load.kv_blocks,
            }
        )


def embedding(text: str) -> list[float]:
    """A vector of length one that depends on the whole text, and on nothing else."""
    digest = hashlib.shake_128(_bytes(text)).digest(2 * EMBEDDING_SIZE)
    values = [
        int.from_bytes(digest[2 * place : 2 * place + 2], "big") / 32768 - 1
        for place in range(EMBEDDING_SIZE)
    ]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def serve_emulated(options: EmulatedOptions) -> int:
    """Serve one emulated engine until told to stop; return the exit status."""
    return serve(EmulatedApp(EmulatedModel(options)), options.host, options.port)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m groundswell.engines.emulated``: the same as ``groundswell serve emulated``."""
    about = (__doc__ or "").partition("\n")[0]
    parser = command_line("emulated", about, 0, "requests at once; 0: as many as the profile has")
    parser.add_argument("--model", default="emulated", help="the name that it goes by")
    parser.add_argument(
        "--profile",
        default="h100-8b",
        choices=sorted(PROFILES),
        help="the GPU and model that it behaves like",
    )
    parser.add_argument("--speed", type=float, default=1.0, help="times faster than the real one")
    try:
        return serve_emulated(EmulatedOptions(**vars(parser.parse_args(arguments))))
    except GroundswellError as error:
        parser.error(error.message)


if __name__ == "__main__":
    raise SystemExit(main())
