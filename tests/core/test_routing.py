"""Which seat a work gets, and that deciding does not cost more in a larger fleet."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from fleet import MODEL, chat, report
from hypothesis import given
from hypothesis import strategies as st

from groundswell.core.chance import mix
from groundswell.core.estimate import Estimator, Prediction
from groundswell.core.membership import Engine, Members
from groundswell.core.routing import (
    COLD_S,
    DOUBT_COST_S,
    OTHERS_TOKENS,
    OVERLONG_S,
    SCAN_MAX,
    Ask,
    Need,
    Pool,
    Router,
    fits,
    need_of,
    output_expected,
)
from groundswell.core.timers import Timers
from groundswell.model.money import Price
from groundswell.model.node import Continuation
from groundswell.model.work import Kind

NEED = Need(Kind.CHAT, "m")
KEY = (Kind.CHAT, "m")


class Town:
    """A router over nodes that were reported."""

    def __init__(self) -> None:
        self.members = Members(Timers())
        self.router = Router()
        self.sequence = 0

    def add(self, node_id: str, **said: Any) -> Engine:
        self.sequence += 1
        change = self.members.report(0.0, report(node_id, self.sequence, **said))
        assert change is not None
        for seat in change.removed:
            self.router.remove(seat)
        for seat in change.added:
            self.router.add(seat)
        for engine in change.touched:
            self.router.refresh(engine)
        return self.members.nodes[node_id].engines["e"]

    def rank(self, need: Need = NEED, draw: int = 1, **changes: Any) -> list[str]:
        ask = Ask(need, 100, 100, 0, changes.pop("prefix", ()), draw, **changes)
        return [one.engine.node.node_id for one in self.router.rank(ask)]


def test_the_least_loaded_comes_first() -> None:
    """Our own dispatches count the moment they are made."""
    town = Town()
    for node_id in "abc":
        engine = town.add(node_id, slots=8)
        engine.backlog = {"a": 5000, "b": 0, "c": 9000}[node_id]
        engine.held.update({("x", number): 0.0 for number in range({"a": 3, "b": 0, "c": 6}[node_id])})
        town.router.refresh(engine)
    firsts = Counter(town.rank(draw=draw)[0] for draw in range(50))
    assert firsts["b"] > 30
    assert all(town.rank(draw=draw)[-1] != "b" or len(town.rank(draw=draw)) == 1 for draw in range(50))


def test_what_other_gateways_have_there_counts_too() -> None:
    """Reports bring it."""
    town = Town()
    town.add("a", slots=8).others = 6
    town.add("b", slots=8)
    both = [one for draw in range(50) if len(one := town.rank(draw=draw)) == 2]
    assert both
    assert all(one == ["b", "a"] for one in both)


def test_an_engine_that_has_just_failed_comes_after_one_that_has_not() -> None:
    """It may be stopped without its node having noticed; a stall costs more than a short queue."""
    town = Town()
    town.add("a", slots=8).doubted_s = 0.0
    busy = town.add("b", slots=8)
    both = [one for draw in range(50) if len(one := town.rank(draw=draw)) == 2]
    assert both
    assert all(one == ["b", "a"] for one in both)
    busy.backlog = 1_000_000
    assert any(town.rank(draw=draw) == ["a", "b"] for draw in range(50)), "a long queue costs more"


class Oracle(Estimator):
    """A millisecond for each token of a prompt, half a token in a second, a pixel in a second on node a."""

    def predict(self, key: Any, profile: str, prompt_tokens: int, *rest: int) -> Prediction:
        return Prediction(prompt_tokens / 1000, 2.0, 0.5)

    def predict_transcode_s(self, key: Any, pixels: int) -> float:
        assert key == "a\ne\nm"
        return pixels


def priced(town: Town, cached: int = 0, **changes: Any) -> float:
    """What a work of 1,001 tokens in ten blocks costs on node a."""
    town.router.estimator = Oracle()
    kind = changes.pop("kind", Kind.CHAT)
    ask = replace(Ask(Need(kind, "m"), 1001, 100, 0, tuple(range(10)), 1), **changes)
    return town.router.cost_s(town.members.nodes["a"].engines["e"].seats["m"], ask, cached)


def test_a_cost_is_the_seconds_of_the_queue_and_of_what_is_not_cached() -> None:
    """One currency for all decisions: a second of waiting is a second, whatever it is spent on."""
    town = Town()
    engine = town.add("a", slots=8)
    assert priced(town) == pytest.approx(1.001)
    assert town.router.cost_s(engine.seats["m"], Ask(NEED, 1001, 100, 0, (1, 2), 1)) == pytest.approx(1.001)
    assert priced(town, cached=3) == pytest.approx(0.701)
    assert priced(town, cached=99) == 0.0
    assert priced(town, prefix=(), cached=1) == 0.0
    engine.backlog, engine.others = 100, 2
    assert priced(town, cached=99) == (100 + 2 * OTHERS_TOKENS) / 0.5
    engine.doubted_s = 0.0
    assert priced(town, cached=99) == (100 + 2 * OTHERS_TOKENS) / 0.5 + DOUBT_COST_S


def test_a_prompt_that_may_not_fit_costs_more_than_any_queue() -> None:
    """Exactly as long as the context is fine; estimates are rough, so longer is not refused."""
    town = Town()
    town.add("a", capabilities=[replace(MODEL, context_tokens=1000)])
    assert priced(town, prompt_tokens=1000) == pytest.approx(1.0)
    assert priced(town, prompt_tokens=1001) == pytest.approx(OVERLONG_S + 1.001)


@pytest.mark.parametrize("slots", [1, 4])
def test_a_transcode_costs_its_pixels_and_its_share_of_those_that_wait(slots: int) -> None:
    """Segments run side by side on the slots of an engine."""
    town = Town()
    video = replace(MODEL, kinds=frozenset({Kind.TRANSCODE}))
    engine = town.add("a", slots=slots, capabilities=[video])
    engine.backlog = 4_000_000
    assert priced(town, kind=Kind.TRANSCODE, pixels=7) == 4_000_000 / slots + 7
    engine.doubted_s = 0.0
    assert priced(town, kind=Kind.TRANSCODE, pixels=7) == 4_000_000 / slots + 7 + DOUBT_COST_S


def test_a_seat_that_left_owns_no_prompt() -> None:
    """It would keep the pool's memory, and hide the next owner of its blocks."""
    town = Town()
    gone = town.add("a").seats["m"]
    town.add("b")
    pool = town.router.pools[KEY]
    assert gone in {pool.owners.of(block) for block in range(50)}
    town.router.remove(gone)
    assert gone not in {pool.owners.of(block) for block in range(50)}


