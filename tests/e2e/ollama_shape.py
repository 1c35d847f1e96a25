"""A server in Ollama's shape: its own paths beside /v1, and its ways in both.

Ollama itself is in no package registry, so this is written after its documentation (docs/api.md) and its
types (openai/openai.go, api/types.go). What differs from OpenAI is here on purpose: a list of no models is
null, all deltas carry the role, a chunk has no usage field unless it is the last, a prompt must be one text,
and what it does not know it passes over.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["The", " sky", " is", " blue", " because", " air", " scatters", " light", "."]
DIGEST = "a80c4f17acd55265feec403c7aef86be0c25983ab279d83f3bcd3abbcb5b8b72"
CHAT, EMBEDDER = "llama3.2:latest", "all-minilm:latest"
ARCHITECTURE = {CHAT: ("llama", 131072, ["completion", "tools"]), EMBEDDER: ("bert", 512, ["embedding"])}


@dataclass
class Box:
    """What the machine holds. ``loaded`` maps models in memory to the context that they were given."""

    models: list[str] = field(default_factory=lambda: [CHAT, EMBEDDER])
    loaded: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    url: str = ""

    def named(self, name: str) -> str | None:
        full = name if ":" in name else f"{name}:latest"
        return full if full in self.models else None


@contextmanager
def ollama(box: Box | None = None) -> Iterator[Box]:
    """The server on a free port until the block ends."""
    held = box or Box()

    class Handler(_Handler):
        box = held

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        held.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield held
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    box: Box
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        box = self.box
        match self.path:
            case "/":
                self._answer(200, "Ollama is running", "text/plain; charset=utf-8")
            case "/api/version":
                self._json({"version": "0.12.3"})
            case "/api/tags":
                self._json(
                    {"models": [{"name": m, "model": m, "digest": DIGEST, **_of(m)} for m in box.models]}
                )
            case "/api/ps":
                loaded = [
                    {
                        "name": m,
                        "model": m,
                        "digest": DIGEST,
                        **_of(m),
                        "size_vram": 1,
                        "context_length": context,
                    }
                    for m, context in box.loaded.items()
                ]
                self._json({"models": loaded})
            case "/v1/models":
                data = [
                    {"id": m, "object": "model", "created": 1_759_000_000, "owned_by": "library"}
                    for m in box.models
                ]
                self._json({"object": "list", "data": data or None})
            case _:
                self._answer(404, "404 page not found", "text/plain")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.box.asked.append((self.path, body))
        model = self.box.named(str(body.get("model", "")))
        match self.path:
            case "/api/show" if model:
                family, context, capabilities = ARCHITECTURE[model]
                info = {"general.architecture": family, f"{family}.context_length": context}
                self._json({**_of(model), "model_info": info, "capabilities": capabilities, "template": "…"})
            case "/api/show":
                self._json({"error": f"model '{body['model']}' not found"}, 404)
            case "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings" if not model:
                self._refuse(404, f"model '{body['model']}' not found", "not_found_error")
            case "/v1/chat/completions":
                self.box.loaded.setdefault(model, 4096)
                self._chat(body)
            case "/v1/completions":
                if not isinstance(body["prompt"], str):
                    self._refuse(
                        400, "json: cannot unmarshal array into field prompt", "invalid_request_error"
                    )
                    return
                choice = {"text": "".join(WORDS), "index": 0, "finish_reason": "stop"}
                self._json(_whole("text_completion", body, choice))
            case "/v1/embeddings":
                self._embed(body)
            case _:
                self._answer(404, "404 page not found", "text/plain")

    def _chat(self, body: dict[str, Any]) -> None:
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(WORDS)}
            self._json(
                _whole("chat.completion", body, {"index": 0, "message": message, "finish_reason": "stop"})
            )
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in [*WORDS, ""]:
            finish = None if word else "stop"
            delta = {"role": "assistant", "content": word}
            self._event(_chunk(body, [{"index": 0, "delta": delta, "finish_reason": finish}]))
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event(_chunk(body, []) | {"usage": _usage()})
        self._write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _embed(self, body: dict[str, Any]) -> None:
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        numbers = [0.6, 0.8]
        written: Any = numbers
        if body.get("encoding_format") == "base64":
            written = base64.b64encode(struct.pack("<2f", *numbers)).decode()
        data = [{"object": "embedding", "embedding": written, "index": at} for at in range(len(inputs))]
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        self._json({"object": "list", "data": data, "model": body["model"], "usage": usage})

    def _event(self, value: dict[str, Any]) -> None:
        self._write(b"data: %b\n\n" % json.dumps(value).encode())

    def _write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _refuse(self, status: int, message: str, kind: str) -> None:
        self._json({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value), "application/json; charset=utf-8")

    def _answer(self, status: int, text: str, kind: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: Any) -> None:
        pass


def _of(model: str) -> dict[str, Any]:
    details = {"format": "gguf", "family": ARCHITECTURE[model][0], "quantization_level": "Q4_K_M"}
    return {"size": 2_019_393_189, "modified_at": "2026-05-04T14:56:49.277302595-07:00", "details": details}


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 26, "completion_tokens": len(WORDS), "total_tokens": 26 + len(WORDS)}


def _whole(kind: str, body: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    return _chunk(body, [choice]) | {"object": kind, "usage": _usage()}


def _chunk(body: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-123", "object": "chat.completion.chunk", "created": 1_759_000_000,
        "model": body["model"], "system_fingerprint": "fp_ollama", "choices": choices,
    }  # fmt: skip
