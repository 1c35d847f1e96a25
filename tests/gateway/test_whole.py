"""The front door with all that is behind it: relay, link, nodes, emulated engines in processes."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import openai
import pytest
from scripted_works import KEY, Ring

from groundswell.bus.memory import MemoryLink
from groundswell.core.agent import Agent
from groundswell.core.contract import Finish
from groundswell.core.dispatch import Dispatcher
from groundswell.engines.openai_http import OpenAIHttpEngine
from groundswell.gateway.app import Operations, application
from groundswell.gateway.openai import TextPaths
from groundswell.gateway.pipeline import Pipeline
from groundswell.gateway.relay import Relay
from groundswell.gateway.server import Server
from groundswell.model.work import Work
from groundswell.node.runtime import EngineSpec, NodeRuntime

pytestmark = pytest.mark.e2e
MESSAGES: Any = [{"role": "user", "content": "tell me something long"}]
MODEL = "emulated-8b"


def _engine_argv() -> tuple[str, ...]:
    return (sys.executable, "-m", "groundswell.engines.emulated", "--model", MODEL)


class Whole:
    """Two nodes with one engine each, and how their works ended."""

    def __init__(
        self, relay: Relay, nodes: list[NodeRuntime], url: str, ends: list[tuple[Work, Finish]]
    ) -> None:
        self.relay, self.nodes, self.url, self.ends = relay, nodes, url, ends

    def serving(self) -> NodeRuntime:
        """The node that runs an attempt now."""
        return next(node for node in self.nodes if node.attempts())


@pytest.fixture
async def whole() -> AsyncIterator[Whole]:
    link = MemoryLink()
    ends: list[tuple[Work, Finish]] = []
    relay = Relay(
        Dispatcher(),
        link.gateway,
        lambda: secrets.randbits(64),
        lambda work, finish: ends.append((work, finish)),
    )
    nodes = []
    for name in ("a", "b"):
        spec = EngineSpec("emulated", partial(OpenAIHttpEngine, "emulated"), argv=_engine_argv())
        nodes.append(NodeRuntime(Agent(name, 1, {"emulated": 0}), [spec], link.node(name)))
        nodes[-1].start()
    pipeline = Pipeline(Ring())
    text = TextPaths(relay, pipeline)

    async def nothing(_what: Any) -> Any:
        return None

    operations = Operations(
        relay.nodes, lambda: relay.queued, lambda: (b"", "text/plain"), nothing, nothing, nothing
    )
    server = Server(application(operations, pipeline), text.paths, drain_s=1)
    port = await server.start()
    async with asyncio.timeout(60):
        while sum(engine.healthy for view in relay.nodes() for engine in view.report.engines) < 2:
            await asyncio.sleep(0.05)
    yield Whole(relay, nodes, f"http://127.0.0.1:{port}/v1", ends)
    await server.stop()
    await asyncio.gather(*(node.stop(1.0) for node in nodes))
    relay.close()


async def test_a_stream_outlives_the_engine_that_served_it(whole: Whole) -> None:
    """The promise of the whole: killed in the middle, nothing lost, nothing doubled, the books in order."""
    asked: Any = {
        "model": MODEL,
        "messages": MESSAGES,
        "max_tokens": 120,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": {"ignore_eos": True},
    }
    async with openai.AsyncOpenAI(api_key=KEY, base_url=whole.url, max_retries=0) as client:
        undisturbed = [event async for event in await client.chat.completions.create(**asked)]
        broken: list[Any] = []
        async for event in await client.chat.completions.create(**asked):
            broken.append(event)
            if len(broken) == 40:
                os.kill(whole.serving().pids()["emulated"], signal.SIGKILL)
    texts = [
        "".join(event.choices[0].delta.content or "" for event in events if event.choices)
        for events in (undisturbed, broken)
    ]
    assert texts[0] == texts[1]
    assert broken[-1].usage == undisturbed[-1].usage
    assert broken[-2].choices[0].finish_reason == undisturbed[-2].choices[0].finish_reason == "length"
    assert len({event.id for event in broken}) == 1
    assert {event.model for event in broken} == {MODEL}
    assert [finish.continued for _, finish in whole.ends] == [0, 1]
    assert whole.ends[0][1].usage == whole.ends[1][1].usage


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_abort_frees_the_engine_within_a_second(whole: Whole, streaming: bool) -> None:
    """A closed connection travels through relay, link and node to the engine."""
    async with openai.AsyncOpenAI(api_key=KEY, base_url=whole.url, max_retries=0) as client:
        call = asyncio.create_task(
            client.chat.completions.create(
                model=MODEL,
                messages=MESSAGES,
                max_tokens=4000,
                stream=streaming,
                extra_body={"ignore_eos": True},
            )
        )
        async with asyncio.timeout(5):
            while not any(node.attempts() for node in whole.nodes):
                await asyncio.sleep(0.01)
        if streaming:
            await (await call).close()
        else:
            call.cancel()
        async with asyncio.timeout(1):
            while any(node.attempts() for node in whole.nodes):
                await asyncio.sleep(0.01)
    assert whole.relay.open_works == 0


async def test_errors_of_the_brain_and_of_the_engine_reach_the_client(whole: Whole) -> None:
    """Unknown models and prompts that no context holds are the client's to mend."""
    async with openai.AsyncOpenAI(api_key=KEY, base_url=whole.url, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="nobody", messages=MESSAGES)
        assert unknown.value.code == "model_not_found"
        long: Any = [{"role": "user", "content": "word " * 200_000}]
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model=MODEL, messages=long)
        answer = await client.completions.create(model=MODEL, prompt="Once", max_tokens=5)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
        assert answer.model == MODEL