def test_a_prediction_is_asked_for_what_the_engine_has_now() -> None:
    """Its own key and profile, our prompts without a first token, and every sequence, ours or others'."""
    town = Town()
    seat = town.add("a", slots=8).seats["m"]
    engine = seat.engine
    engine.prefill_tokens, engine.others = 70, 2
    engine.held.update({("w", 1): 0.0, ("v", 1): 0.0, ("u", 1): 0.0})
    asked: list[tuple[Any, ...]] = []

    class Listener(Estimator):
        def predict(self, *question: Any) -> Prediction:
            asked.append(question)
            return Prediction(1.0, 2.0, 3.0)

    town.router.estimator = Listener()
    assert town.router.predict(seat, 11) == (1.0, 2.0, 3.0)
    assert town.router.cost_s(seat, Ask(NEED, 33, 44, 0, (), 1)) > 0
    assert asked == [(seat.key, "h100-8b", 11, 70, 5), (seat.key, "h100-8b", 33, 70, 5)]
    cold = town.add("b", capabilities=[replace(MODEL, warm=False)]).seats["m"]
    assert town.router.predict(cold, 11) == (1.0 + COLD_S, 2.0, 3.0)


@pytest.mark.parametrize(
    ("allowed", "emitted", "expected"),
    [(0, 0, 256), (0, 30, 256), (100, 0, 100), (100, 30, 70), (100, 99, 1), (100, 200, 1), (10**6, 0, 256)],
)
def test_output_is_planned_as_what_is_left_of_the_budget_or_a_usual_answer(
    allowed: int, emitted: int, expected: int
) -> None:
    """Clients allow far more than answers have; what was sent needs not be made again."""
    assert output_expected(chat(output_tokens_max=allowed), emitted) == expected
    assert output_expected(chat(kind=Kind.EMBEDDING, output_tokens_max=allowed), emitted) == 1


