"""Which nodes count, and what their reports change."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet import MODEL, report

from groundswell.core import membership
from groundswell.core.membership import Change, Members, Standing
from groundswell.core.timers import Timers


class Town:
    """Members under a made-up clock."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.members = Members(self.timers)

    def ring(self, now_s: float) -> list[Change]:
        alarms = self.timers.due(now_s)
        return [self.members.silent(now_s, one) for one in alarms if isinstance(one, membership.Node)]


def test_a_first_report_brings_seats() -> None:
    """Each model of each engine is a seat, with the slots of the engine."""
    town = Town()
    change = town.members.report(0.0, report("a"))
    assert change is not None
    assert [one.key for one in change.added] == ["a\ne\nm"]
    (engine,) = town.members.engines()
    assert engine.free == 2
    assert engine.identity == ("a", 1, "e", 1)


def test_machines_that_can_do_the_same_share_one_word_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand copies would be a good part of a node's memory, and of what a decision has to fetch."""
    monkeypatch.setattr(membership, "CAPABILITIES_MAX", 2)
    town = Town()
    named = [MODEL, replace(MODEL), replace(MODEL, model="n"), replace(MODEL, model="o"), replace(MODEL)]
    for number, capability in enumerate(named):
        assert town.members.report(0.0, report(f"n{number}", capabilities=[capability])) is not None
    kept = [seat.capability for engine in town.members.engines() for seat in engine.seats.values()]
    assert kept == named
    assert kept[0] is kept[1]
    assert kept[4] is named[4], "beyond the bound they are gathered anew"


def test_old_copies_and_ghosts_are_ignored() -> None:
    """Links repeat and reorder, and a restarted node's predecessor may still talk."""
    members = Town().members
    assert members.report(0.0, report("a", 5, generation=2)) is not None
    assert members.report(0.1, report("a", 5, generation=2)) is None
    assert members.report(0.1, report("a", 4, generation=2)) is None
    assert members.report(0.1, report("a", 99, generation=1)) is None
    assert members.left("a", 1) is None
    assert members.left("b", 1) is None


def test_silence_makes_it_suspect_then_dead_and_a_new_word_brings_it_back() -> None:
    """Six seconds, ten seconds; a late copy of an old report does not wake the dead."""
    town = Town()
    town.members.report(0.0, report("a"))
    (engine,) = town.members.engines()
    assert town.ring(5.9) == []
    (suspect,) = town.ring(6.0)
    assert suspect.touched == [engine]
    assert town.members.nodes["a"].standing is Standing.SUSPECT
    assert engine.free == 0
    assert not suspect.gone
    (dead,) = town.ring(10.0)
    assert dead.gone == [engine]
    assert town.members.nodes["a"].standing is Standing.DEAD
    assert town.members.report(11.0, report("a", 1)) is None
    assert town.members.report(11.0, report("a", 2)) is not None
    assert next(town.members.engines()).free == 2
    assert town.ring(16.0) == []


def test_a_heartbeat_in_time_keeps_it_and_ends_suspicion() -> None:
    """A short cut costs new work only."""
    town = Town()
    town.members.report(0.0, report("a"))
    town.members.report(4.0, report("a", 2))
    assert town.ring(9.0) == []
    assert len(town.ring(10.0)) == 1
    change = town.members.report(11.0, report("a", 3))
    assert change is not None
    assert not change.gone
    assert town.members.nodes["a"].standing is Standing.ALIVE


def test_a_goodbye_counts_at_once_and_once() -> None:
    """The link knows before the clock does."""
    town = Town()
    town.members.report(0.0, report("a"))
    change = town.members.left("a", 1)
    assert change is not None
    assert len(change.gone) == len(change.removed) == 1
    assert town.members.left("a", 1) is None
    assert town.timers.wake_s is None


