"""The stock openai client against the gateway: what its users see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from scripted_works import KEY, VIDEO_KEY, Gateway, chunk, usage_chunk

from groundswell.core.contract import Reason
from groundswell.model.errors import BadRequest, InternalError
from groundswell.model.work import Work
from groundswell.ports import Exchange

MESSAGES: Any = [{"role": "user", "content": "hello"}]
ANSWER = (
    b'{"id":"chatcmpl-9","object":"chat.completion","created":1,"model":"engine/llama","timings":{"x":1},'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"hi \\"model\\":\\"engine/llama\\""},'
    b'"finish_reason":"stop","stop_reason":7}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=gateway.url + "/v1", max_retries=0) as client:
        yield client


async def test_an_answer_comes_in_one_piece_under_the_public_model_name(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    """Engine names and engine-only fields are nobody's business outside."""

    def play(work: Work, _exchange: Exchange) -> None:
        gateway.script.offer(work)
        gateway.script.send(work, ANSWER[:40])
        gateway.script.send(work, ANSWER[40:])
        gateway.script.done(work)

    gateway.script.play = play
    response = await client.chat.completions.with_raw_response.create(model="llama", messages=MESSAGES)
    answer = response.parse()
    assert answer.model == "llama"
    assert answer.choices[0].message.content == 'hi "model":"engine/llama"'
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5
    assert "timings" not in response.text
    assert "stop_reason" not in response.text
    assert response.headers["x-request-id"].startswith("req_")
    assert int(response.headers["openai-processing-ms"]) >= 0
    work = gateway.script.works[0]
    assert (work.tenant, work.model, work.streaming) == ("acme", "llama", False)
    assert gateway.seen[-1].key_id == "key_1"


