"""The adapter against servers of every flavour: real ones where we have them, scripted ones elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundswell.engines.openai_http import OpenAIHttpEngine, content_tokens
from groundswell.model.errors import BadRequest, GroundswellError, NotFound, UpstreamError
from groundswell.model.messages import Fault
from groundswell.model.money import Price, Usage
from groundswell.model.node import Capability, Continuation
from groundswell.model.work import Kind
from groundswell.node.processes import EngineProcess
from groundswell.ports import Emitted, Payload
from groundswell.wire.sse import payloads

ROOT = Path(__file__).parents[2]
LLAMA_SERVER = Path(os.environ.get("LLAMA_SERVER", ROOT / ".llama" / "llama-server"))
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is Groundswell?"}]}
DONE = b"data: [DONE]\n\n"


@dataclass
class Ear:
    """A sink that remembers."""

    frames: list[tuple[bytes, int, bool]] = field(default_factory=list)
    end: tuple[Usage, Fault | None, GroundswellError | None] | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def output(self, data: bytes, tokens: int, resumable: bool = True) -> None:
        assert self.end is None
        self.frames.append((data, tokens, resumable))
        self.begun.set()

    def ended(self, usage: Usage, fault: Fault | None = None, error: GroundswellError | None = None) -> None:
        assert self.end is None, "an attempt ends once"
        self.end = (usage, fault, error)
        self.over.set()

    @property
    def data(self) -> bytes:
        return b"".join(data for data, _, _ in self.frames)

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens, _ in self.frames)

    @property
    def text(self) -> str:
        events = [msgspec.json.decode(event) for event in payloads(self.data) if event != b"[DONE]"]
        choices = [choice for event in events for choice in event["choices"]]
        return "".join(
            choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices
        )


@dataclass
class Scripted:
    """A server that answers each path as told, and keeps what it was sent."""

    url: str = ""
    answers: dict[str, bytes] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def says(self, path: str, answer: Any, status: int = 200, headers: str = "") -> None:
        body = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
        head = f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        self.answers[path] = head.encode() + body

    def streams(self, *events: bytes, cut: bool = False) -> None:
        """Answer a chat request with these bytes, one chunk each; ``cut``: then break the connection."""
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        end = b"CUT" if cut else b"0\r\n\r\n"
        self.answers["/v1/chat/completions"] = head + chunks + end

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                length = head.lower().partition("content-length:")[2].partition("\r\n")[0]
                if length:
                    self.bodies.append(msgspec.json.decode(await reader.readexactly(int(length))))
                answer = self.answers.pop(f"{len(self.bodies)} {head.split(' ')[1]}", None)
                answer = answer or self.answers.get(head.split(" ")[1])
                if answer is None:
                    answer = b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"
                writer.write(answer.removesuffix(b"CUT"))
                await writer.drain()
                if answer.endswith(b"CUT"):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def scripted(models: list[dict[str, Any]]) -> AsyncIterator[Scripted]:
    server = Scripted()
    server.says("/v1/models", {"object": "list", "data": models})
    listener = await asyncio.start_server(server.talk, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        await asyncio.sleep(0.01)  # Connections that are being accepted now would be leaked by close().
        listener.close()
        for writer in server.writers:
            writer.close()
        await asyncio.sleep(0.01)


@asynccontextmanager
async def engine_at(url: str, **settings: Any) -> AsyncIterator[OpenAIHttpEngine]:
    engine = OpenAIHttpEngine("e", url, **settings)
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def process_of(*argv: str) -> AsyncIterator[tuple[str, EngineProcess]]:
    process = EngineProcess("e", argv, lambda status: None)
    port = await process.start(60)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        await process.stop(1.0)


def emulated(speed: float = 20.0) -> tuple[str, ...]:
    return (sys.executable, "-m", "groundswell.engines.emulated", "--model", "em", "--speed", str(speed))


async def run(
    engine: OpenAIHttpEngine, body: Mapping[str, Any], kind: Kind = Kind.CHAT, emitted: Emitted | None = None
) -> Ear:
    ear = Ear()
    capability = (await engine.probe()).capabilities[0]
    engine.start(capability, Payload(kind, dict(body), emitted=emitted), ear)
    await asyncio.wait_for(ear.over.wait(), 30)
    return ear


def delta(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content, **more}, "finish_reason": finish}
    return b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'


# --- probing ---


async def test_our_own_engine_says_all_about_itself() -> None:
    """Local engines need no settings: what they can do comes from the probe."""
    async with process_of(*emulated()) as (url, _), engine_at(url, price=Price(1, 2, 3)) as engine:
        info = await engine.probe()
        assert info.flavour == "groundswell"
        (model,) = info.capabilities
        assert (model.model, model.continuation, model.price) == ("em", Continuation.EXACT, Price(1, 2, 3))
        assert model.kinds == {Kind.CHAT, Kind.COMPLETION}
        assert info.slots > 1
        assert model.fingerprint == "emulated-1:em"


VLLM = {"id": "Qwen", "owned_by": "vllm", "root": "/models/qwen", "max_model_len": 32768, "created": 1}


async def test_vllm_is_known_by_its_owner_and_continues() -> None:
    """Its root does not prove its weights, so its address is in the fingerprint."""
    async with scripted([VLLM]) as first, scripted([VLLM]) as second:
        async with engine_at(first.url) as a, engine_at(second.url + "/v1/", fingerprint="mine") as b:
            one, other = (await a.probe()).capabilities[0], (await b.probe()).capabilities[0]
        assert (one.context_tokens, one.continuation) == (32768, Continuation.TEXT)
        assert other.fingerprint == "mine"
        async with engine_at(second.url) as c:
            assert (await c.probe()).capabilities[0].fingerprint != one.fingerprint


async def test_ollama_tells_digests_so_that_two_of_them_share_a_fingerprint() -> None:
    """Equal digests are equal weights: a stream may go on at the other box."""

    async def probed(digest: str) -> Capability:
        async with scripted([{"id": "llama3:8b", "owned_by": "library"}]) as server:
            server.says("/api/version", {"version": "0.9.0"})
            server.says("/api/tags", {"models": [{"name": "llama3:8b", "digest": digest}]})
            server.says("/api/ps", {"models": [{"name": "llama3:8b"}]})
            server.says(
                "/api/show", {"model_info": {"llama.context_length": 8192}, "capabilities": ["completion"]}
            )
            async with engine_at(server.url) as engine:
                info = await engine.probe()
            assert info.flavour == "ollama"
            return info.capabilities[0]

    one, same, other = await probed("aa"), await probed("aa"), await probed("bb")
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.context_tokens == 8192
    assert one.continuation is Continuation.NONE, "it was not shown that it continues"


@pytest.mark.parametrize(("counts", "continues"), [((9, 10), True), ((9, 12), False), ((9, 9), False)])
async def test_continuation_of_an_unknown_server_is_found_out_by_counting(
    counts: tuple[int, int], continues: bool
) -> None:
    """A server that ignores the flags would answer anew in the middle of a sentence: it must be caught."""
    async with scripted([{"id": "m", "owned_by": "somebody"}]) as server:
        for number, count in enumerate(counts, 1):
            server.says(f"{number} /v1/chat/completions", {"choices": [], "usage": {"prompt_tokens": count}})
        async with engine_at(server.url) as engine:
            info = await engine.probe()
        assert server.bodies[1]["continue_final_message"] is True
        assert info.capabilities[0].continuation is (Continuation.TEXT if continues else Continuation.NONE)


async def test_aliases_rename_models_and_a_missing_one_is_said() -> None:
    """One public name stands for several engines' names; a typing error must not pass in silence."""
    async with scripted([VLLM]) as server:
        async with engine_at(server.url, aliases={"chat": "Qwen", "big": "Qwen"}, slots=3) as engine:
            info = await engine.probe()
        assert [(one.model, one.engine_model) for one in info.capabilities] == [
            ("big", "Qwen"),
            ("chat", "Qwen"),
        ]
        assert info.slots == 3
        async with engine_at(server.url) as engine:
            assert (await engine.probe()).slots == 64, "vLLM does not say, and batches"
        async with engine_at(server.url, aliases={"chat": "Qwem"}) as engine:
            with pytest.raises(UpstreamError, match="has no model 'Qwem"):
                await engine.probe()


