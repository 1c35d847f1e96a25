"""Owners of prompt blocks, and the memory of where prompts went."""

from __future__ import annotations

import pytest
from fleet import MODEL, report

from groundswell.core import affinity
from groundswell.core.affinity import BUCKETS, TURN_S, Memory, Owners
from groundswell.core.chance import mix
from groundswell.core.membership import Members, Seat
from groundswell.core.timers import Timers


def seats(count: int) -> list[Seat]:
    members = Members(Timers())
    found = []
    for number in range(count):
        change = members.report(0.0, report(f"n{number}"))
        assert change is not None
        found += change.added
    assert all(one.capability is MODEL for one in found)
    return found


def known(memory: Memory, seat: Seat, blocks: range) -> list[int]:
    """Those of the blocks that the seat was sent and the memory still has."""
    return [block for block in blocks if memory.depths((block,)) == {seat: 1}]


def test_all_gateways_name_the_same_owner() -> None:
    """Whatever the order in which they heard of the nodes, and without telling each other."""
    one, two = Owners(), Owners()
    for seat in seats(7):
        one.add(seat)
    for seat in reversed(seats(7)):
        two.add(seat)
    for block in range(100):
        first, second = one.of(block), two.of(block)
        assert first is not None
        assert second is not None
        assert first.key == second.key


def test_a_seat_that_leaves_moves_only_what_it_owned() -> None:
    """A cache that is still there must not be abandoned; and what joins later takes a fair share."""
    owners, all_seats = Owners(), seats(5)
    for seat in all_seats:
        owners.add(seat)
    blocks = [mix(number) for number in range(300)]
    before = {block: owners.of(block) for block in blocks}
    owners.remove(all_seats[0])
    after = {block: owners.of(block) for block in blocks}
    assert all(before[block] in (after[block], all_seats[0]) for block in blocks)
    assert all_seats[0] not in after.values()
    owners.add(all_seats[0])
    assert {block: owners.of(block) for block in blocks} == before


def test_who_joins_later_owns_what_it_would_have_owned_from_the_start() -> None:
    """Gateways hear of nodes at different times, and ask for owners in between."""
    late, blocks = Owners(), [mix(number) for number in range(8000)]
    there = seats(7)
    for seat in there:
        late.add(seat)
        assert {late.of(block) for block in blocks} <= set(there)
    fresh = Owners()
    for seat in there:
        fresh.add(seat)
    assert [late.of(block) for block in blocks] == [fresh.of(block) for block in blocks]
    assert len(late._owner) == BUCKETS, "blocks fall into all of them"


def test_an_owner_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing over all seats at each decision would cost more in a larger fleet."""
    owners, hashed = Owners(), []
    for seat in seats(50):
        owners.add(seat)
    first = owners.of(1)
    monkeypatch.setattr(affinity, "mix", lambda state: hashed.append(state) or mix(state))
    assert owners.of(1) is first
    assert hashed == []


def test_nobody_owns_anything_in_an_empty_pool() -> None:
    """None, not an error."""
    assert Owners().of(1) is None


def test_the_memory_tells_how_deep_a_prompt_is_cached() -> None:
    """Who was sent block i was sent all before it; behind the first unknown block nothing is known."""
    memory = Memory()
    one, two = seats(2)
    memory.sent(0.0, (1, 2, 3), one)
    memory.sent(1.0, (1, 2), two)
    assert memory.depths((1, 2, 3, 4)) == {two: 2, one: 3}
    assert memory.depths((9, 1)) == {}


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks that were sent last stay, and a long prompt is remembered in part."""
    monkeypatch.setattr(affinity, "MEMORY_MAX", 6)
    memory = Memory()
    (seat,) = seats(1)
    memory.sent(0.0, (1, 2), seat)
    memory.sent(0.0, (3,), seat)
    assert known(memory, seat, range(10)) == [1, 2, 3]
    memory.sent(0.0, (4, 1), seat)
    assert known(memory, seat, range(10)) == [1, 2, 3, 4]
    memory.sent(0.0, (5, 6, 7), seat)
    assert known(memory, seat, range(10)) == [1, 4, 5, 6, 7]
    monkeypatch.setattr(affinity, "MEMORY_MAX", 1000)
    memory.sent(0.0, tuple(range(100, 200)), seat)
    assert memory.depths(tuple(range(100, 200))) == {seat: affinity.BLOCKS_MAX}


def test_what_nobody_asks_for_is_forgotten_in_time() -> None:
    """What is remembered must follow the load: at a few requests a second it would grow for hours."""
    memory, sent = Memory(), range(0, 10 * int(TURN_S), 10)
    (seat,) = seats(1)
    for now_s in sent:
        memory.sent(100.0 + now_s, (1, 1000 + now_s), seat)
    left = known(memory, seat, range(1, 1000 + sent.stop))
    assert left[0] == 1, "it was asked for all the time"
    assert left[1:] == [1000 + now_s for now_s in sent if now_s >= 8 * TURN_S]
