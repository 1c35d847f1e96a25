"""The built-in language model: small, on the CPU, nothing to download, so that a first start gives real text.

A Llama of 1.4 million parameters, trained and exported by the scripts in ``training/``, run by
onnxruntime-genai. It knows one narrow domain and is there to show the service at work.

How a stream is continued exactly. Logits are taken from the runtime and sampled here: the random number for
a token depends on the seed and on the token's position in the answer alone. A continuation first feeds the
prompt as it was fed before, then goes through the prefix token by token and *samples again* at each place. As
long as what it draws spells the prefix, that is the very token of the first run, even where the text was cut
inside a token or was not spelt the shortest way; a draw that does not fit (a prefix from elsewhere) is
replaced by the tokenizer's own token. Because every step computes the same floats in the same order, the rest
is byte-equal to the undisturbed run on the same kind of processor.

One thread computes; each open stream queues for it one token at a time, so that streams share it evenly.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from groundswell.engines.openai_app import GenerateRequest, OpenAIApp, Piece, Prompt, TokenLogprob
from groundswell.engines.server import command_line, serve
from groundswell.model.errors import BadRequest

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MODEL_FOLDER = Path(__file__).with_name("builtin_model")
END = "<|end|>"
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
SLOTS = 4
REPLAY_TOKENS = 16  # Tokens of a prefix that are gone through before other streams have their turn.
_MASK = 2**64 - 1


class BuiltinModel:
    """A ``TextModel``. Raises ``ValueError`` when a file of the model is not what the manifest says."""

    profile = "builtin-cpu"

    def __init__(self, folder: Path = MODEL_FOLDER, slots: int = SLOTS) -> None:
        # The runtime takes a while to import, and not everyone who looks at this module runs it.
        import onnxruntime_genai
        from tokenizers import Tokenizer

        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        _check(folder, manifest["sha256"])
        self._runtime: Any = onnxruntime_genai
        self._weights = onnxruntime_genai.Model(str(folder))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # A user's "<|end|>" is seven characters of text, not the end of a turn.
        self._tokenizer.encode_special_tokens = True
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self.name: str = manifest["name"]
        self.fingerprint: str = manifest["fingerprint"]
        self.context_tokens: int = config["context_length"]
        self.slots = slots
        self.vocabulary = _token_bytes(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content: number for number, token in added.items()}
        self.end = self._special[END]
        self.unspoken = sorted(set(self._special.values()) - {self.end})
        self._free = asyncio.Semaphore(slots)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="builtin")

    def encode(self, text: str) -> list[int]:
        """The tokens of plain text."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def chat_prompt(self, messages: list[dict[str, str]], prefix: str) -> Prompt:
        """``<|role|>content<|end|>`` for each message, then ``<|assistant|>`` and the prefix."""
        tokens: list[int] = []
        for message in messages:
            role = ROLES.get(message["role"])
            if role is None:
                raise BadRequest(f"this model knows no role {message['role']!r}", param="messages")
            tokens += [self._special[f"<|{role}|>"], *self.encode(message["content"]), self.end]
        return self._prompt([*tokens, self._special["<|assistant|>"]], prefix)

    def text_prompt(self, text: str, prefix: str) -> Prompt:
        """Plain text begins after the end of another one, as in training."""
        return self._prompt([self.end, *self.encode(text)], prefix)

    def _prompt(self, tokens: list[int], prefix: str) -> Prompt:
        generated = self.encode(prefix)
        return Prompt((*tokens, *generated), len(generated))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """One piece per token, as soon as a slot is free."""
        loop = asyncio.get_running_loop()
        async with self._free:
            sequence = _Sequence(self, request)
            while True:
                piece = await loop.run_in_executor(self._thread, sequence.step)
                if piece is not None:
                    yield piece
                    if piece.finish_reason is not None:
                        return

    def start(self) -> Any:
        """A fresh state of the runtime, with an empty cache."""
        parameters = self._runtime.GeneratorParams(self._weights)
        parameters.set_search_options(max_length=self.context_tokens)
        return self._runtime.Generator(self._weights, parameters)


class _Sequence:
    """One answer in the making. Only the computing thread calls ``step``."""

    def __init__(self, model: BuiltinModel, request: GenerateRequest) -> None:
        self._model = model
        self._request = request
        tokens = request.prompt.tokens
        split = len(tokens) - request.prompt.generated
        self._pending = list(tokens[:split])  # Tokens that the runtime has not seen yet.
        self._prefix = tokens[split:]
        self._replay = _Replay(self._prefix, model.vocabulary)
        self._sampler = Sampler(request, model.end, model.unspoken)
        self._position = 0  # Tokens of the answer so far, those of the prefix included.
        self._new = 0
        self._state: Any = None

    def step(self) -> Piece | None:
        """The next token, or None after some of a prefix."""
        for _ in range(REPLAY_TOKENS):
            if not self._replay.open:
                return self._speak()
            surplus = self._again()
            if surplus:
                return self._piece(surplus, ())
        return None

    def _again(self) -> bytes:
        """Go through one token of the prefix; the bytes by which it reaches beyond the prefix, if any."""
        # The first run could end here too: its draw was among all tokens. (A min_tokens that is over now, and
        # was not then, is the one thing that cannot be known.)
        may_end = not self._request.min_tokens and not self._request.ignore_eos
        token, surplus = self._replay.take(self._sampler.draw(self._logits(), self._position, may_end))
        self._take(token)
        return surplus

    def _speak(self) -> Piece:
        logits = self._logits()
        may_end = self._new >= self._request.min_tokens and not self._request.ignore_eos
        token = self._sampler.draw(logits, self._position, may_end)
        if token == self._model.end:
            return Piece(b"", 0, (), "stop")
        logprobs = self._logprobs(logits, token)
        self._take(token)
        return self._piece(self._model.vocabulary[token], logprobs)

    def _take(self, token: int) -> None:
        self._pending.append(token)
        self._sampler.count(token)
        self._position += 1

    def _piece(self, data: bytes, logprobs: tuple[TokenLogprob, ...]) -> Piece:
        self._new += 1
        return Piece(data, 1, logprobs, "length" if self._new >= self._request.max_tokens else None)

    def _logits(self) -> Floats:
        if self._state is None:
            self._state = self._model.start()
        self._state.append_tokens(np.asarray(self._pending, dtype=np.int32))
        self._pending.clear()
        logits: Floats = np.asarray(self._state.get_logits())[0, -1].astype(np.float64)
        logits[self._model.unspoken] = -np.inf
        return logits

    def _logprobs(self, logits: Floats, token: int) -> tuple[TokenLogprob, ...]:
        """Of the model itself: before temperature, penalties and bias."""
        if self._request.top_logprobs is None:
            return ()
        peak = logits.max()
        values = logits - peak - np.log(np.exp(logits - peak).sum())
        words = self._model.vocabulary
        best = np.argsort(-values, kind="stable")[: self._request.top_logprobs]
        top = tuple((words[t], float(values[t])) for t in best)
        return (TokenLogprob(words[token], float(values[token]), top),)