async def test_later_probes_ask_little_and_see_changes() -> None:
    """Every engine is probed each second; a model that was added must show without a restart."""
    async with scripted([VLLM]) as server, engine_at(server.url, api_key="secret") as engine:
        first = await engine.probe()
        asked = len(server.heads)
        server.says("/v1/models", {"data": [{**VLLM, "created": 2}]})
        assert await engine.probe() is first
        assert len(server.heads) == asked + 1
        assert "Authorization: Bearer secret\r\n" in server.heads[-1]
        server.says("/v1/models", {"data": [VLLM, {**VLLM, "id": "other"}]})
        assert len((await engine.probe()).capabilities) == 2


@pytest.mark.parametrize("slots", [1, 10_000])
async def test_connections_are_bounded_by_the_slots(slots: int) -> None:
    """A box for one request is not met by thousands, and one for ten thousand is not refused its own."""
    async with scripted([VLLM]) as server, engine_at(server.url, slots=slots) as engine:
        await engine.probe()
        assert 2 * slots < engine._client.connections_max <= 2 * slots + 1024


@pytest.mark.parametrize(
    ("status", "said"), [(401, "key"), (503, "not ready"), (404, "no OpenAI-compatible")]
)
async def test_a_server_that_is_no_engine_is_said_to_be_none(status: int, said: str) -> None:
    """An operator who adds an engine reads this message."""
    async with scripted([]) as server, engine_at(server.url) as engine:
        server.says("/v1/models", b"<html>", status)
        with pytest.raises(UpstreamError, match=said):
            await engine.probe()


