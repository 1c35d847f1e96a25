# ruff: noqa: E501
"""Train the demonstration model on the CPU: a tokenizer, then a Llama of 1.4 million parameters.

    python training/train.py --out /tmp/groundswell-model

The corpus is made on the fly from its seed. A checkpoint (Hugging Face layout, with the optimiser's state beside
it) is written every ``--save-every`` steps; the same command goes on from the last one. The learning rate is
constant until ``--decay-at`` and then falls to zero in a straight line at ``--steps``; then ``--drill-steps`` more,
mostly of sums, counting and copying, start at half of the peak and fall to zero again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from corpus import DRILL, SHARES, Shares, lines
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
# Pieces never depend on what follows, so that a cut text is tokenised as it was generated.
PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 160,
    "intermediate_size": 416, "num_hidden_layers": 4, "num_attention_heads": 5, "num_key_value_heads": 1,
    "head_dim": 32, "vocab_size": 2048, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "float32", "attention_bias": False,
    "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
LENGTH_MAX = 640  # Tokens of a conversation; longer ones are cut at a turn's token.
PROMPT_WEIGHT = 0.1  # What the user says is learnt a little too, for the sake of the embeddings.


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        c = CONFIG
        d, hd = c["hidden_size"], c["head_dim"]
        self.q_proj = nn.Linear(d, c["num_attention_heads"] * hd, bias=False)
        self.k_proj = nn.Linear(d, c["num_key_value_heads"] * hd, bias=False)
        self.v_proj = nn.Linear(d, c["num_key_value_heads"] * hd, bias=False)
        self.o_proj = nn.Linear(c["num_attention_heads"] * hd, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            p(x).view(b, t, -1, CONFIG["head_dim"]).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        d, f = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj = nn.Linear(d, f, bias=False)
        self.up_proj = nn.Linear(d, f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        d, eps = CONFIG["hidden_size"], CONFIG["rms_norm_eps"]
        self.input_layernorm = nn.RMSNorm(d, eps=eps)
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(d, eps=eps)
        self.mlp = Mlp()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Names as in Hugging Face, so that the state dict is a checkpoint as it is."""

    def __init__(self) -> None:
        super().__init__()
        d = CONFIG["hidden_size"]
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], d)
        self.layers = nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = nn.RMSNorm(d, eps=CONFIG["rms_norm_eps"])
        for name, p in self.named_parameters():
            if p.ndim == 2:
                scale = 0.02 if "embed" in name else 0.5 / p.shape[1] ** 0.5
                nn.init.normal_(p, std=scale)
        half = CONFIG["head_dim"] // 2
        angles = torch.outer(torch.arange(LENGTH_MAX), CONFIG["rope_theta"] ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix step is orthogonalised by Newton-Schulz (Jordan et al., 2024), in float32."""

    def __init__(self, params: list[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                x = p.grad.lerp(momentum, 0.95)
                x = x / (x.norm() + 1e-7)
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                for _ in range(5):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = x.T if tall else x
                p.mul_(1 - group["lr"] * 0.05).add_(
                    x, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5
                )


def make_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE of the corpus itself; every text can be encoded, digits stay single."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    texts = (text for line in lines(seed, 12000) for text in texts_of(line))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def texts_of(line: dict[str, Any]) -> list[str]:
    return [m["content"] for m in line["messages"]] if "messages" in line else [line["text"]]


def encoded(tokenizer: Tokenizer, line: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Token ids and the weight of each as a target."""
    end = 1
    if "text" in line:
        ids = [end, *tokenizer.encode(line["text"]).ids, end]
        return ids, [1.0] * len(ids)
    ids, weights = [], []
    for message in line["messages"]:
        text = tokenizer.encode(message["content"]).ids
        ids += [SPECIAL.index(f"<|{message['role']}|>"), *text, end]
        answer = message["role"] == "assistant"
        weights += [0.0] + [1.0 if answer else PROMPT_WEIGHT] * len(text) + [1.0 if answer else 0.0]
    return ids, weights


def batches(
    tokenizer: Tokenizer, seed: int, tokens: int, shares: Shares = SHARES
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of about ``tokens`` tokens; conversations of a similar length go together."""
    for epoch in range(10**9):
        rng = Random(seed * 1000 + epoch)  # noqa: S311
        pool = [encoded(tokenizer, line) for line in lines(seed * 1_000_003 + epoch, 1500, shares)]
        pool = sorted(((i[:LENGTH_MAX], w[:LENGTH_MAX]) for i, w in pool), key=lambda pair: len(pair[0]))
        made: list[list[tuple[list[int], list[float]]]] = [[]]
        for pair in pool:
            if made[-1] and (len(made[-1]) + 1) * len(pair[0]) > tokens:
                made.append([])
            made[-1].append(pair)
        rng.shuffle(made)
        yield from (padded(batch) for batch in made)


def padded(batch: list[tuple[list[int], list[float]]]) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in batch)
    ids = np.zeros((len(batch), width), dtype=np.int64)
    weights = np.zeros((len(batch), width), dtype=np.float32)
    for row, (i, w) in enumerate(batch):
        ids[row, : len(i)], weights[row, : len(w)] = i, w
    return torch.from_numpy(ids), torch.from_numpy(weights)


def loss_of(model: Llama, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the cross entropy; only the places that count go through the last matrix."""
    hidden = model(ids[:, :-1])
    weight = weights[:, 1:].reshape(-1)
    counts = weight.nonzero().squeeze(1)
    logits = hidden.reshape(-1, hidden.shape[-1])[counts] @ model.embed_tokens.weight.T
    loss = F.cross_entropy(logits, ids[:, 1:].reshape(-1)[counts], reduction="none")
    return (loss * weight[counts]).sum() / weight.sum()


def save(model: Llama, out: Path, optimisers: list[torch.optim.Optimizer], note: dict[str, Any]) -> None:
    weights = {f"model.{name}": p.detach().clone() for name, p in model.state_dict().items()}
    save_file(weights, out / "model.safetensors.new", metadata={"format": "pt"})
    (out / "model.safetensors.new").replace(out / "model.safetensors")
    torch.save({"optimisers": [o.state_dict() for o in optimisers], "note": note}, out / "state.pt")
    (out / "training.json").write_text(json.dumps(note, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--decay-at", type=int, default=1000)
    parser.add_argument("--drill-steps", type=int, default=900)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.exists() else make_tokenizer(args.seed)
    tokenizer.save(str(path))
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=1))
    fit(args, tokenizer)


def rate(args: argparse.Namespace, step: int) -> float:
    """The learning rate as a share of its peak."""
    if step >= args.steps:
        return 0.5 * (1 - (step - args.steps) / args.drill_steps)
    return min(1.0, (step + 1) / 60) * min(1.0, (args.steps - step) / max(1, args.steps - args.decay_at))


def fit(args: argparse.Namespace, tokenizer: Tokenizer) -> None:
    model = Llama()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimisers: list[torch.optim.Optimizer] = [
        Muon(matrices, 0.02),
        torch.optim.AdamW(rest, 3e-3, (0.9, 0.95), weight_decay=0),
    ]
    peaks = [0.02, 3e-3]
    note: dict[str, Any] = {"seed": args.seed, "steps": 0, "tokens": 0}
    if (args.out / "model.safetensors").exists():
        state = torch.load(args.out / "state.pt")
        held = load_file(args.out / "model.safetensors")
        model.load_state_dict({k.removeprefix("model."): v for k, v in held.items()})
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        note = state["note"]
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    held_out = [b for b, _ in zip(batches(tokenizer, args.seed + 1, 3072), range(12), strict=False)]
    stream = batches(tokenizer, args.seed, args.batch_tokens)
    drill = batches(tokenizer, args.seed + 2, args.batch_tokens, DRILL)
    for step in range(note["steps"]):
        next(stream if step < args.steps else drill)
    started, seen, mean = time.monotonic(), 0, 0.0
    while note["steps"] < args.steps + args.drill_steps:
        step = note["steps"]
        ids, weights = next(stream if step < args.steps else drill)
        share = rate(args, step)
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * share
        loss = loss_of(model, ids, weights)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        tokens = int((ids > 0).sum())
        seen += tokens
        note = {**note, "steps": step + 1, "tokens": note["tokens"] + tokens}
        mean = loss.item() if not mean else mean * 0.95 + loss.item() * 0.05
        if (step + 1) % 20 == 0:
            print(
                f"step {step + 1} loss {mean:.4f} {seen / (time.monotonic() - started):.0f} tok/s", flush=True
            )
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps + args.drill_steps:
            with torch.no_grad():
                note["loss_held_out"] = round(
                    float(np.mean([loss_of(model, *b).item() for b in held_out])), 4
                )
            print(f"saved at step {step + 1}: held-out loss {note['loss_held_out']}", flush=True)
            save(model, args.out, optimisers, note)


if __name__ == "__main__":
    main()
