"""Relay, link, two nodes and their real engine processes: what the main promise rests on.

A stream's engine is killed or stopped in the middle; the text that the client was sent must be the text of
the undisturbed run, byte for byte.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import pytest

from groundswell.bus.memory import MemoryLink
from groundswell.core.agent import Agent
from groundswell.core.contract import Finish
from groundswell.core.dispatch import Dispatcher
from groundswell.engines.openai_http import OpenAIHttpEngine
from groundswell.gateway.relay import Relay
from groundswell.model.errors import GroundswellError
from groundswell.model.messages import Offer, Output
from groundswell.model.work import Kind, Work, WorkState
from groundswell.node.processes import EngineProcess
from groundswell.node.runtime import EngineSpec, NodeRuntime
from groundswell.ports import Emitted, Payload
from groundswell.wire.sse import payloads

TOKENS = 60
SPEED = 1.0
BODY: dict[str, Any] = {
    "model": "em", "messages": [{"role": "user", "content": "Tell me of the sea."}], "seed": 7,
    "stream": True, "ignore_eos": True, "max_tokens": TOKENS, "presence_penalty": 0.5,
}  # fmt: skip


@dataclass
class Client:
    """The front door's half of a stream, as plain as can be: it keeps the text and asks to go on after it."""

    on_token: Callable[[int], None] = lambda count: None
    text: str = ""
    tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    end: Finish | None = None
    error: GroundswellError | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    gap_s_max: float = 0.0
    last_s: float = 0.0

    def payload(self, offer: Offer) -> Payload:
        if not offer.emitted_tokens:
            return Payload(Kind.CHAT, BODY)
        assert offer.emitted_tokens == self.tokens
        body = {**BODY, "max_tokens": TOKENS - offer.emitted_tokens}
        return Payload(Kind.CHAT, body, emitted=Emitted(self.text, self.tokens))

    def deliver(self, output: Output, data: bytes) -> None:
        now_s = asyncio.get_running_loop().time()
        self.gap_s_max = max(self.gap_s_max, now_s - self.last_s) if self.last_s else 0.0
        self.last_s = now_s
        for event in payloads(data):
            for choice in [] if event == b"[DONE]" else msgspec.json.decode(event)["choices"]:
                self.text += choice["delta"].get("content") or ""
                if choice["finish_reason"]:
                    self.finish_reasons.append(choice["finish_reason"])
        self.tokens += output.tokens
        self.on_token(self.tokens)

    def finish(self, finish: Finish, error: GroundswellError | None) -> None:
        assert self.end is None, "a work ends once"
        self.end, self.error = finish, error
        self.over.set()


@dataclass
class Rig:
    relay: Relay
    nodes: dict[str, NodeRuntime]
    settled: list[tuple[Work, Finish]]
    works: int = 0

    async def ready(self, engines: int) -> None:
        """Wait until this many engines are up."""
        async with asyncio.timeout(60):
            while sum(e.healthy for view in self.relay.nodes() for e in view.report.engines) < engines:
                await asyncio.sleep(0.02)

    def submit(self, client: Client) -> str:
        self.works += 1
        now_s = asyncio.get_running_loop().time()
        work = Work(
            f"w{self.works}", Kind.CHAT, "em", "tenant", now_s + 30, prompt_tokens=10,
            output_tokens_max=TOKENS, streaming=True, resumable=True,
        )  # fmt: skip
        self.relay.submit(work, client)
        return work.id

    def serving_pid(self, work_id: str) -> int:
        """The process that runs this work now."""
        node = next(node for node in self.nodes.values() if any(key[0] == work_id for key in node.attempts()))
        return node.pids()["e"]

    def struck_at(self, token: int, fault: signal.Signals) -> Client:
        """A client whose engine is sent a signal, once, when it was sent so many tokens."""
        faults = [fault]

        def strike(count: int) -> None:
            if count == token and faults:
                os.kill(self.serving_pid(f"w{self.works}"), faults.pop())

        return Client(strike)

    async def stream(self, client: Client) -> Client:
        self.submit(client)
        await asyncio.wait_for(client.over.wait(), 60)
        return client


def emulated(*options: str) -> tuple[str, ...]:
    command = (sys.executable, "-m", "groundswell.engines.emulated", "--model", "em", "--speed", str(SPEED))
    return (*command, *options)


@asynccontextmanager
async def rig_of(count: int) -> AsyncIterator[Rig]:
    link = MemoryLink()
    settled: list[tuple[Work, Finish]] = []
    relay = Relay(
        Dispatcher(), link.gateway, partial(random.Random(1).getrandbits, 64),
        lambda work, finish: settled.append((work, finish)),
    )  # fmt: skip
    nodes = {}
    for name in [f"n{number}" for number in range(count)]:
        spec = EngineSpec("e", partial(OpenAIHttpEngine, "e"), emulated())
        nodes[name] = NodeRuntime(
            Agent(name, 1, {"e": 0}), [spec], link.node(name), probe_every_s=0.5, probe_timeout_s=0.7
        )
        nodes[name].start()
    rig = Rig(relay, nodes, settled)
    try:
        await rig.ready(count)
        yield rig
    finally:
        await asyncio.gather(*(node.stop(drain_timeout_s=0.2) for node in nodes.values()))
        relay.close()


