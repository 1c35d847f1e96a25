"""Who is taken out of rotation, for how long, and when nobody is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fleet import MODEL, report

from groundswell.core.health import Breaker
from groundswell.core.membership import Engine, Members
from groundswell.core.outliers import Outliers
from groundswell.core.routing import Ask, Need, Pool, Router
from groundswell.core.timers import Timers
from groundswell.model.work import Kind


def ask(*avoid: Engine) -> Ask:
    """A chat that failed on these."""
    return Ask(Need(Kind.CHAT, "m"), 10, 10, 0, (), 1, avoid=frozenset(one.identity for one in avoid))


class Town:
    """Outliers among nodes that were reported at 0 s."""

    def __init__(self, *node_ids: str) -> None:
        self.timers = Timers()
        self.members = Members(self.timers)
        self.router = Router()
        self.outliers = Outliers(self.members, self.router, self.timers)
        for node_id in node_ids:
            self.report(node_id, 1)

    def report(self, node_id: str, sequence: int, **said: Any) -> Engine:
        change = self.members.report(0.0, report(node_id, sequence, **said))
        assert change is not None
        for seat in change.removed:
            self.router.remove(seat)
        for seat in change.added:
            self.router.add(seat)
        return self.engine(node_id)

    def engine(self, node_id: str) -> Engine:
        return self.members.nodes[node_id].engines["e"]

    @property
    def pool(self) -> Pool:
        return self.router.pools[(Kind.CHAT, "m")]

    def eject(self, *node_ids: str) -> list[str]:
        """Those of them that went out."""
        engines = [self.outliers.eject(1.0, self.engine(node_id)) for node_id in node_ids]
        return [one.node.node_id for one in engines if one is not None]


def test_a_failure_leaves_a_doubt_and_the_third_in_a_row_ejects() -> None:
    """For five seconds, at the end of which its alarm rings."""
    town = Town("a", "b")
    engine = town.engine("a")
    assert [town.outliers.bad(now_s, engine) for now_s in (1.0, 2.0)] == [None, None]
    assert engine.doubted_s == 2.0
    assert town.outliers.bad(3.0, engine) is engine
    assert engine.breaker.open
    assert engine.breaker.due_s == 8.0


def test_a_success_ends_the_doubt_and_only_a_probe_changes_the_standing() -> None:
    """What changed is looked at again by the caller; a plain success changes nothing for anybody."""
    town = Town("a", "b")
    engine = town.engine("a")
    town.outliers.bad(1.0, engine)
    assert town.outliers.good(2.0, engine) is None
    assert engine.doubted_s is None
    town.eject("a")
    town.outliers.relent(engine.breaker)
    assert town.outliers.good(7.0, engine) is engine
    assert not engine.breaker.half_open


@pytest.mark.parametrize(
    ("nodes", "out"), [("a", ""), ("ab", "a"), ("abc", "a"), ("abcd", "ab"), ("abcde", "ab")]
)
def test_at_most_half_of_the_seats_go_out(nodes: str, out: str) -> None:
    """When most of them seem to fail, the fault is the work's or ours."""
    assert "".join(Town(*nodes).eject(*nodes)) == out


def test_those_who_are_not_well_do_not_count() -> None:
    """Half of what serves now must stay, whatever else is known."""
    town = Town("a", "b", "c", "d", "e")
    town.report("c", 2, healthy=False)
    town.members.silent(6.0, town.members.nodes["d"])
    town.members.left("e", 1)
    assert town.eject("a", "b") == ["a"]


def test_one_model_with_too_few_seats_protects_the_engine() -> None:
    """It may be one of many for one model and the only one for another."""
    town = Town("a", "b")
    both = [MODEL, replace(MODEL, model="n")]
    town.report("c", 1, capabilities=both)
    assert town.eject("c") == []
    town.report("d", 1, capabilities=both)
    assert town.eject("c") == ["c"]


def test_an_engine_is_ejected_once() -> None:
    """Works that fail after it went out were sent before; they must not keep it out for longer."""
    town = Town("a", "b", "c", "d")
    assert town.eject("a", "a") == ["a"]
    assert town.engine("a").breaker.due_s == 6.0


def test_the_process_that_came_after_is_not_ejected_for_what_the_old_one_did() -> None:
    """The last failures of a node that was started again may come in late."""
    town = Town("a", "b", "c")
    old = town.engine("a")
    new = town.report("a", 1, generation=2)
    assert town.outliers.eject(1.0, old) is None
    assert new.available


def test_when_the_time_is_over_one_work_may_try_it() -> None:
    """Whatever was held against it, its turn has come; and it may be gone by then."""
    town = Town("a", "b")
    engine = town.engine("a")
    town.eject("a")
    assert engine.doubted_s == 1.0
    assert town.outliers.relent(engine.breaker) is engine
    assert (engine.free, engine.doubted_s) == (1, None)
    assert town.outliers.relent(Breaker(("a", "other"))) is None
    assert town.outliers.relent(Breaker(("nobody", "e"))) is None


def test_the_last_resort_is_all_that_lives_and_has_not_failed_the_work() -> None:
    """Their time is over at once: no alarm is left to say so again."""
    town = Town("a", "b", "c", "d")
    assert town.eject("a", "b") == ["a", "b"]
    assert town.outliers.last_resort(2.0, town.pool, ask()) == [], "c and d are there"
    for node_id in "cd":
        town.report(node_id, 2, healthy=False)
    a, b = town.engine("a"), town.engine("b")
    assert town.outliers.last_resort(2.0, town.pool, ask(a)) == [b]
    assert (a.breaker.open, b.free) == (True, 1)
    assert b.breaker.due_s > a.breaker.due_s


def test_the_only_engine_left_stays_out_no_longer_than_the_first_time() -> None:
    """It has failed the work that waits, so not at once; but nothing else can go on with it."""
    town = Town("a", "b")
    a = town.engine("a")
    town.eject("a")
    town.outliers.relent(a.breaker)
    town.eject("a")
    assert a.breaker.due_s == 11.0, "the second time is longer"
    assert town.outliers.last_resort(2.0, town.pool, ask(a)) == []
    assert a.breaker.due_s == 11.0, "b is there"
    town.report("b", 2, healthy=False)
    assert town.outliers.last_resort(2.0, town.pool, ask(a)) == []
    assert (a.breaker.open, a.breaker.due_s) == (True, 7.0)
    town.outliers.last_resort(4.0, town.pool, ask(a))
    assert a.breaker.due_s == 7.0, "who asks again does not put it off"