# --- attempts ---


async def test_a_stream_is_relayed_as_it_came_with_its_tokens_and_usage() -> None:
    """Bytes go through unchanged; what is settled is what the engine counted."""
    events = [
        delta("", role="assistant"),
        delta("Hi"),
        delta(' "content":"x" '),
        delta(None, "stop"),
        USAGE,
        DONE,
    ]
    async with scripted([VLLM]) as server, engine_at(server.url) as engine:
        server.streams(*events)
        ear = await run(engine, {**CHAT, "stream": True, "top_k": 5, "store": True, "temperature": None})
        assert ear.data == b"".join(events)
        assert ear.tokens == 2
        assert ear.end == (Usage(3, 2), None, None)
        assert all(resumable for _, _, resumable in ear.frames)
        assert server.bodies[-1] == {
            **CHAT, "model": "Qwen", "stream": True, "top_k": 5, "stream_options": {"include_usage": True},
        }  # fmt: skip


async def test_only_fields_that_the_flavour_knows_are_forwarded() -> None:
    """A strict server answers 400 to a field of another; a careless one does something else."""
    async with scripted([{"id": "m", "owned_by": "somebody"}]) as server, engine_at(server.url) as engine:
        server.streams(delta("x", "stop"), DONE)
        await run(engine, {**CHAT, "stream": True, "top_k": 5, "seed": 1})
        assert server.bodies[-1].keys() == {"messages", "model", "seed", "stream", "stream_options"}


@pytest.mark.parametrize(
    "event",
    [delta(None, tool_calls=[{"index": 0, "function": {"name": "f"}}]), delta(None, reasoning_content="Hm")],
)
async def test_what_cannot_be_spliced_is_marked(event: bytes) -> None:
    """Half a tool call or a hidden thought cannot be handed to another engine as text."""
    async with scripted([VLLM]) as server, engine_at(server.url) as engine:
        server.streams(delta("a", tool_calls=[], reasoning_content=None), event, delta("b", "stop"), DONE)
        ear = await run(engine, {**CHAT, "stream": True})
        first, *_, last = ear.frames
        if len(ear.frames) > 1:
            assert first[2]
        assert not last[2]


async def test_a_stream_that_ends_too_early_is_lost_whatever_the_way() -> None:
    """Half an answer must never pass for a whole one: the rest can come from another engine."""
    async with scripted([VLLM]) as server, engine_at(server.url) as engine:
        for cut in (False, True):
            server.streams(delta("a"), delta("b"), b"data: {", cut=cut)
            ear = await run(engine, {**CHAT, "stream": True})
            assert ear.end is not None
            assert (ear.end[0], ear.end[1]) == (Usage(0, 2), Fault.LOST) if not cut else (Usage(), Fault.LOST)
            assert ear.data == delta("a") + delta("b")