@pytest.mark.e2e
async def test_a_stream_survives_the_death_of_its_engine_and_loses_nothing() -> None:
    """Killed (-9) or stopped at random tokens: the client reads what it would have read anyway."""
    chance = random.Random(2)
    async with rig_of(2) as rig:
        plain = await rig.stream(Client())
        assert plain.end is not None
        assert plain.end.state is WorkState.DONE
        assert plain.tokens == TOKENS
        for fault in (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP):
            await rig.ready(2)
            struck = await rig.stream(rig.struck_at(chance.randrange(1, TOKENS - 5), fault))
            assert struck.end is not None
            assert struck.end.state is WorkState.DONE, struck.end
            assert struck.end.continued == 1
            assert struck.text == plain.text
            assert struck.tokens == TOKENS
            assert struck.finish_reasons == ["length"]
            assert struck.gap_s_max < (2.0 if fault is signal.SIGKILL else 5.0)
            assert struck.end.usage.output_tokens == TOKENS
        assert await rig.relay.drain(1)
    assert [finish.state for _, finish in rig.settled] == [WorkState.DONE] * 4


@pytest.mark.e2e
async def test_a_stream_waits_for_the_only_engine_to_come_back() -> None:
    """With one machine there is nowhere else to go; the stream pauses while its engine starts again."""
    async with rig_of(1) as rig:
        plain = await rig.stream(Client())
        struck = await rig.stream(rig.struck_at(20, signal.SIGKILL))
        assert struck.end is not None
        assert struck.end.state is WorkState.DONE, struck.end
        assert struck.end.continued == 1
        assert struck.text == plain.text


@pytest.mark.e2e
async def test_engines_given_by_url_fail_over_alike_and_return_when_they_are_back() -> None:
    """Somebody else's server is nothing that we can restart; it is asked again until it answers."""
    link = MemoryLink()
    relay = Relay(Dispatcher(), link.gateway, partial(random.Random(1).getrandbits, 64), lambda *_: None)
    servers = [EngineProcess(f"e{number}", emulated(), lambda status: None) for number in range(2)]
    ports = [await server.start() for server in servers]
    nodes = {}
    for number, port in enumerate(ports):
        spec = EngineSpec("e", partial(OpenAIHttpEngine, "e"), url=f"http://127.0.0.1:{port}/v1")
        nodes[f"n{number}"] = NodeRuntime(Agent(f"n{number}", 1, {"e": 0}), [spec], link.node(f"n{number}"))
        nodes[f"n{number}"].start()
    rig = Rig(relay, nodes, [])
    try:
        await rig.ready(2)
        plain = await rig.stream(Client())

        def strike(count: int) -> None:
            if count == 20 and all(server.alive for server in servers):
                serving = next(n for n, node in enumerate(nodes.values()) if node.attempts())
                servers[serving].kill()

        struck = await rig.stream(Client(strike))
        assert struck.end is not None
        assert struck.end.state is WorkState.DONE
        assert struck.text == plain.text
        (down,) = [n for n, server in enumerate(servers) if not server.alive]
        servers[down] = EngineProcess("again", (*emulated(), "--port", str(ports[down])), lambda status: None)
        await servers[down].start()
        await rig.ready(2)
    finally:
        await asyncio.gather(*(node.stop(drain_timeout_s=0.2) for node in nodes.values()))
        await asyncio.gather(*(server.stop(1.0) for server in servers))
        relay.close()


@pytest.mark.e2e
async def test_an_engine_that_dies_or_hangs_is_started_again() -> None:
    """A machine that loses its engine for good after one crash would be lost to the network."""
    async with rig_of(1) as rig:
        node = rig.nodes["n0"]
        for fault in (signal.SIGKILL, signal.SIGSTOP):
            before = node.pids()["e"]
            os.kill(before, fault)
            async with asyncio.timeout(30):
                while node.pids().get("e", before) == before:
                    await asyncio.sleep(0.02)
            await rig.ready(1)
            with pytest.raises(ProcessLookupError):
                os.kill(before, 0)
            client = await rig.stream(Client())
            assert client.end is not None
            assert client.end.state is WorkState.DONE


@pytest.mark.e2e
async def test_cancel_frees_the_engine_and_stop_leaves_no_process() -> None:
    """What nobody reads any more must stop costing, and a node that ends leaves nothing running."""
    async with rig_of(1) as rig:
        node = rig.nodes["n0"]
        client = Client(lambda count: rig.relay.cancel("w1") if count == 5 else None)
        await rig.stream(client)
        assert client.end is not None
        assert client.end.state is WorkState.CANCELLED
        assert client.tokens == 5
        assert node.attempts() == []
        pid = node.pids()["e"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert rig.relay.nodes() == []


@pytest.mark.e2e
async def test_a_paused_stream_waits_and_is_not_taken_for_stalled() -> None:
    """A reader that pauses longer than the stall limit must get its stream from the same attempt."""
    async with rig_of(1) as rig:

        def pause(count: int) -> None:
            if count == 10:
                rig.relay.pause("w1")
                asyncio.get_running_loop().call_later(4.5, rig.relay.resume, "w1")

        client = await rig.stream(Client(pause))
        assert client.end is not None
        assert client.end.state is WorkState.DONE
        assert client.end.attempts == 1
        assert client.tokens == TOKENS
        assert client.gap_s_max > 4


@pytest.mark.e2e
async def test_a_node_that_drains_ends_what_runs_and_takes_nothing_new() -> None:
    """Updating a machine must not break the streams on it."""
    async with rig_of(2) as rig:
        clients = [Client() for _ in range(4)]
        for client in clients:
            rig.submit(client)
        while not all(client.tokens for client in clients):
            await asyncio.sleep(0.01)
        await rig.nodes["n0"].stop()
        assert [view.report.node_id for view in rig.relay.nodes()] == ["n1"]
        await asyncio.wait_for(asyncio.gather(*(client.over.wait() for client in clients)), 30)
        assert all(client.end and client.end.attempts == 1 for client in clients)
        assert {client.text for client in clients} == {clients[0].text}
