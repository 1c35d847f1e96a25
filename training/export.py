# ruff: noqa: E501
"""Turn a checkpoint of train.py into what the builtin engine loads: an ONNX graph for onnxruntime-genai.

    python training/export.py --checkpoint /tmp/groundswell-model --out src/groundswell/engines/builtin_model

The graph is made by the model builder that comes with onnxruntime-genai, offline, in float32. ``manifest.json``
names every file with its SHA-256, the fingerprint (a hash of weights, tokenizer and chat template) and how the
weights were trained.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FILES = ["model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"]
# One message; the model's own turn is opened by the first token alone. engines/builtin.py writes the same.
CHAT_TEMPLATE = "<|{role}|>{content}<|end|>"
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "bos_token": "<|end|>",
    "pad_token": "<|pad|>", "clean_up_tokenization_spaces": False,
}  # fmt: skip


def build(checkpoint: Path, folder: Path) -> Path:
    """Run the builder on a copy of the checkpoint; the folder with its output."""
    source, built = folder / "source", folder / "built"
    source.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(checkpoint / name, source / name)
    (source / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", built]
    builder += ["-p", "fp32", "-e", "cpu", "-c", folder / "cache"]
    subprocess.run([str(part) for part in builder], check=True)
    return built


def settle(built: Path, out: Path) -> None:
    """Copy the graph and its configuration; one thread, so that equal requests make equal floats."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copyfile(built / name, out / name)
    config = json.loads((built / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
    (out / "genai_config.json").write_text(json.dumps(config, indent=1) + "\n")
    # The checkpoint's own tokenizer, not the builder's copy, which drops what it does not know.
    tokenizer = json.loads((built.parent / "source" / "tokenizer.json").read_text(encoding="utf-8"))
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(text, encoding="utf-8")


def manifest(out: Path, training: dict[str, Any]) -> dict[str, Any]:
    hashes = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES}
    identity = "\n".join(
        [*(hashes[name] for name in ("model.onnx", "model.onnx.data", "tokenizer.json")), CHAT_TEMPLATE]
    )
    return {
        "name": "builtin",
        "about": "A demonstration model of 1.4 million parameters that knows one narrow domain.",
        "fingerprint": "gwb-" + hashlib.sha256(identity.encode()).hexdigest()[:12],
        "chat_template": CHAT_TEMPLATE,
        "training": training,
        "sha256": hashes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settle(build(args.checkpoint, Path(folder)), args.out)
    training = json.loads((args.checkpoint / "training.json").read_text())
    (args.out / "manifest.json").write_text(json.dumps(manifest(args.out, training), indent=2) + "\n")


if __name__ == "__main__":
    main()