async def test_a_stream_ends_with_its_finish_the_usage_and_done(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    """Merging or reordering these broke real clients elsewhere."""
    script = gateway.script

    def play(work: Work, _exchange: Exchange) -> None:
        script.offer(work)
        script.send(work, chunk({"role": "assistant", "content": ""}), tokens=0)
        script.send(work, chunk({"content": "Hel"}) + chunk({"content": "lo"}), tokens=2)
        script.send(work, chunk({}, "stop", timings={"a": 1}), tokens=0)
        script.send(work, usage_chunk(7, 2) + b"data: [DONE]\n\n", tokens=0)
        script.done(work)

    script.play = play
    stream = await client.chat.completions.create(
        model="llama", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    events = [event async for event in stream]
    assert [event.choices[0].delta.content for event in events[:3]] == ["", "Hel", "lo"]
    assert events[-2].choices[0].finish_reason == "stop"
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.total_tokens == 9
    assert {(event.id, event.model) for event in events} == {("chatcmpl-1", "llama")}


async def test_usage_that_was_not_asked_for_is_not_sent(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    """The gateway always asks engines for usage; other clients do not expect a chunk without choices."""
    script = gateway.script

    def play(work: Work, _exchange: Exchange) -> None:
        script.offer(work)
        script.send(work, chunk({"content": "x"}), tokens=1)
        script.send(work, chunk({}, "stop") + usage_chunk(7, 2), tokens=0)
        script.done(work)

    script.play = play
    stream = await client.chat.completions.create(model="llama", messages=MESSAGES, stream=True)
    events = [event async for event in stream]
    assert [event.choices[0].delta.content for event in events] == ["x", None]
    assert all(event.usage is None for event in events)


@pytest.mark.parametrize(
    ("reason", "error", "wanted"),
    [
        (Reason.UNKNOWN_MODEL, None, openai.NotFoundError),
        (
            Reason.REJECTED,
            BadRequest("prompt too long", code="context_length_exceeded"),
            openai.BadRequestError,
        ),
        (Reason.POISON, None, openai.UnprocessableEntityError),
        (Reason.QUEUE_FULL, None, openai.InternalServerError),
        (Reason.NO_NODE, None, openai.InternalServerError),
        (Reason.DEADLINE, None, openai.InternalServerError),
        (Reason.EXHAUSTED, None, openai.InternalServerError),
        (Reason.CANCELLED, None, openai.InternalServerError),
        ("shutting_down", None, openai.InternalServerError),
        ("internal_error", InternalError("It broke."), openai.InternalServerError),
        ("who_knows", None, openai.InternalServerError),
    ],
)
async def test_each_end_that_is_not_done_is_the_clients_exception(
    gateway: Gateway, client: openai.AsyncOpenAI, reason: str, error: Any, wanted: type[openai.APIStatusError]
) -> None:
    """Status, code and the four keys are what the client builds its exception from."""
    gateway.script.play = lambda work, _exchange: gateway.script.fail(work, reason, error, retry_after_s=20.0)
    with pytest.raises(wanted) as caught:
        await client.chat.completions.create(model="llama", messages=MESSAGES)
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    headers = caught.value.response.headers
    assert "x-request-id" in headers
    if caught.value.status_code in (502, 503, 504):
        # 20 s from the brain, which has spread it already; ends without a forecast ask for a second or two.
        low, high = (1_000, 3_000) if reason in (Reason.CANCELLED, "shutting_down") else (20_000, 20_000)
        assert low <= int(headers["retry-after-ms"]) <= high
        assert low <= int(headers["retry-after"]) * 1_000 <= high
    else:
        assert headers["x-should-retry"] == "false"


async def test_a_key_decides_what_may_be_done(gateway: Gateway) -> None:
    """Wrong, missing and insufficient keys are told apart; none of them makes a work."""
    for key, wanted in (("gsw_no", openai.AuthenticationError), (VIDEO_KEY, openai.PermissionDeniedError)):
        async with openai.AsyncOpenAI(api_key=key, base_url=gateway.url + "/v1", max_retries=0) as client:
            with pytest.raises(wanted):
                await client.chat.completions.create(model="llama", messages=MESSAGES)
            with pytest.raises(wanted):
                await client.models.list()
    assert gateway.script.works == []


async def test_a_key_that_is_not_cached_is_looked_up(gateway: Gateway) -> None:
    """The hot path does not wait for the store unless it has to."""
    gateway.script.play = lambda work, _exchange: gateway.script.fail(work, Reason.UNKNOWN_MODEL)
    async with openai.AsyncOpenAI(api_key="gsw_late", base_url=gateway.url + "/v1", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="llama", messages=MESSAGES)
    assert gateway.ring.asked == 1


async def test_an_error_in_mid_stream_is_raised_by_the_client(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    """After the 200 the only way to say that something failed is one error event."""
    script = gateway.script

    def play(work: Work, _exchange: Exchange) -> None:
        script.offer(work)
        script.send(work, chunk({"content": "x"}))
        script.fail(work, Reason.NOT_RESUMABLE)

    script.play = play
    stream = await client.chat.completions.create(model="llama", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "stream_interrupted"


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_leaves_frees_the_engine(
    gateway: Gateway, client: openai.AsyncOpenAI, streaming: bool
) -> None:
    """Waiting or streaming, whole answer or not: who does not listen must not cost."""
    script = gateway.script

    def play(work: Work, _exchange: Exchange) -> None:
        script.offer(work)
        if streaming:
            script.send(work, chunk({"content": "x"}))

    script.play = play
    call = asyncio.create_task(
        client.chat.completions.create(model="llama", messages=MESSAGES, stream=streaming)  # type: ignore[call-overload]
    )
    await asyncio.wait_for(script.submitted.wait(), 5)
    if streaming:
        stream = await call
        await stream.close()
    else:
        call.cancel()
    await asyncio.wait_for(script.was_cancelled.wait(), 1)
    assert script.cancelled == [script.works[0].id]
    await asyncio.sleep(0)
    assert gateway.seen[-1].code == "client_closed"


async def test_models_and_one_model(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    """Only what a healthy engine offers is listed."""
    assert [model.id async for model in client.models.list()] == ["llama"]
    assert (await client.models.retrieve("llama")).owned_by == "groundswell"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gone")


async def test_embeddings_pass_through(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    """The client asks for base64 by itself; the body reaches the engine as it was."""
    script = gateway.script

    def play(work: Work, _exchange: Exchange) -> None:
        script.offer(work)
        script.send(
            work,
            b'{"object":"list","model":"x","data":[{"object":"embedding","index":0,"embedding":[0.5,1]}],'
            b'"usage":{"prompt_tokens":2,"total_tokens":2}}',
        )
        script.done(work)

    script.play = play
    answer = await client.embeddings.create(model="mini", input=["a", "b"])
    assert answer.data[0].embedding == [0.5, 1.0]
    assert answer.model == "mini"
    assert script.payloads[0].body["input"] == ["a", "b"]
