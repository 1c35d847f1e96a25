"""The seam between two attempts of one stream: nothing that was sent is retracted, repeated or skipped."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from scripted_works import KEY, Gateway, Script, chunk, usage_chunk

from groundswell.gateway import exchange as exchange_module
from groundswell.model.errors import GroundswellError, UpstreamError
from groundswell.model.messages import Fault
from groundswell.model.money import Usage
from groundswell.model.work import Work

ASK: dict[str, Any] = {"model": "llama", "stream": True, "messages": [{"role": "user", "content": "hi"}]}


class Stream:
    """A stream that the test drives: the work as submitted, and all that the client got."""

    def __init__(self, gateway: Gateway, **body: Any) -> None:
        self.script: Script = gateway.script
        self._gateway = gateway
        self._body = ASK | body
        self._path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        if "prompt" in body:
            del self._body["messages"]
        self._task: asyncio.Task[httpx.Response] | None = None

    async def begin(self) -> Work:
        self._task = asyncio.create_task(self._read())
        await asyncio.wait_for(self.script.submitted.wait(), 5)
        return self.script.works[0]

    async def _read(self) -> httpx.Response:
        headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine-1"}
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.post(self._gateway.url + self._path, json=self._body, headers=headers)

    async def events(self) -> list[Any]:
        """All events; ``[DONE]`` as that string."""
        assert self._task is not None
        response = await asyncio.wait_for(self._task, 5)
        assert response.headers["x-request-id"] == "mine-1"
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        self.text = response.text
        blocks = [block for block in response.text.split("\n\n") if block and not block.startswith(":")]
        return [
            "[DONE]" if block == "data: [DONE]" else json.loads(block.removeprefix("data: "))
            for block in blocks
        ]


def said(events: list[Any]) -> str:
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or ""
        for event in events
        if event != "[DONE]"
        for choice in event["choices"]
    )


async def test_a_second_attempt_goes_on_under_the_first_ones_name(gateway: Gateway) -> None:
    """One stream for the client: one id, one role, one usage, and the budget that is left."""
    stream = Stream(gateway, max_completion_tokens=10, min_tokens=4, stream_options={"include_usage": True})
    work = await stream.begin()
    script = stream.script
    assert work.resumable
    assert not work.needs_exact_resume
    script.offer(work)
    script.send(work, chunk({"role": "assistant", "content": ""}), tokens=0)
    script.send(work, chunk({"content": "one "}) + chunk({"content": "two \u00fc"}), tokens=3)
    payload = script.offer(work, attempt=2, emitted=3)
    assert payload.emitted is not None
    assert (payload.emitted.text, payload.emitted.tokens) == ("one two ü", 3)
    assert (payload.body["max_tokens"], payload.body["min_tokens"]) == (7, 1)
    assert script.payloads[0].body["max_tokens"] == 10
    other = {"ident": "chatcmpl-other"}
    script.send(work, chunk({"role": "assistant", "content": ""}, **other), tokens=0, attempt=2)
    script.send(work, chunk({"content": "three"}, created=5, **other), attempt=2)
    script.send(work, chunk({}, "stop", **other), tokens=0, attempt=2)
    script.send(work, usage_chunk(99, 1, **other), tokens=0, attempt=2)
    script.done(work, Usage(7, 4), continued=1)
    events = await stream.events()
    assert said(events) == "one two üthree"
    assert {(event["id"], event["created"], event["model"]) for event in events[:-1]} == {
        ("chatcmpl-1", 1700000000, "llama")
    }
    assert sum("role" in choice["delta"] for event in events[:-1] for choice in event["choices"]) == 1
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    assert events[-2]["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize("nonsense", [b"data: hello\n\n", b'data: {"choices": [7]}\n\n'])
async def test_nonsense_that_was_held_to_the_end_is_an_error(gateway: Gateway, nonsense: bytes) -> None:
    """What is only looked at when the work is done must not leave its client waiting for ever."""
    stream = Stream(gateway)
    work = await stream.begin()
    stream.script.offer(work)
    stream.script.send(work, nonsense, tokens=0)
    stream.script.done(work, Usage(7, 0))
    assert stream._task is not None
    response = await asyncio.wait_for(stream._task, 5)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_error"


@pytest.mark.parametrize("answer", [b'{"x": 1}', b'{"choices": null}', b'{"choices": [7]}', b"[]"])
async def test_an_answer_without_choices_is_an_error(gateway: Gateway, answer: bytes) -> None:
    """A client that reads ``choices[0]`` must meet an error that it knows, not a crash of its own."""
    stream = Stream(gateway, stream=False)
    work = await stream.begin()
    stream.script.offer(work)
    stream.script.send(work, answer, tokens=0)
    stream.script.done(work, Usage(7, 0))
    assert stream._task is not None
    response = await asyncio.wait_for(stream._task, 5)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")


async def test_a_restart_before_the_first_content_leaves_no_trace(gateway: Gateway) -> None:
    """The role of an attempt that died before it said anything is not sent; failover is free until then."""
    stream = Stream(gateway)
    work = await stream.begin()
    script = stream.script
    script.offer(work)
    script.send(work, chunk({"role": "assistant", "content": ""}, ident="dead"), tokens=0)
    script.offer(work, attempt=2)
    script.send(work, chunk({"role": "assistant", "content": ""}), tokens=0, attempt=2)
    script.send(work, chunk({"content": "x"}), attempt=2)
    script.done(work)
    events = await stream.events()
    assert [event["id"] for event in events[:-1]] == ["chatcmpl-1"] * 2
    assert "dead" not in stream.text


async def test_a_completion_goes_on_too(gateway: Gateway) -> None:
    """The older endpoint has its text elsewhere."""

    def part(text: str, ident: str) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
        event = {"id": ident, "object": "text_completion", "created": 1, "model": "e", "choices": [choice]}
        return b"data: " + json.dumps(event).encode() + b"\n\n"

    stream = Stream(gateway, prompt="Once")
    work = await stream.begin()
    script = stream.script
    script.offer(work)
    script.send(work, part(" upon", "cmpl-1"))
    payload = script.offer(work, attempt=2, emitted=1)
    assert payload.emitted is not None
    assert payload.emitted.text == " upon"
    script.send(work, part(" a", "cmpl-2"), attempt=2)
    script.done(work)
    events = await stream.events()
    assert said(events) == " upon a"
    assert {event["id"] for event in events[:-1]} == {"cmpl-1"}


async def test_a_stop_string_across_the_seam_ends_the_stream(gateway: Gateway) -> None:
    """The second engine takes the tail for prompt and cannot see it; what was sent stays, no more comes."""
    stream = Stream(gateway, stop=["END"], stream_options={"include_usage": True})
    work = await stream.begin()
    script = stream.script
    script.offer(work)
    script.send(work, chunk({"content": "the E"}), tokens=2)
    script.offer(work, attempt=2, emitted=2)
    script.send(work, chunk({"content": "N"}, ident="b"), attempt=2)
    script.send(work, chunk({"content": "D of it"}, ident="b"), attempt=2)
    events = await stream.events()
    assert said(events) == "the E"
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    assert events[-2]["usage"]["completion_tokens"] > 0
    assert events[-1] == "[DONE]"
    assert script.cancelled == [work.id]


async def test_text_that_only_looked_like_a_stop_string_is_sent(gateway: Gateway) -> None:
    """Held back while it could still become one, and no longer."""
    stream = Stream(gateway, stop="END")
    work = await stream.begin()
    script = stream.script
    script.offer(work)
    script.send(work, chunk({"content": "the E"}), tokens=2)
    script.offer(work, attempt=2, emitted=2)
    script.send(work, chunk({"content": "N"}, ident="b"), attempt=2)
    script.send(work, chunk({"content": "T"}, ident="b"), attempt=2)
    script.send(work, chunk({"content": " END?"}, ident="b"), attempt=2)
    script.done(work)
    assert said(await stream.events()) == "the ENT END?"


async def test_text_held_at_the_seam_is_sent_when_the_stream_ends(gateway: Gateway) -> None:
    """An answer that ends on half a stop string is complete."""
    stream = Stream(gateway, stop="END")
    work = await stream.begin()
    script = stream.script
    script.offer(work)
    script.send(work, chunk({"content": "the E"}), tokens=2)
    script.offer(work, attempt=2, emitted=2)
    script.send(work, chunk({"content": "N"}, ident="b"), attempt=2)
    script.done(work)
    assert said(await stream.events()) == "the EN"


@pytest.mark.parametrize(
    ("sent", "body", "reason"),
    [
        ([chunk({"content": "all"}), chunk({}, "stop")], {}, "stop"),
        ([chunk({"content": "all"})], {"max_tokens": 1}, "length"),
    ],
)
async def test_a_stream_that_lacks_only_its_end_is_ended(
    gateway: Gateway, sent: list[bytes], body: dict[str, Any], reason: str
) -> None:
    """When all was said before the node died, another attempt would say too much."""
    stream = Stream(gateway, **body)
    work = await stream.begin()
    script = stream.script
    script.offer(work)
    for data in sent:
        script.send(work, data)
    with pytest.raises(GroundswellError):
        script.offer(work, attempt=2, emitted=1)
    events = await stream.events()
    assert said(events) == "all"
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, reason]
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("body", [{}, {"logprobs": True}])
async def test_a_stream_that_used_up_its_budget_says_so_once(
    gateway: Gateway, ended: bool, body: dict[str, Any]
) -> None:
    """The engine died between the last token and the finish reason: clients wait for one, also where a stream
    could not have been continued."""
    stream = Stream(gateway, max_completion_tokens=1, **body)
    work = await stream.begin()
    stream.script.offer(work)
    stream.script.send(work, chunk({"content": "all"}))
    if ended:
        stream.script.send(work, chunk({}, "length"), tokens=0)
    stream.script.done(work, Usage(7, 1), fault=Fault.LOST)
    events = await stream.events()
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, "length"]
    assert events[-1] == "[DONE]"


async def test_several_choices_without_their_ends_are_an_error(gateway: Gateway) -> None:
    """A client must not take choices for whole when nobody knows which of them were."""
    stream = Stream(gateway, max_completion_tokens=1, n=2)
    work = await stream.begin()
    stream.script.offer(work)
    stream.script.send(work, chunk({"content": "all"}), tokens=2)
    stream.script.done(work, Usage(7, 2), fault=Fault.LOST)
    events = await stream.events()
    assert events[-1]["error"]["code"] == "stream_interrupted"


async def test_long_streams_are_remembered_as_their_text(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks are fifty times as long as their text; many streams at once must not fill the memory."""
    monkeypatch.setattr(exchange_module, "UNPARSED_BYTES_MAX", 1000)
    stream = Stream(gateway)
    work = await stream.begin()
    script = stream.script
    script.offer(work)
    odd = ('"', "\n", "\\", "é\u2028", "", '"model":"engine/llama"', "\U0001f600", "\\u0041")
    texts = [f"{index} {odd[index % len(odd)]}" for index in range(50)]
    for text in texts:
        script.send(work, chunk({"content": text}))
    payload = script.offer(work, attempt=2, emitted=50)
    assert payload.emitted is not None
    assert payload.emitted.text == "".join(texts)
    script.done(work)
    assert said(await stream.events()) == "".join(texts)