def test_all_engines_of_a_node_that_leaves_are_gone_with_their_seats() -> None:
    """Whoever still holds one of them must find that it takes nothing."""
    members = Town().members
    one = report("a")
    members.report(0.0, replace(one, engines=(one.engines[0], replace(one.engines[0], engine_id="f"))))
    engines = list(members.engines())
    change = members.left("a", 1)
    assert change is not None
    assert change.gone == engines
    assert [seat.engine for seat in change.removed] == engines
    assert all(not engine.healthy and engine.seats == {} for engine in engines)


def test_a_new_generation_replaces_everything() -> None:
    """The old engines are gone, the new ones are others, and the breaker remembers."""
    members = Town().members
    members.report(0.0, report("a"))
    (old,) = members.engines()
    change = members.report(1.0, report("a", 1, generation=2))
    assert change is not None
    assert change.gone == [old]
    (new,) = members.engines()
    assert new is not old
    assert new.breaker is old.breaker


def test_a_restarted_engine_is_the_same_place_with_another_process() -> None:
    """What ran there is judged by the dispatcher."""
    members = Town().members
    members.report(0.0, report("a"))
    change = members.report(1.0, report("a", 2, engine_generation=2))
    assert change is not None
    assert change.restarted == list(members.engines())
    assert not change.gone


@pytest.mark.parametrize(
    ("now_s", "said", "doubted"),
    [
        (11.0, {}, True),
        (12.0, {}, False),
        (12.0, {"healthy": False}, True),
        (2.5, {"engine_generation": 2}, False),
    ],
)
def test_a_doubt_ends_with_the_process_or_after_some_good_reports(
    now_s: float, said: dict[str, object], doubted: bool
) -> None:
    """A node needs seconds to notice that its engine is stopped; until then its word is worth little."""
    members = Town().members
    members.report(0.0, report("a"))
    (engine,) = members.engines()
    engine.doubted_s = 2.0
    members.report(now_s, report("a", 2, **said))  # type: ignore[arg-type]
    assert (engine.doubted_s is not None) == doubted


def test_an_engine_that_is_no_longer_listed_is_gone() -> None:
    """An operator may remove one from a living node."""
    members = Town().members
    members.report(0.0, report("a"))
    change = members.report(1.0, replace(report("a", 2), engines=()))
    assert change is not None
    assert len(change.gone) == len(change.removed) == 1
    assert list(members.engines()) == []


def test_changed_capabilities_change_seats() -> None:
    """Another price is another seat; what stayed the same stays."""
    members = Town().members
    other = replace(MODEL, model="n")
    members.report(0.0, report("a", capabilities=[MODEL, other]))
    change = members.report(1.0, report("a", 2, capabilities=[replace(MODEL, context_tokens=9), other]))
    assert change is not None
    assert [one.capability for one in change.removed] == [MODEL]
    assert [one.capability.context_tokens for one in change.added] == [9]


@pytest.mark.parametrize(
    "said", [{"draining": True}, {"healthy": False}, {"slots": 0}, {"slots": 1, "capabilities": []}]
)
def test_an_engine_is_free_only_if_all_is_well(said: dict[str, object]) -> None:
    """Draining, unhealthy or without slots: nothing new."""
    members = Town().members
    members.report(0.0, report("a", **said))  # type: ignore[arg-type]
    (engine,) = members.engines()
    assert engine.free == (1 if said.get("slots") else 0)


def test_half_open_means_one_at_a_time() -> None:
    """And an open breaker nothing."""
    members = Town().members
    members.report(0.0, report("a", slots=4))
    (engine,) = members.engines()
    engine.breaker.trip(0.0)
    assert engine.free == 0
    engine.breaker.relent()
    assert engine.free == 1
    engine.breaker.probe = ("w", 1)
    assert engine.free == 0


def test_the_memory_of_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines come and go for years; the longest dead are forgotten first, the living never."""
    monkeypatch.setattr(membership, "NODES_MAX", 2)
    members = Town().members
    for number, node_id in enumerate("ab"):
        members.report(float(number), report(node_id))
        members.left(node_id, 1)
    members.report(3.0, report("c"))
    members.report(4.0, report("d"))
    members.report(5.0, report("e"))
    assert list(members.nodes) == ["c", "d", "e"]