async def test_an_answer_that_is_complete_survives_a_cut_after_it() -> None:
    """Nothing is missing, so nothing is repeated."""
    async with scripted([VLLM]) as server, engine_at(server.url) as engine:
        server.streams(delta("a"), delta(None, "stop"), cut=True)
        ear = await run(engine, {**CHAT, "stream": True})
        assert ear.end == (Usage(0, 1), None, None)


@pytest.mark.parametrize(
    ("event", "fault", "kind"),
    [
        (b'data: {"error":{"message":"boom /usr/lib/x.py","code":500}}\n\n', Fault.BROKEN, UpstreamError),
        (b'data: {"error": {"message": "no", "type": "BadRequestError"}}\n\n', Fault.REJECTED, BadRequest),
        (b'data: {"object":"error","message":"bad","code":400}\r\n\r\n', Fault.REJECTED, BadRequest),
        (b'error: {"error":{"code":500,"message":"x"}}\n\n', Fault.BROKEN, UpstreamError),
    ],
)  # fmt: skip
async def test_an_error_inside_a_stream_ends_it_and_is_not_relayed(
    event: bytes, fault: Fault, kind: type[GroundswellError]
) -> None:
    """The client gets one error of ours, or the rest from another engine; never the engine's own."""
    async with scripted([VLLM]) as server, engine_at(server.url) as engine:
        server.streams(delta("a") + event + delta("never"))
        ear = await run(engine, {**CHAT, "stream": True})
        assert ear.end is not None
        assert (ear.end[1], type(ear.end[2])) == (fault, kind)
        assert ear.data == delta("a")


@pytest.mark.parametrize(
    ("status", "answer", "fault", "kind", "code"),
    [
        (400, {"error": {"message": "This model's maximum context length is 10 tokens.", "code": 400}},
         Fault.REJECTED, BadRequest, "context_length_exceeded"),
        (400, {"error": {"message": "too long", "type": "exceed_context_size_error", "code": 400}},
         Fault.REJECTED, BadRequest, "context_length_exceeded"),
        (400, {"object": "error", "message": "bad seed", "param": "seed"}, Fault.REJECTED, BadRequest,
         "invalid_request"),
        (422, {"detail": [{"loc": ["body"]}]}, Fault.REJECTED, BadRequest, "invalid_request"),
        (404, {"error": "model 'x' not found"}, Fault.REJECTED, NotFound, "model_not_found"),
        (404, b"Not Found", Fault.BROKEN, UpstreamError, "upstream_error"),
        (401, {"error": {"message": "key"}}, Fault.BROKEN, UpstreamError, "upstream_error"),
        (429, {"error": {"message": "slow"}}, Fault.BROKEN, UpstreamError, "upstream_error"),
        (503, b"", Fault.BROKEN, UpstreamError, "upstream_error"),
        (500, b"<html>traceback", Fault.BROKEN, UpstreamError, "upstream_error"),
    ],
)  # fmt: skip
async def test_statuses_say_whose_fault_it_is(
    status: int, answer: Any, fault: Fault, kind: type[GroundswellError], code: str
) -> None:
    """A wrong request must not wander from node to node; a sick engine must not spoil a good request."""
    async with scripted([VLLM]) as server, engine_at(server.url) as engine:
        server.says("/v1/chat/completions", answer, status, "Retry-After: 7\r\n")
        for streams in (True, False):
            ear = await run(engine, {**CHAT, "stream": streams})
            assert ear.frames == []
            assert ear.end is not None
            _, got, error = ear.end
            assert (got, type(error)) == (fault, kind)
            assert error is not None
            assert error.code == code
            assert error.retry_after_s == (7.0 if status in (429, 503, 500) else None)


