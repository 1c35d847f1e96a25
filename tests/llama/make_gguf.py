"""Writes the built-in model as a GGUF file, so that a real llama.cpp server can run it in the tests.

    python tests/llama/make_gguf.py .llama/builtin.gguf

Only the two formats' plainest parts are needed, so both are spelled out here: ONNX is a protobuf whose
initialisers name their place in ``model.onnx.data`` (https://github.com/onnx/onnx, onnx.proto), GGUF is a
list of keys, a list of tensors and their bytes (https://github.com/ggml-org/ggml, docs/gguf.md).
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODEL = Path(__file__).parents[2] / "src/groundswell/engines/builtin_model"
# The same text as the built-in engine's own, in the language that llama.cpp reads.
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LAYERS, HIDDEN, HEADS, HEAD, FORWARD, CONTEXT = 4, 160, 5, 32, 416, 1024
ROPE_THETA, NORM_EPSILON = 10000.0, 1e-5
ALIGNMENT = 32
U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5  # GGUF's names for types of values.


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message, by number."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value: Any
            value, at = varint(data, at)
        else:
            size, at = varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def weights() -> dict[str, NDArray[np.float32]]:
    """The initialisers of the graph that lie in the data file, by name."""
    data = (MODEL / "model.onnx.data").read_bytes()
    graph = next(value for number, value in fields((MODEL / "model.onnx").read_bytes()) if number == 7)
    found = {}
    for tensor in (value for number, value in fields(graph) if number == 5):
        parts = list(fields(tensor))
        place = {}
        for entry in (value for number, value in parts if number == 13):
            pair = dict(fields(entry))
            place[pair[1].decode()] = pair[2].decode()
        if place:
            shape = [value for number, value in parts if number == 1]
            start = int(place["offset"])
            raw = data[start : start + int(place["length"])]
            name = next(value for number, value in parts if number == 8).decode()
            found[name] = np.frombuffer(raw, np.float32).reshape(shape)
    return found


def turned(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """From halves to pairs: llama.cpp rotates neighbours where the checkpoint rotates halves of a head."""
    heads = rows.reshape(-1, 2, HEAD // 2, HIDDEN)
    return heads.swapaxes(1, 2).reshape(rows.shape)


def tensors() -> dict[str, NDArray[np.float32]]:
    """By their GGUF names; matrices as rows of outputs."""
    onnx = weights()
    made = {
        "token_embd.weight": onnx["lm_head.MatMul.weight"].T,
        "output.weight": onnx["lm_head.MatMul.weight"].T,
        "output_norm.weight": onnx[f"model.layers.{LAYERS}.final_norm_layernorm.weight"],
    }
    for layer in range(LAYERS):
        old, new = f"model.layers.{layer}.", f"blk.{layer}."
        query_key_value = onnx[f"{old}attn.qkv_proj.MatMul.weight"].T
        made[f"{new}attn_q.weight"] = turned(query_key_value[: HEADS * HEAD])
        made[f"{new}attn_k.weight"] = turned(query_key_value[HEADS * HEAD : (HEADS + 1) * HEAD])
        made[f"{new}attn_v.weight"] = query_key_value[(HEADS + 1) * HEAD :]
        made[f"{new}attn_output.weight"] = onnx[f"{old}attn.o_proj.MatMul.weight"].T
        made[f"{new}attn_norm.weight"] = onnx[f"{old}input_layernorm.weight"]
        made[f"{new}ffn_norm.weight"] = onnx[f"{old}post_attention_layernorm.weight"]
        for part in ("gate", "up", "down"):
            made[f"{new}ffn_{part}.weight"] = onnx[f"{old}mlp.{part}_proj.MatMul.weight"].T
    return made


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, value: Any) -> bytes:
    """One key with its value: a string, a whole number, a float, or a list of strings or whole numbers."""
    if isinstance(value, str):
        return text(name) + struct.pack("<I", STRING) + text(value)
    if isinstance(value, float):
        return text(name) + struct.pack("<If", F32, value)
    if isinstance(value, int):
        return text(name) + struct.pack("<II", U32, value)
    strings = isinstance(value[0], str)
    head = text(name) + struct.pack("<IIQ", ARRAY, STRING if strings else I32, len(value))
    return head + b"".join(text(item) if strings else struct.pack("<i", item) for item in value)


def keys() -> dict[str, Any]:
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["id"] for token in tokenizer["added_tokens"]}
    return {
        "general.architecture": "llama",
        "general.name": "builtin",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": HEAD,
        "llama.attention.value_length": HEAD,
        "llama.attention.layer_norm_rms_epsilon": NORM_EPSILON,
        "llama.rope.dimension_count": HEAD,
        "llama.rope.freq_base": ROPE_THETA,
        "llama.vocab_size": len(vocabulary),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3 if number in special else 1 for number in range(len(vocabulary))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }


def write(path: Path) -> None:
    entries, arrays = keys(), tensors()
    # Keys without a type of their own in ``key``: whether a first token is added is a boolean.
    booleans = [text("tokenizer.ggml.add_bos_token") + struct.pack("<IB", 7, 0)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(entries) + len(booleans))
    head += b"".join(key(name, value) for name, value in entries.items()) + b"".join(booleans)
    offset = 0
    for name, array in arrays.items():
        shape = array.shape[::-1]
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
        offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for array in arrays.values():
            raw = np.ascontiguousarray(array, np.float32).tobytes()
            file.write(raw + bytes(-len(raw) % ALIGNMENT))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