async def test_a_stream_whose_client_is_behind_is_remembered_as_its_text(gateway: Gateway) -> None:
    """Its bytes wait in the connection already; and still it goes on after exactly what was sent."""
    stream = Stream(gateway)
    work = await stream.begin()
    script = stream.script
    script.offer(work)
    exchange = script.exchanges[work.id]
    assert isinstance(exchange, exchange_module.StreamExchange)
    assert exchange._sent is not None
    script.send(work, chunk({"content": "one "}) + chunk({"content": "two "}))
    exchange.pause()
    assert exchange._sent._blocks == []
    exchange.resume()
    script.send(work, chunk({"content": "three"}))
    payload = script.offer(work, attempt=2, emitted=3)
    assert payload.emitted is not None
    assert payload.emitted.text == "one two three"
    script.done(work)
    await stream.events()


async def test_nonsense_found_while_a_client_is_behind_still_ends_the_stream(gateway: Gateway) -> None:
    """Were it forgotten there, another engine would go on after less than was sent."""
    stream = Stream(gateway)
    work = await stream.begin()
    script = stream.script
    script.offer(work)
    exchange = script.exchanges[work.id]
    assert isinstance(exchange, exchange_module.StreamExchange)
    script.send(work, chunk({"content": "one "}))
    script.send(work, chunk({"content": "two"}).replace(b"two", b"\\q"))
    exchange.pause()
    with pytest.raises(UpstreamError):
        script.offer(work, attempt=2, emitted=1)
    assert stream._task is not None
    last = (await asyncio.wait_for(stream._task, 5)).text.removesuffix("\n\n").rpartition("\n\n")[2]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_error"