def test_the_owners_of_the_first_and_of_the_middle_block_are_looked_at() -> None:
    """All gateways send a beginning to the same seat without a word between them, in a fleet of any size."""
    town = Town()
    for number in range(300):
        town.add(f"n{number}")
    owners = town.router.pools[KEY].owners
    for number in range(20):
        prefix = tuple(mix(10 * number + block) for block in range(7))
        ranked = town.router.rank(Ask(NEED, 4000, 100, 0, prefix, number))
        assert {owners.of(prefix[0]), owners.of(prefix[3])} <= set(ranked)


def test_a_pool_counts_what_comes_and_goes() -> None:
    """Retry-After and the choice between too busy and nobody there are made of these."""
    town = Town()
    seats = [town.add(node_id, slots=slots).seats["m"] for node_id, slots in (("a", 1), ("b", 2), ("c", 4))]
    pool = town.router.pools[KEY]
    assert (pool.count, pool.available, pool.slots, pool.free) == (3, 3, 7, 7)
    town.router.remove(seats[1])
    assert (pool.count, pool.available, pool.slots, pool.free) == (2, 2, 5, 5)
    assert seats[1] not in pool
    town.router.add(seats[1])
    town.router.refresh(seats[1].engine)
    assert (pool.count, pool.available, pool.slots, pool.free) == (3, 3, 7, 7)
    assert {pool.sample(mix(draw)) for draw in range(100)} == set(seats)
    assert set(pool.scan(1)) == set(seats)


def test_equal_seats_are_ordered_by_the_draw() -> None:
    """Gateways that see the same must not all choose the same; one draw always chooses the same."""
    town = Town()
    for node_id in "abcd":
        town.add(node_id, slots=8)
    firsts = Counter(town.rank(draw=mix(draw))[0] for draw in range(400))
    assert all(firsts[node_id] > 50 for node_id in "abcd")
    assert town.rank(draw=7) == town.rank(draw=7)


@pytest.mark.parametrize(
    ("need", "seat", "node"),
    [
        (NEED._replace(features=frozenset({"tools"})), {"features": frozenset({"tools"})}, {}),
        (NEED._replace(price_max=5), {"price": Price(5, 5)}, {}),
        (NEED._replace(trust_min=2), {}, {"trust": 2}),
        (NEED._replace(region="north"), {}, {"region": "north"}),
        (NEED._replace(fingerprint="g"), {"fingerprint": "g"}, {}),
        (NEED._replace(fingerprint="f", exact=True), {"continuation": Continuation.EXACT}, {}),
    ],
)
def test_constraints_hold(need: Need, seat: dict[str, Any], node: dict[str, Any]) -> None:
    """The one seat that fits is found among many that do not; without it nothing is."""
    town = Town()
    dear = replace(MODEL, price=Price(6, 6))
    for node_id in "abcdefgh":
        town.add(node_id, capabilities=[dear])
    assert town.rank(need) == []
    town.add("x", capabilities=[replace(dear, **seat)], **node)
    assert {tuple(town.rank(need, draw=draw)) for draw in range(20)} == {("x",)}


