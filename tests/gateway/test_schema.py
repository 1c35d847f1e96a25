"""What a request body may hold; each refusal names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from groundswell.gateway import prescan
from groundswell.gateway.schema import parse
from groundswell.model.errors import BadRequest
from groundswell.model.work import Kind

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refusal(kind: Kind, raw: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(kind, raw)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": True}, "n"),
        ({"n": "5"}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"logit_bias": {"abc": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"tools": [{}] * 129}, "tools"),
        ({"response_format": {"type": "json_schema", "s": {"$ref": "http://evil/x"}}}, "response_format"),
        ({"response_format": {"x": "y" * 70_000}}, "response_format"),
        ({"user": "a\0b"}, "user"),
        ({"model": "a\r\nX: y"}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "api_base": "y"}]}, "messages[0].api_base"),
        ({"api_base": "http://x"}, "api_base"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"mm_processor_kwargs": {}}, "mm_processor_kwargs"),
        ({"extra_body": {}}, "extra_body"),
    ],
)
def test_a_bad_value_is_refused_and_its_field_named(fields: dict[str, Any], param: str) -> None:
    """The client shows ``param`` to the person who has to mend it."""
    error = refusal(Kind.CHAT, json.dumps(CHAT | fields).encode())
    assert error.param == param


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'{"a":1}x', "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        ('{"model":"m"}'.encode("utf-16"), "invalid_json"),
        (b'{"model":"\xff"}', "invalid_json"),
        (b'{"model":"\\ud800"}', "invalid_json"),
        (b'{"temperature":NaN}', "invalid_json"),
        (b'{"temperature":1e400}', "invalid_json"),
        (b'{"seed":' + b"1" * 10_000 + b"}", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "invalid_json"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "invalid_json"),
        (b'{"a":[' + b'"",' * 400_000 + b'""]}', "invalid_json"),
        (b"[" + b"[]," * 350_000 + b"0]", "invalid_json"),
        (b'{"a":' + b"{" + b'"b":0,' * 100_001 + b'"c":0}}', "invalid_json"),
        (b'{"a":[' + b'{"b":[{}]},' * 110_000 + b"0]}", "invalid_json"),
        (b"1e" * 100_000, "invalid_json"),
        (b'"' * 200_000, "invalid_json"),
        (b'{"model":"a","model":"b"}', "duplicate_key"),
        (b'{"model" : "a", "model"\n:"b"}', "duplicate_key"),
        (b'{"model" : "a","model":"b"}', "duplicate_key"),
        (b'{"a":[{"role":"x","role":"y"}],"t":"\\":"}', "duplicate_key"),
        (b'{"model":"x","model":"y","b\\\\":1,"c":":"}', "duplicate_key"),
        (b'{"a":"\\"q\\":","\\u0061":1}', "duplicate_key"),
    ],
)
def test_what_parsers_disagree_about_is_refused(raw: bytes, code: str) -> None:
    """A proxy and an engine that read one body differently can be played against each other."""
    assert refusal(Kind.CHAT, raw).code == code


def test_quotes_and_colons_in_a_prompt_are_no_keys() -> None:
    """The cheap check for duplicate keys may be unsure, never wrong."""
    for text in ('{"a": 1, "a": 2}', '":', '\\":', 'x" : "y', "\\", '\\\\"', " :"):
        body = CHAT | {"messages": [{"role": "user", "content": text}, {"role": "user", "content": text}]}
        for separators in ((",", ":"), (" , ", " : ")):
            assert prescan.decode(json.dumps(body, separators=separators).encode()) == body


@pytest.mark.parametrize("text", ["a, b: [c], {d}", 'say "[0, {1}, 2]"', "\\", '\\"', "[[[[,,,,::::"])
def test_a_long_text_may_hold_any_number_of_brackets(text: str) -> None:
    """What is counted are the values of the JSON, not the commas of a novel or the braces of a program."""
    long = text * (2_000_000 // len(text))
    assert prescan.decode(json.dumps({"prompt": long, "b": text}).encode()) == {"prompt": long, "b": text}


def test_as_many_token_ids_as_a_prompt_may_have_are_taken() -> None:
    """The bound on values is made for them."""
    _, body = parse(Kind.COMPLETION, json.dumps({"model": "m", "prompt": [7] * 299_990}).encode())
    assert len(body["prompt"]) == 299_990


def test_depth_up_to_the_limit_passes() -> None:
    """Tool schemas are nested; 64 levels are enough for them."""
    assert prescan.decode(b'{"a":' * 64 + b"1" + b"}" * 64)


def test_known_fields_and_engine_extras_pass() -> None:
    """Existing clients send fields that no open engine uses; users of open engines send theirs."""
    fields: dict[str, Any] = {
        "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "user": "u", "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.1, "ignore_eos": True, "max_completion_tokens": 9, "reasoning_effort": "low",
        "parallel_tool_calls": False, "seed": -(2**63), "logit_bias": {"50256": -100}, "n": 2, "stop": None,
    }  # fmt: skip
    _, body = parse(Kind.CHAT, json.dumps(CHAT | fields).encode())
    assert body["max_tokens"] == 9
    assert body["top_k"] == 5


def test_image_parts_pass_untouched() -> None:
    """The gateway opens no URL in a message and changes none."""
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest", "detail": "low"}}
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}).encode()
    assert parse(Kind.CHAT, raw)[1]["messages"][0]["content"] == [part]


@pytest.mark.parametrize(
    "value", ["", [], [""], ["a", 1], [[1], "a"], [-1], ["a"] * 2049, [[]], {"a": 1}, None, [[1.5]]]
)
def test_embedding_inputs_are_checked(value: Any) -> None:
    """Empty and mixed inputs fail in every engine differently."""
    assert (
        refusal(Kind.EMBEDDING, json.dumps({"model": "m", "input": value}).encode()).param or ""
    ).startswith("input")


@pytest.mark.parametrize("value", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_every_form_of_input_and_prompt_passes(value: Any) -> None:
    """The OpenAI API knows four."""
    parse(Kind.EMBEDDING, json.dumps({"model": "m", "input": value}).encode())
    parse(Kind.COMPLETION, json.dumps({"model": "m", "prompt": value}).encode())