class _Replay:
    """The prefix that is still to be spelt, and the choice between a drawn token and the tokenizer's."""

    def __init__(self, tokens: tuple[int, ...], vocabulary: list[bytes]) -> None:
        self._vocabulary = vocabulary
        self._left = b"".join(vocabulary[token] for token in tokens)
        self._canonical: dict[int, int] = {}  # Bytes left at a token's beginning, to the token.
        left = len(self._left)
        for token in tokens:
            self._canonical[left] = token
            left -= len(vocabulary[token])

    @property
    def open(self) -> bool:
        return bool(self._left)

    def take(self, drawn: int) -> tuple[int, bytes]:
        """The token to go on with, and its bytes beyond the prefix."""
        data = self._vocabulary[drawn]
        if data and self._left.startswith(data):
            self._left = self._left[len(data) :]
            return drawn, b""
        if data.startswith(self._left):
            surplus, self._left = data[len(self._left) :], b""
            return drawn, surplus
        # Inside one of the tokenizer's tokens (after a draw that fitted and one that did not): go by bytes.
        token = self._canonical.get(len(self._left))
        if token is None:
            token = self._vocabulary.index(self._left[:1])
        self._left = self._left[len(self._vocabulary[token]) :]
        return token, b""


class Sampler:
    """Chooses tokens: the same request and logits give the same token at the same position, always."""

    def __init__(self, request: GenerateRequest, end: int, unspoken: list[int]) -> None:
        self._request = request
        self._end = end
        self._counts: Counter[int] = Counter()
        self._bias = {t: b for t, b in request.logit_bias.items() if t not in unspoken}

    def count(self, token: int) -> None:
        """Remember a token of the answer, for the penalties."""
        self._counts[token] += 1

    def draw(self, logits: Floats, position: int, may_end: bool) -> int:
        """The token at ``position`` of the answer; ``logits`` has one entry per token, natural scale."""
        logits = self._adjusted(logits)
        if not may_end:
            logits[self._end] = -np.inf
        if self._request.temperature == 0:
            return int(logits.argmax())
        scaled = (logits - logits.max()) / self._request.temperature
        weights = np.exp(scaled)
        order = np.argsort(-weights, kind="stable")
        sums = np.cumsum(weights[order])
        kept = int(np.searchsorted(sums, self._request.top_p * sums[-1])) + 1
        kept = min(kept, self._request.top_k or len(order), int(np.count_nonzero(weights)))
        at = np.searchsorted(
            sums[:kept], uniform(self._request.seed, position) * sums[kept - 1], side="right"
        )
        return int(order[min(int(at), kept - 1)])

    def _adjusted(self, logits: Floats) -> Floats:
        logits = logits.copy()
        for token, value in self._bias.items():
            if 0 <= token < len(logits):
                logits[token] += value
        presence, frequency = self._request.presence_penalty, self._request.frequency_penalty
        if presence or frequency:
            for token, times in self._counts.items():
                logits[token] -= presence + frequency * times
        return logits


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from a seed and a counter alone: SplitMix64 (Steele, Lea and Flood, 2014)."""
    state = _mixed(seed & _MASK) + (position + 1) * 0x9E3779B97F4A7C15
    return (_mixed(state & _MASK) >> 11) / 2**53


def _mixed(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _token_bytes(tokenizer: Any) -> list[bytes]:
    """What each token stands for; special tokens for nothing. Undoes GPT-2's printable alphabet of bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    alphabet = {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
    added = tokenizer.get_added_tokens_decoder()
    words = (tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size()))
    return [b"" if n in added else bytes(alphabet[c] for c in word) for n, word in enumerate(words)]


def _check(folder: Path, hashes: dict[str, str]) -> None:
    for name, expected in hashes.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            raise ValueError(f"the built-in model is damaged: {name} is not the file that the manifest names")


def main(argv: list[str] | None = None) -> int:
    """Serve the model until told to stop; the exit status."""
    parser = command_line("builtin", "The built-in language model.", SLOTS, "streams at once; others wait")
    args = parser.parse_args(argv)
    return serve(OpenAIApp(BuiltinModel(slots=max(1, args.slots))), args.host, args.port)


if __name__ == "__main__":
    sys.exit(main())