def test_the_price_of_a_transcode_is_that_of_pixels() -> None:
    """A ceiling is compared with what the work will be charged by."""
    town = Town()
    video = replace(MODEL, kinds=frozenset({Kind.TRANSCODE}), price=Price(9, 9, 1))
    engine = town.add("a", capabilities=[video])
    need = Need(Kind.TRANSCODE, "m", price_max=1)
    assert fits(engine.seats["m"], need)
    assert town.rank(need) == ["a"]


def test_transcodes_go_where_fewer_pixels_wait() -> None:
    """The same currency, seconds, from pixels."""
    town = Town()
    video = replace(MODEL, kinds=frozenset({Kind.TRANSCODE}))
    town.add("a", capabilities=[video]).backlog = 10**10
    town.add("b", capabilities=[video])
    ranked = [one for draw in range(30) if len(one := town.rank(Need(Kind.TRANSCODE, "m"), draw=draw)) == 2]
    assert set(map(tuple, ranked)) == {("b", "a")}


def test_a_cold_model_and_a_short_context_are_last_resorts() -> None:
    """They work, but loading takes half a minute, and an estimate of the prompt may be wrong."""
    town = Town()
    town.add("cold", capabilities=[replace(MODEL, warm=False)])
    town.add("short", capabilities=[replace(MODEL, context_tokens=10)])
    town.add("good")
    ranked = {tuple(town.rank(draw=draw)) for draw in range(40)}
    assert ("good", "cold", "short") in ranked
    assert all(one[0] == "good" for one in ranked if "good" in one)


def test_full_seats_are_no_candidates() -> None:
    """What is returned can take the work now."""
    town = Town()
    town.add("a", slots=0)
    assert town.rank() == []
    assert town.rank(Need(Kind.EMBEDDING, "m")) == []
    town.add("b", slots=1)
    assert town.rank() == ["b"]


def test_what_failed_the_work_is_avoided_while_there_is_another() -> None:
    """Busy others are waited for; without any, the same one is better than none."""
    town = Town()
    first = town.add("a")
    avoid = frozenset({first.identity})
    assert town.rank(avoid=avoid) == ["a"]
    other = town.add("b", slots=1)
    assert town.rank(avoid=avoid) == ["b"]
    other.held[("x", 1)] = 0.0
    town.router.refresh(other)
    assert town.rank(avoid=avoid) == []


def test_the_engine_that_has_just_become_free_is_always_looked_at() -> None:
    """In a large fleet a sample might miss the one seat that fits."""
    town = Town()
    for number in range(300):
        town.add(f"n{number}")
    special = town.add("special", region="north")
    need = NEED._replace(region="north")
    assert town.rank(need, hint=special) == ["special"]


def test_a_prompt_goes_back_to_where_its_beginning_is_cached() -> None:
    """A cached prefix is prefill saved, worth a little queue but not any queue."""
    town = Town()
    for node_id in "abcdef":
        town.add(node_id, slots=8)
    prefix = tuple(mix(number) for number in range(20))
    seat = town.members.nodes["d"].engines["e"].seats["m"]
    town.router.memory.sent(0.0, prefix, seat)
    ask = Ask(NEED, 4000, 100, 0, prefix, 1)
    assert all(town.router.rank(replace(ask, draw=draw))[0] is seat for draw in range(20))
    seat.engine.backlog = 10**9
    assert town.router.rank(ask)[0] is not seat


def test_the_seat_that_has_most_of_a_prompt_is_looked_at_whoever_was_sent_a_part_of_it_since() -> None:
    """In a large fleet it is hardly ever drawn, and what it has cached would be computed again."""
    town = Town()
    for number in range(300):
        town.add(f"n{number}")
    most, part = (town.members.nodes[name].engines["e"].seats["m"] for name in ("n7", "n8"))
    town.router.memory.sent(0.0, (1, 2, 3), most)
    town.router.memory.sent(0.0, (2,), part)
    assert town.router.memory.depths((1, 2, 3)) == {most: 3, part: 2}
    assert all("n7" in town.rank(draw=mix(draw), prefix=(1, 2, 3)) for draw in range(10))


