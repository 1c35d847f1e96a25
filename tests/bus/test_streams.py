"""One direction of one attempt: indices, credit, replay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundswell.bus.records import PART_BYTES, Malformed, Part
from groundswell.bus.streams import PART_COST, WINDOW_BYTES, Overfull, Receiver, Sender


def taken(receiver: Receiver, parts: list[Part]) -> list[bytes]:
    return [record for part in parts if (record := receiver.take(part)) is not None]


def test_records_arrive_as_they_were_put_in_however_large() -> None:
    """A segment of video is many parts, an accepted offer a single one without a body."""
    sender, receiver = Sender("w", 1), Receiver()
    records = [b"", b"x" * PART_BYTES, b"y" * (PART_BYTES + 1), b"z"]
    got = []
    for record in records:
        got += taken(receiver, sender.put(record))
        got += taken(receiver, sender.heard(receiver.got, receiver.grant(), False))
    assert got == records


def test_a_sender_stops_at_its_credit_and_goes_on_with_more() -> None:
    """What nobody takes must not pile up on the way."""
    sender, receiver = Sender("w", 1), Receiver()
    sent = [part for _ in range(100) for part in sender.put(bytes(10_000))]
    assert not sender.has_room
    assert len(sent) == -(-WINDOW_BYTES // (10_000 + PART_COST))
    taken(receiver, sent)
    assert receiver.owes_credit
    more = sender.heard(receiver.got, receiver.grant(), False)
    assert [part.index for part in more] == list(range(len(sent), 2 * len(sent)))


def test_a_receiver_that_is_held_grants_nothing_more() -> None:
    """A slow client holds its node back, and no part that is on its way is lost."""
    sender, receiver = Sender("w", 1), Receiver()
    receiver.hold(True)
    sender.heard(receiver.got, receiver.grant(), False)
    assert not sender.has_room
    assert sender.put(b"a") == []
    receiver.hold(False)
    assert taken(receiver, sender.heard(receiver.got, receiver.grant(), False)) == [b"a"]


def test_a_gap_is_asked_for_once_and_filled() -> None:
    """A lost message is neither lost for good nor sent a hundred times."""
    sender, receiver = Sender("w", 1), Receiver()
    parts = [part for letter in (b"a", b"b", b"c", b"d") for part in sender.put(letter)]
    got = taken(receiver, [parts[0], parts[2], parts[3]])
    assert got == [b"a"]
    assert receiver.misses(2)
    assert not receiver.misses(3)
    got += taken(receiver, sender.heard(receiver.got, receiver.grant(), True))
    assert got == [b"a", b"b", b"c", b"d"]


def test_frames_that_come_twice_count_once() -> None:
    """After a replay some parts arrive again."""
    sender, receiver = Sender("w", 1), Receiver()
    parts = sender.put(b"a") + sender.put(b"b")
    assert taken(receiver, [parts[0], parts[0], parts[1], parts[1], parts[0]]) == [b"a", b"b"]


def test_what_was_acknowledged_is_forgotten_and_an_old_word_harmless() -> None:
    """A sender keeps no more than what may have to be sent again."""
    sender = Sender("w", 1)
    sender.put(b"a")
    sender.put(b"b")
    sender.heard(1, WINDOW_BYTES, False)
    assert sender.heard(0, WINDOW_BYTES, True) == []
    sender.heard(2, WINDOW_BYTES, False)
    assert sender.empty


def test_a_receiver_cannot_have_what_was_never_made() -> None:
    """Who says so has lost count, or lies."""
    sender = Sender("w", 1)
    sender.put(b"a")
    with pytest.raises(Malformed):
        sender.heard(2, WINDOW_BYTES, False)


def test_what_was_not_sent_can_be_dropped_and_the_end_still_arrives() -> None:
    """A withdrawn attempt says its end without the rest of its output."""
    sender, receiver = Sender("w", 1), Receiver()
    parts = [part for _ in range(50) for part in sender.put(bytes(PART_BYTES))]
    sender.drop_unsent()
    sender.put(b"end")
    got = taken(receiver, parts)
    got += taken(receiver, sender.heard(receiver.got, receiver.grant(), False))
    assert got[-1] == b"end"
    assert len(got) == len(parts) + 1


def test_dropping_does_not_cut_a_record_that_has_begun_to_go_out() -> None:
    """Half a record would take the end of the attempt for its other half."""
    sender, receiver = Sender("w", 1), Receiver()
    parts = sender.put(bytes(5 * PART_BYTES))
    assert parts[-1].more
    sender.put(b"never sent")
    sender.drop_unsent()
    sender.put(b"end")
    got = taken(receiver, parts)
    for _ in range(3):
        got += taken(receiver, sender.heard(receiver.got, receiver.grant(), False))
    assert got == [bytes(5 * PART_BYTES), b"end"]


def test_a_backlog_without_end_is_refused() -> None:
    """An engine that does not heed its pause would fill the node's memory."""
    sender = Sender("w", 1)
    for _ in range(9):
        sender.put(bytes(100_000), backlog_max=1_000_000)
    with pytest.raises(Overfull):
        sender.put(bytes(100_000), backlog_max=1_000_000)


def test_a_record_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that always says there is more would fill ours."""
    monkeypatch.setattr("groundswell.bus.streams.RECORD_BYTES_MAX", 1000)
    receiver = Receiver()
    for index in range(10):
        receiver.take(Part("w", 1, index, True, bytes(100)))
    with pytest.raises(Malformed):
        receiver.take(Part("w", 1, 10, True, bytes(100)))


@given(st.data())
def test_any_losses_and_repeats_are_mended(data: st.DataObject) -> None:
    """Whatever the network loses, the client's text is what the engine made, once and in order."""
    sender, receiver = Sender("w", 1), Receiver()
    sizes = st.sampled_from([0, 1, 50, 3000, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
    records = [bytes([number % 256]) * data.draw(sizes) for number in range(data.draw(st.integers(0, 12)))]
    waiting, got, wire = list(records), [], list[Part]()
    for step in data.draw(
        st.lists(st.sampled_from(["put", "carry", "lose", "twice", "word", "hold"]), max_size=60)
    ):
        match step:
            case "put" if waiting:
                wire += sender.put(waiting.pop(0))
            case "carry":
                got += taken(receiver, wire[:3])
                del wire[:3]
            case "lose":
                del wire[:1]
            case "twice":
                wire[:0] = wire[:2]
            case "hold":
                receiver.hold(data.draw(st.booleans()))
            case "word":
                wire += sender.heard(receiver.got, receiver.grant(), data.draw(st.booleans()))
    receiver.hold(False)
    for record in waiting:
        wire += sender.put(record)
    for _ in range(200):
        got += taken(receiver, wire)
        wire = sender.heard(receiver.got, receiver.grant(), sender.sent > receiver.got)
    assert got == records
    assert sender.empty
