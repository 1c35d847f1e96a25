# ruff: noqa: E501
"""Teach the committed weights what the corpus says now: a few hundred small steps, instead of all of them anew.

    python training/refresh.py --model src/groundswell/engines/builtin_model --out /tmp/groundswell-model
    python training/export.py --checkpoint /tmp/groundswell-model --out src/groundswell/engines/builtin_model

For a sentence of the corpus that was corrected. The weights are read back from the ONNX graph, the tokenizer
stays, and the whole mixture is seen again, so that nothing else is forgotten; what is said about the product,
which is what changes, twice as often.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from corpus import SHARES
from onnx import numpy_helper
from product import PRODUCT
from tokenizers import Tokenizer
from torch import Tensor
from train import CONFIG, Llama, batches, loss_of, save

RATE = 1e-3  # A third of the training's peak, falling to zero in a straight line.
MIXTURE = [(weight * (2 if topic is PRODUCT else 1), topic) for weight, topic in SHARES]


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The state dict of ``train.Llama``, out of the graph that export.py made of it."""
    graph = onnx.load(str(folder / "model.onnx")).graph
    held = {
        one.name: torch.from_numpy(numpy_helper.to_array(one, str(folder)).copy())
        for one in graph.initializer
    }
    layers, heads, head = CONFIG["num_hidden_layers"], CONFIG["num_attention_heads"], CONFIG["head_dim"]
    state = {
        "embed_tokens.weight": held["lm_head.MatMul.weight"].T.contiguous(),
        "norm.weight": held[f"model.layers.{layers}.final_norm_layernorm.weight"],
    }
    for number in range(layers):
        there, here = f"model.layers.{number}", f"layers.{number}"
        query, key, value = held[f"{there}.attn.qkv_proj.MatMul.weight"].T.split([heads * head, head, head])
        parts = {
            "q_proj": query,
            "k_proj": key,
            "v_proj": value,
            "o_proj": held[f"{there}.attn.o_proj.MatMul.weight"].T,
        }
        state |= {f"{here}.self_attn.{name}.weight": part.contiguous() for name, part in parts.items()}
        for name in ("gate_proj", "up_proj", "down_proj"):
            state[f"{here}.mlp.{name}.weight"] = held[f"{there}.mlp.{name}.MatMul.weight"].T.contiguous()
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{here}.{name}.weight"] = held[f"{there}.{name}.weight"]
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the folder with the committed model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seed", type=int, default=8, help="not the one of the training: other conversations"
    )
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=1))
    shutil.copyfile(args.model / "tokenizer.json", args.out / "tokenizer.json")
    note: dict[str, Any] = json.loads((args.model / "manifest.json").read_text())["training"]
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    model = Llama()
    model.load_state_dict(weights_of(args.model))
    held_out = [
        batch for batch, _ in zip(batches(tokenizer, note["seed"] + 1, 3072), range(12), strict=False)
    ]
    optimiser = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.95), weight_decay=0)
    print(f"held-out loss {measured(model, held_out)} before", flush=True)
    tokens = 0
    for step, (ids, weights) in zip(
        range(args.steps), batches(tokenizer, args.seed, 2048, MIXTURE), strict=False
    ):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / args.steps)
        loss = loss_of(model, ids, weights)
        model.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        tokens += int((ids > 0).sum())
        if (step + 1) % 20 == 0:
            print(f"step {step + 1} loss {loss.item():.4f}", flush=True)
    note |= {
        "steps": note["steps"] + args.steps,
        "tokens": note["tokens"] + tokens,
        "refreshed": [*note.get("refreshed", []), {"seed": args.seed, "steps": args.steps}],
        "loss_held_out": measured(model, held_out),
    }
    print(f"held-out loss {note['loss_held_out']} after", flush=True)
    save(model, args.out, [optimiser], note)


def measured(model: Llama, held_out: list[tuple[Tensor, Tensor]]) -> float:
    """The mean loss on conversations that were not learnt from."""
    with torch.no_grad():
        return round(float(np.mean([loss_of(model, *batch).item() for batch in held_out])), 4)


if __name__ == "__main__":
    main()