def test_the_tree_draws_in_proportion_to_free_slots() -> None:
    """A machine ten times as large gets ten times as much; a full one nothing."""
    town = Town()
    for node_id, slots in (("a", 1), ("b", 10), ("c", 0)):
        town.add(node_id, slots=slots)
    pool = town.router.pools[KEY]
    drawn = Counter(one.engine.node.node_id for n in range(1100) if (one := pool.sample(mix(n))))
    assert drawn["c"] == 0
    assert 7 < drawn["b"] / drawn["a"] < 14
    assert Pool().sample(1) is None
    assert list(Pool().scan(1)) == []


@pytest.mark.parametrize("size", [1, 2, 8, 9, 64, 65, 600])
def test_every_free_slot_is_drawn_by_its_own_part_of_the_draws(size: int) -> None:
    """Also where the tree gets another branch or level: no seat is drawn for the slots of another."""
    town = Town()
    for number in range(size):
        town.add(f"n{number}", slots=number % 4 + (size == 1))
    pool = town.router.pools[KEY]
    slots = [one for one in pool for _ in range(one.engine.slots)]
    assert pool.free == len(slots)
    drawn = [pool.sample(int((at + 0.5) / len(slots) * 2**64)) for at in range(len(slots))]
    assert drawn == slots


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), max_size=40))
def test_the_tree_agrees_with_a_plain_list(script: list[tuple[int, int]]) -> None:
    """Seats join, change and leave in any order: totals and draws stay right."""
    town = Town()
    pools = []
    for which, slots in script:
        node_id = f"n{which}"
        town.add(node_id, slots=slots, capabilities=[MODEL] if slots != 5 else [])
        pools = list(town.router.pools.values())
        for pool in pools:
            seats = [one for one in pool.seats if one is not None]
            assert len(seats) == pool.count
            assert all(one in pool for one in seats)
            assert pool.free == pool.slots == sum(one.engine.free for one in seats)
            drawn = pool.sample(mix(slots))
            assert (drawn is None) == (pool.free == 0)
            assert drawn is None or drawn.engine.free


def test_a_scan_begins_where_the_draw_says_and_has_an_end() -> None:
    """In a large fleet of odd ones each try looks at others, and none at all of them."""
    town = Town()
    for number in range(100):
        town.add(f"n{number}")
    pool = town.router.pools[KEY]
    assert [pool.seats.index(one) for one in pool.scan(290)] == [
        (90 + step) % 100 for step in range(SCAN_MAX)
    ]
    assert list(pool) == pool.seats


def test_a_decision_looks_at_a_handful_of_seats_in_a_fleet_of_any_size() -> None:
    """Counted, not timed: predictions made for one decision."""
    counts = []
    for size in (20, 2000):
        town = Town()
        for number in range(size):
            town.add(f"n{number}", slots=4)
        calls = 0
        plain = town.router.cost_s

        def counted(*args: Any, plain: Any = plain) -> float:
            nonlocal calls
            calls += 1
            return float(plain(*args))

        town.router.cost_s = counted  # type: ignore[method-assign]
        for draw in range(50):
            assert town.rank(draw=mix(draw), prefix=(1, 2, 3))
        counts.append(calls / 50)
    assert counts[1] <= 6


def test_a_need_is_what_the_work_says() -> None:
    """Exactness matters only when there is something to go on with."""
    work = chat(needs_exact_resume=True, price_max=3, trust_min=1, region="x", features=frozenset({"v"}))
    assert need_of(work) == Need(Kind.CHAT, "m", frozenset({"v"}), 3, 1, "x", "", False)
    assert need_of(work, "f").exact
    assert need_of(work).pool == KEY