async def test_messages_of_engines_are_cleaned() -> None:
    """No path or address of a machine owner's network goes to a client."""
    async with scripted([VLLM]) as server, engine_at(server.url) as engine:
        said = "bad file /home/me/x.gguf at http://10.0.0.7:8000/v1 on 10.0.0.7\n" + "x" * 9999
        server.says("/v1/chat/completions", {"error": {"message": said}}, 400)
        ear = await run(engine, CHAT)
        assert ear.end is not None
        assert ear.end[2] is not None
        message = ear.end[2].message
        assert "10.0.0.7" not in message
        assert "/home" not in message
        assert len(message) <= 500


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": {"code": 500, "message": "Failed to parse tool call arguments as JSON: line 1, column 9",
                    "type": "server_error"}},
         "The engine failed: Failed to parse tool call arguments as JSON: line 1, column 9"),
        ({"error": {"message": "out of memory at /srv/x.cu on 10.0.0.7"}},
         "The engine failed: out of memory at … on …"),
        ({"detail": 'Traceback (most recent call last):\n File "x.py", line 3'}, "The engine failed."),
        (b"Internal Server Error", "The engine failed."),
    ],
)  # fmt: skip
async def test_an_engine_that_fails_says_why_in_its_own_words(answer: Any, said: str, streams: bool) -> None:
    """Malformed tool calls are the model's doing: only the engine knows what was wrong with them."""
    async with scripted([VLLM]) as server, engine_at(server.url) as engine:
        server.says("/v1/chat/completions", answer, 500)
        ear = await run(engine, {**CHAT, "stream": streams})
        assert ear.end is not None
        assert ear.end[2] is not None
        assert (ear.end[1], ear.end[2].message) == (Fault.BROKEN, said)


async def test_a_whole_answer_and_embeddings_bring_their_usage() -> None:
    """Requests that do not stream are settled as well."""
    async with scripted([VLLM]) as server, engine_at(server.url) as engine:
        answer = {
            "choices": [{"message": {"content": "x" * 600_000}}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 9},
        }
        server.says("/v1/chat/completions", answer)
        ear = await run(engine, CHAT)
        assert msgspec.json.decode(ear.data) == answer
        assert [tokens for _, tokens, _ in ear.frames] == [0, 0, 9]
        assert ear.end == (Usage(1, 9), None, None)
        server.says("/v1/embeddings", {"data": [], "usage": {"prompt_tokens": 4, "total_tokens": 4}})
        ear = await run(engine, {"input": "a", "dimensions": 2, "user": None}, Kind.EMBEDDING)
        assert ear.end == (Usage(4, 0), None, None)
        assert server.bodies[-1] == {"input": "a", "dimensions": 2, "model": "Qwen"}
        server.says("/v1/chat/completions", b'{"choices": [')
        assert (await run(engine, CHAT)).end[1] is Fault.BROKEN  # type: ignore[index]


async def test_an_engine_that_is_not_there_is_lost_not_broken() -> None:
    """A dead engine says nothing about the work; the work goes elsewhere."""
    async with scripted([VLLM]) as server:
        engine = OpenAIHttpEngine("e", server.url)
        capability = (await engine.probe()).capabilities[0]
    await asyncio.sleep(0.01)
    ear = Ear()
    engine.start(capability, Payload(Kind.CHAT, dict(CHAT)), ear)
    await asyncio.wait_for(ear.over.wait(), 5)
    assert ear.end is not None
    assert ear.end[1] is Fault.LOST
    await engine.close()


def test_tokens_are_counted_where_text_is_and_not_where_it_is_quoted() -> None:
    """A model that talks about JSON must not be billed twice."""
    assert content_tokens(delta('{"content":"x"}') + delta("") + delta(None)) == 1
    assert content_tokens(b'data: {"choices": [{"text": "a"}]}\n\ndata: {"choices": [{"text": ""}]}\n\n') == 1
    assert content_tokens(b'data: {"logprobs":{"content":[{"token":"a"}]},"delta":{"content":"a"}}\n\n') == 1
    assert content_tokens(b'data: {"delta":{"reasoning_content":"hm"}}\n\n') == 0


# --- real servers ---


