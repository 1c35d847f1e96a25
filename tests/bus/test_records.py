"""What is said over a network link, as bytes."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundswell.bus import records
from groundswell.bus.records import (
    PART_BYTES,
    Beat,
    Gone,
    Hello,
    Malformed,
    Part,
    Report,
    State,
    Stop,
    answer_of,
    answer_record,
    decode,
    encode,
    offer_of,
    offer_record,
)
from groundswell.model.errors import BadRequest, GroundswellError, InternalError, UpstreamError
from groundswell.model.messages import Accepted, Ended, Fault, Offer, Output, Refusal, Refused
from groundswell.model.money import Price, Usage
from groundswell.model.node import Capability, EngineReport, NodeReport
from groundswell.model.work import Kind
from groundswell.ports import Emitted, Payload

MODEL = Capability("m", "m", frozenset({Kind.CHAT}), price=Price(1, 2, 3))
ENGINE = EngineReport("e", 1, 4, 2, True, (MODEL,))
REPORT = NodeReport("n1", 7, 3, (ENGINE,), (("w", 1),), labels=(("zone", "a"),))
HELLO = Hello(1, 1, "0.1.0")
SAID = [
    Part("w", 1, 0, True, b"\r\nPUB x 3\r\n"),
    Beat((State("w", 1, 2, 3, 4, True),), (("v", 2),)),
    HELLO,
    Report(HELLO, REPORT),
    Gone(7),
    Stop("w", 1),
]


@pytest.mark.parametrize("said", SAID, ids=lambda said: type(said).__name__)
def test_what_is_said_arrives_as_it_was(said: records.Said) -> None:
    """Both sides must mean the same by the same bytes."""
    assert decode(encode(said)) == said


@given(
    st.binary(max_size=300)
    | st.builds(lambda kind, rest: bytes((1, kind)) + rest, st.integers(0, 7), st.binary())
)
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    """A node is not to be trusted; what it sends raises one error that is caught, and nothing else."""
    with contextlib.suppress(Malformed):
        decode(data)


@given(
    st.binary(max_size=300)
    | st.builds(lambda kind, rest: bytes((kind,)) + rest, st.integers(0, 6), st.binary())
)
def test_any_bytes_are_a_record_or_malformed(data: bytes) -> None:
    """The same for what messages carry."""
    for parse in (answer_of, offer_of):
        with contextlib.suppress(Malformed):
            parse(data, "w", 1)


@given(
    st.dictionaries(st.text(), st.none() | st.text() | st.integers(0, 2**53) | st.lists(st.text())),
    st.binary(max_size=2000),
    st.none() | st.builds(Emitted, st.text(), st.integers(0, 1000)),
)
def test_an_offer_brings_any_request(body: dict[str, Any], data: bytes, emitted: Emitted | None) -> None:
    """A prompt may hold whatever people write, the framing of protocols included."""
    offer = Offer("w", 1, "n", "e", Kind.CHAT, "m", 3, Price(1, 2, 3))
    payload = Payload(Kind.CHAT, body, data, emitted)
    assert offer_of(offer_record(offer, payload), "w", 1) == (offer, payload)


@given(st.binary(max_size=2000), st.integers(0, 2**32 - 1), st.booleans())
def test_an_output_brings_any_bytes(data: bytes, tokens: int, resumable: bool) -> None:
    """Nothing in an answer can be taken for its end."""
    message = Output("w", 1, 4, tokens, resumable)
    assert answer_of(answer_record(message, data, None), "w", 1) == (message, data, None)


@pytest.mark.parametrize(
    "message",
    [Accepted("w", 1), Refused("w", 1, Refusal.DRAINING), Ended("w", 1, 3, Usage(1, 2), Fault.BROKEN, "x")],
    ids=lambda message: type(message).__name__,
)
def test_answers_arrive_as_they_were(message: Accepted | Refused | Ended) -> None:
    """The brains on both sides go by them."""
    assert answer_of(answer_record(message, b"", None), "w", 1) == (message, b"", None)


def told(error: GroundswellError) -> GroundswellError | None:
    return answer_of(answer_record(Ended("w", 1, 0, fault=Fault.BROKEN), b"", error), "w", 1)[2]


def test_a_defect_of_a_node_is_no_defect_of_the_gateway() -> None:
    """A 500 says that we are to blame; a foreign machine cannot make us say so."""
    assert type(told(InternalError("Oops."))) is UpstreamError


def test_an_error_code_of_a_node_is_a_word() -> None:
    """It goes to clients and into logs."""
    error = told(BadRequest("No.", code="x\r\nSet-Cookie: y"))
    assert error is not None
    assert error.code == "invalid_request"


@pytest.mark.parametrize(
    "usage", [Usage(-1, 0), Usage(0, 1 << 60), Usage(pixels=-5)], ids=["negative", "beyond sense", "pixels"]
)
def test_usage_that_cannot_be_is_refused(usage: Usage) -> None:
    """It would become money."""
    with pytest.raises(Malformed):
        answer_of(answer_record(Ended("w", 1, 1, usage), b"", None), "w", 1)


def test_an_answer_speaks_of_its_own_attempt_only() -> None:
    """What a node was not offered, it cannot end."""
    with pytest.raises(Malformed):
        answer_of(answer_record(Ended("another", 1, 1), b"", None), "w", 1)


def test_a_report_has_bounds() -> None:
    """A report with a million engines would fill the gateway's memory."""
    many = msgspec.structs.replace(
        Report(HELLO, REPORT),
        report=NodeReport("n1", 1, 1, attempts=tuple(("w", number) for number in range(20_000))),
    )
    with pytest.raises(Malformed):
        decode(encode(many))
    with pytest.raises(Malformed):
        decode(encode(Report(HELLO, NodeReport("n1", 1, 1, region="x" * 5000))))


def test_a_frame_has_bounds() -> None:
    """The server's limit may be larger than ours."""
    assert decode(encode(Part("w", 1, 0, False, bytes(PART_BYTES))))
    with pytest.raises(Malformed):
        decode(encode(Part("w", 1, 0, False, bytes(PART_BYTES + 1))))
    with pytest.raises(Malformed):
        decode(encode(Part("w" * 200, 1, 0, False, b"")))


def test_another_version_of_the_protocol_is_not_guessed_at_but_its_hello_is_read() -> None:
    """Two that do not fit must be able to say so to each other."""
    with pytest.raises(Malformed):
        decode(bytes((2,)) + encode(Gone(1))[1:])
    assert decode(bytes((2,)) + encode(HELLO)[1:]) == HELLO


def test_fields_that_a_newer_release_adds_are_passed_over() -> None:
    """A node one release newer works with this gateway."""
    data = bytes((1, 5)) + msgspec.msgpack.encode({"generation": 7, "reason": "tired"})
    assert decode(data) == Gone(7)
