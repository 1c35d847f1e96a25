"""Where events end, over any split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundswell.wire.sse import EventSplitter, EventTemplate, EventTooLarge, payloads

STREAM = (
    b'data: {"a":1}\n\n: a comment\n\ndata: two\r\n\r\nevent: x\rdata: three\r\r'
    b'data: first\ndata: second\n\ndata:no space\n\ndata: {"text":"\\n\\n \xc3\xa9"}\n\ndata: [DONE]\n\n'
)


@given(st.lists(st.integers(min_value=0, max_value=len(STREAM)), max_size=40))
def test_any_split_gives_the_same_bytes_and_only_whole_events(cuts: list[int]) -> None:
    """TCP splits where it likes; a client must never be sent half an event."""
    edges = [0, *sorted(cuts), len(STREAM)]
    splitter = EventSplitter()
    blocks = [splitter.feed(STREAM[a:b]) for a, b in pairwise(edges)]
    assert b"".join(blocks) == STREAM
    assert splitter.tail == b""
    for block in blocks:
        assert block == b"" or block.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))


def test_byte_by_byte_is_the_worst_split_and_works() -> None:
    """A slow link delivers single bytes."""
    splitter = EventSplitter()
    assert b"".join(splitter.feed(bytes([byte])) for byte in STREAM) == STREAM


def test_what_is_not_complete_is_kept() -> None:
    """The rest of an event comes with a later read."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\n\ndata: b") == b"data: a\n\n"
    assert splitter.tail == b"data: b"
    assert splitter.feed(b"\n") == b""
    assert splitter.feed(b"\n") == b"data: b\n\n"


def test_an_event_without_end_is_refused() -> None:
    """An engine gone mad must not fill the gateway's memory."""
    splitter = EventSplitter(event_bytes_max=1000)
    for _ in range(10):
        assert splitter.feed(b"x" * 100) == b""
    with pytest.raises(EventTooLarge):
        splitter.feed(b"x")


def test_payloads_join_data_lines_and_leave_the_rest_out() -> None:
    """Comments and event names are not data."""
    assert list(payloads(STREAM)) == [
        b'{"a":1}', b"two", b"three", b"first\nsecond", b"no space",
        '{"text":"\\n\\n é"}'.encode(), b"[DONE]",
    ]  # fmt: skip


HEAD = b'data: {"id":"c","choices":[{"delta":{"content":"'
TAIL = b'"},"finish_reason":null}]}\n\n'


@pytest.mark.parametrize("text", [b"word", b" ", b"\\n", b"\\\\ and \\u00e9", "é".encode()])
def test_an_event_that_differs_in_its_text_alone_is_known(text: bytes) -> None:
    """Most of a stream is such events; all that was found out about the first holds for them."""
    template = EventTemplate.of(HEAD + b"first" + TAIL)
    assert template is not None
    assert template.text(HEAD + text + TAIL) == text


@pytest.mark.parametrize(
    "block",
    [
        HEAD + TAIL,
        HEAD + b"a" + TAIL.replace(b"null", b'"stop"'),
        HEAD + b"a" + TAIL + HEAD + b"b" + TAIL,
        HEAD + b'a","tool_calls":[{"x":"b' + TAIL,
        HEAD + b"a\\" + TAIL,
        HEAD + b"a\ndata: b" + TAIL,
        HEAD + b"a\rdata: b" + TAIL,
        HEAD + b"a" + TAIL[:-1],
        b": a comment\n\n",
    ],
)
def test_an_event_that_may_say_anything_else_is_not_taken_for_a_text(block: bytes) -> None:
    """What passes as a text is not looked at again, so nothing else may pass as one."""
    template = EventTemplate.of(HEAD + b"first" + TAIL)
    assert template is not None
    assert template.text(block) is None


@pytest.mark.parametrize(
    "block",
    [
        b'data: {"choices":[]}\n\n',
        HEAD + TAIL,
        HEAD + b"a" + TAIL + HEAD + b"b" + TAIL,
        HEAD + b"a" + TAIL[:-2] + b"\r\n\r\n",
        b'data: {"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}\n\n',
        b": x\n\n" + HEAD + b"a" + TAIL,
    ],
)
def test_only_one_event_with_one_text_is_learned_from(block: bytes) -> None:
    """Of anything more it would not be known which text is meant."""
    assert EventTemplate.of(block) is None