@pytest.mark.parametrize(
    ("body", "resumable", "exact"),
    [
        ({}, True, False),
        ({"n": 2}, False, False),
        ({"logprobs": True}, False, False),
        ({"response_format": {"type": "json_object"}}, False, False),
        ({"response_format": {"type": "text"}}, True, False),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, True, False),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
            False,
            False,
        ),
        ({"seed": 3}, True, True),
        ({"seed": 3, "temperature": 0}, True, False),
        ({"frequency_penalty": 0.5, "temperature": 0}, True, True),
        ({"prompt": [1, 2, 3]}, False, False),
        ({"prompt": "a", "echo": True}, False, False),
    ],
)
async def test_what_can_be_continued_is_read_off_the_request(
    gateway: Gateway, body: dict[str, Any], resumable: bool, exact: bool
) -> None:
    """A stream that cannot be continued must not be, rather than go on wrongly."""
    stream = Stream(gateway, **body)
    work = await stream.begin()
    assert (work.resumable, work.needs_exact_resume) == (resumable, exact)
    stream.script.done(work)
    await stream.events()


class TestSilence:
    """Headers are held until the first content or a while; then comments show that the stream is alive."""

    @pytest.fixture
    def hold_s(self) -> float:
        return 0.05

    async def test_a_stream_that_is_silent_begins_with_comments(self, gateway: Gateway) -> None:
        stream = Stream(gateway)
        work = await stream.begin()
        script = stream.script
        script.offer(work)
        await asyncio.sleep(0.2)
        script.send(work, chunk({"content": "x"}))
        script.done(work)
        assert said(await stream.events()) == "x"
        assert stream.text.startswith(": keep-alive\n\n")
        assert stream.text.count(": keep-alive") >= 2

    async def test_an_error_after_the_headers_is_an_event(self, gateway: Gateway) -> None:
        stream = Stream(gateway)
        work = await stream.begin()
        await asyncio.sleep(0.1)
        stream.script.fail(work, "upstream_error")
        events = await stream.events()
        assert [list(event) for event in events] == [["error"]]


async def test_plain_chunks_pass_byte_for_byte(gateway: Gateway) -> None:
    """Only the model's name changes; parsing each chunk would cost more than all the rest."""
    stream = Stream(gateway)
    work = await stream.begin()
    script = stream.script
    script.offer(work)
    sent = chunk({"content": 'say "model":"engine/llama" and "usage":{ or [DONE'})
    script.send(work, sent)
    script.send(work, sent)
    script.done(work)
    await stream.events()
    wanted = sent.decode().replace('"model":"engine/llama","choices"', '"model":"llama","choices"')
    assert stream.text == wanted * 2 + "data: [DONE]\n\n"


async def test_the_books_know_who_pays_until_the_work_is_settled(gateway: Gateway) -> None:
    """The brain knows tenants only; the ledger wants the key."""
    stream = Stream(gateway)
    work = await stream.begin()
    account = gateway.text.account(work.id)
    assert account is not None
    assert (account.key_id, account.tenant, account.request_id) == ("key_1", "acme", "mine-1")
    stream.script.done(work)
    await stream.events()
    assert gateway.text.account(work.id) is None