async def test_continuing_our_own_engine_gives_exactly_the_rest() -> None:
    """Chat and plain completions, seeds and penalties included: one text, wherever it is cut."""
    async with process_of(*emulated()) as (url, _), engine_at(url) as engine:
        for kind, base in ((Kind.CHAT, CHAT), (Kind.COMPLETION, {"prompt": "Once upon"})):
            body = {**base, "seed": 3, "presence_penalty": 1.0, "ignore_eos": True, "stream": True}
            whole = await run(engine, {**body, "max_tokens": 30}, kind)
            begun = await run(engine, {**body, "max_tokens": 11}, kind)
            emitted = Emitted(begun.text, begun.tokens)
            rest = await run(engine, {**body, "max_tokens": 19}, kind, emitted)
            assert (begun.tokens, rest.tokens) == (11, 19)
            assert begun.text + rest.text == whole.text


async def test_a_killed_engine_is_a_lost_attempt_at_once_and_cancel_frees_its_slot() -> None:
    """The next attempt can only begin when this one is known to be over."""
    async with process_of(*emulated(speed=1)) as (url, process), engine_at(url) as engine:
        capability = (await engine.probe()).capabilities[0]
        body = {**CHAT, "stream": True, "max_tokens": 5000, "ignore_eos": True}
        first, second = Ear(), Ear()
        cancelled = engine.start(capability, Payload(Kind.CHAT, dict(body)), first)
        engine.start(capability, Payload(Kind.CHAT, dict(body)), second)
        await asyncio.wait_for(asyncio.gather(first.begun.wait(), second.begun.wait()), 10)
        cancelled.cancel()
        heard = len(first.frames)
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.wait_for(second.over.wait(), 2)
        assert second.end is not None
        assert second.end[1] is Fault.LOST
        assert len(first.frames) == heard
        assert first.end is None


@pytest.fixture(scope="module")
def llama_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not LLAMA_SERVER.exists():
        pytest.skip(f"no llama.cpp server at {LLAMA_SERVER}: run tests/llama/build.sh, or set LLAMA_SERVER")
    path = tmp_path_factory.mktemp("llama") / "builtin.gguf"
    subprocess.run([sys.executable, ROOT / "tests/llama/make_gguf.py", path], check=True)
    return path


def llama(model: Path) -> tuple[str, ...]:
    place = ("--host", "127.0.0.1", "--port", "0")
    return (str(LLAMA_SERVER), "-m", str(model), *place, "-c", "4096", "-np", "4", "--threads", "1")


@pytest.mark.e2e
async def test_a_real_llama_cpp_server_is_probed_and_continued(llama_model: Path) -> None:
    """A real engine, real weights: greedy text goes on after a seam as it would have without one."""
    async with (
        process_of(*llama(llama_model)) as (url, _),
        engine_at(url, aliases={"m": str(llama_model)}) as engine,
    ):
        info = await engine.probe()
        assert info.flavour == "llamacpp"
        assert info.slots == 4
        (model,) = info.capabilities
        assert (model.model, model.context_tokens, model.continuation) == ("m", 1024, Continuation.TEXT)
        for kind, base in ((Kind.CHAT, CHAT), (Kind.COMPLETION, {"prompt": "Groundswell turns any set of"})):
            body = {**base, "temperature": 0, "stream": True, "ignore_eos": True}
            whole = await run(engine, {**body, "max_tokens": 40}, kind)
            assert whole.end is not None
            assert whole.end[1] is None
            assert whole.end[0].output_tokens == whole.tokens == 40
            for cut in (1, 7, 23):
                begun = await run(engine, {**body, "max_tokens": cut}, kind)
                emitted = Emitted(begun.text, begun.tokens)
                rest = await run(engine, {**body, "max_tokens": 40 - cut}, kind, emitted)
                assert begun.text + rest.text == whole.text


@pytest.mark.e2e
async def test_two_llama_cpp_servers_with_one_model_share_its_fingerprint(llama_model: Path) -> None:
    """Otherwise no stream could move between two boxes that run the same file."""
    async with process_of(*llama(llama_model)) as (first, _), process_of(*llama(llama_model)) as (second, _):
        async with engine_at(first) as a, engine_at(second) as b:
            one, other = (await a.probe()).capabilities[0], (await b.probe()).capabilities[0]
        assert one.fingerprint == other.fingerprint
        assert one.fingerprint.startswith("probed-")
