"""The agent: slots are never overrun, an offer has one answer, engines come back, reports tell the truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fleet import MODEL, play
from hypothesis import given, settings
from hypothesis import strategies as st

from groundswell.core.agent import (
    OVER_MAX,
    OVER_S,
    Agent,
    Begin,
    Drain,
    Drained,
    EngineDown,
    EngineUp,
    Launch,
    Reply,
    Report,
    Stop,
    Tick,
)
from groundswell.model.messages import Accepted, Ended, Fault, Offer, Refusal, Refused, Withdraw
from groundswell.model.money import Usage
from groundswell.model.node import EngineReport, NodeReport
from groundswell.model.work import Kind


def offer(work_id: str = "w", attempt: int = 1, engine_id: str = "e", model: str = "m") -> Offer:
    return Offer(work_id, attempt, "a", engine_id, Kind.CHAT, model)


def told(sequence: int, *, up: bool = True, generation: int = 1, **changes: Any) -> Report:
    """The report of node a, with one engine of one slot."""
    attempts = changes.pop("attempts", ())
    known = (MODEL,) if changes.pop("known", True) else ()
    slots = 1 if known else 0
    engine = EngineReport("e", generation, slots, len(attempts), up, known)
    return Report(NodeReport("a", 1, sequence, (engine,), attempts, **changes))


def ready(slots: int = 1, **settings_: Any) -> Agent:
    """An agent whose one engine is up."""
    agent = Agent("a", 1, {"e": 0}, **settings_)
    agent.step(0.0, Tick())
    agent.step(0.0, EngineUp("e", slots, (MODEL,)))
    return agent


def cancelled(work_id: str = "w", attempt: int = 1) -> Reply:
    return Reply(Ended(work_id, attempt, 0, fault=Fault.CANCELLED))


def test_a_node_starts_its_engines_says_hello_and_runs_an_attempt() -> None:
    """The plain life of a node, effect by effect."""
    done = Ended("w", 1, 3, Usage(1, 3))
    play(
        Agent("a", 1, {"e": 0}),
        (0.0, Tick(), [Launch("e", 1), told(1, up=False, known=False)]),
        (0.5, EngineUp("e", 1, (MODEL,)), [told(2)]),
        (1.0, offer(), [Reply(Accepted("w", 1)), Begin(offer())]),
        (1.5, Tick(), []),
        (2.5, Tick(), [told(3, attempts=(("w", 1),))]),
        (3.0, done, [Reply(done)]),
        (3.0, done, []),
        (4.5, Tick(), [told(4)]),
    )


def test_heartbeats_come_every_two_seconds() -> None:
    """Gateways suspect a node after three missed ones."""
    agent = ready()
    times = []
    for _ in range(5):
        assert agent.wake_s is not None
        times.append(agent.wake_s)
        (heartbeat,) = agent.step(agent.wake_s, Tick())
        assert isinstance(heartbeat, Report)
    assert times == [2.0, 4.0, 6.0, 8.0, 10.0]


def test_a_new_agent_wants_to_be_woken_at_once() -> None:
    """The driver begins with a tick and needs no special case."""
    assert Agent("a", 1, {}).wake_s == 0.0


def test_a_full_engine_refuses() -> None:
    """More than its slots would slow everybody who is there."""
    agent = ready()
    agent.step(1.0, offer("w1"))
    assert agent.step(1.0, offer("w2")) == [Reply(Refused("w2", 1, Refusal.FULL))]
    assert agent.running == 1


def test_the_operator_may_lend_fewer_slots_than_the_probe_finds() -> None:
    """A machine owner keeps some for himself."""
    agent = Agent("a", 1, {"e": 2}, region="north", trust=3, labels=(("gpu", "h100"),))
    agent.step(0.0, Tick())
    (hello,) = agent.step(0.0, EngineUp("e", 8, (MODEL,)))
    assert isinstance(hello, Report)
    assert hello.report.engines[0].slots == 2
    assert (hello.report.region, hello.report.trust, hello.report.labels) == ("north", 3, (("gpu", "h100"),))


def test_what_the_engine_does_not_serve_is_refused() -> None:
    """An unknown engine, an unknown model, an engine that is down: never started, and said so."""
    agent = ready()
    for number, strange in enumerate([offer("x", engine_id="other"), offer("y", model="other")]):
        assert agent.step(1.0 + number / 10, strange) == [
            Reply(Refused(strange.work_id, 1, Refusal.NO_ENGINE))
        ]
    agent.step(1.5, EngineDown("e"))
    assert agent.step(1.6, offer("z"))[0] == Reply(Refused("z", 1, Refusal.NO_ENGINE))


def test_a_second_copy_of_an_offer_gets_the_first_answer() -> None:
    """Links repeat: running, refused or over, an attempt begins at most once."""
    agent = ready()
    agent.step(1.0, offer("w1"))
    refused = agent.step(1.0, offer("w2"))
    assert agent.step(1.1, offer("w1")) == [Reply(Accepted("w1", 1))]
    done = Ended("w1", 1, 0)
    agent.step(1.2, done)
    assert agent.step(1.3, offer("w1")) == [Reply(done)]
    assert agent.step(1.3, offer("w2")) == refused, "there is room now, but no is no"
    assert agent.step(1.4, Withdraw("w1", 1)) == [Reply(done)], "it ended before"
    unknown = agent.step(1.5, offer("w3", model="n"))
    agent.step(1.6, EngineUp("e", 1, (MODEL, replace(MODEL, model="n"))))
    assert agent.step(1.7, offer("w3", model="n")) == unknown


def test_a_withdrawal_stops_frees_and_confirms() -> None:
    """The slot is free for the next at once."""
    agent = ready()
    agent.step(1.0, offer())
    assert agent.step(1.1, Withdraw("w", 1)) == [Stop("w", 1), cancelled()]
    assert agent.step(1.1, Withdraw("w", 1)) == [cancelled()]
    assert agent.step(1.2, Ended("w", 1, 0)) == [], "the adapter's own end comes too late"
    assert Begin(offer("w", 2)) in agent.step(1.2, offer("w", 2))


def test_a_withdrawal_that_overtakes_its_offer_wins() -> None:
    """Otherwise a cancelled work would run to its end, for nobody."""
    agent = ready()
    assert agent.step(1.0, Withdraw("w", 1)) == [cancelled()]
    assert agent.step(1.1, offer()) == [cancelled()]
    assert agent.running == 0


def test_the_memory_of_what_is_over_is_bounded() -> None:
    """A node that runs for years must not remember every work."""
    agent = ready()
    for number in range(OVER_MAX + 1):
        agent.step(1.0, Withdraw(f"w{number}", 1))
    assert agent.step(1.0, offer("w1")) == [cancelled("w1")]
    assert agent.step(1.0, offer("w0"))[0] == Reply(Accepted("w0", 1)), "the oldest is forgotten"


def test_what_has_been_over_for_a_minute_is_forgotten() -> None:
    """What a node remembers must follow its load, not its age: it would grow for an hour."""
    agent = ready()
    agent.step(1.0, Withdraw("w1", 1))
    agent.step(2.0, Withdraw("w2", 1))
    agent.step(4.0, Withdraw("w1", 1))
    agent.step(2.0 + OVER_S, Tick())
    assert agent.step(3.0 + OVER_S, offer("w2")) == [cancelled("w2")], "not before its time"
    agent.step(4.0 + OVER_S, Tick())
    assert agent.step(4.0 + OVER_S, offer("w1")) == [cancelled("w1")], "it was told again later"
    assert agent.step(4.0 + OVER_S, offer("w2"))[0] == Reply(Accepted("w2", 1))


@pytest.mark.parametrize(("hung", "fault"), [(False, Fault.LOST), (True, Fault.STALLED)])
def test_an_engine_that_goes_down_loses_its_attempts_and_is_launched_at_once(
    hung: bool, fault: Fault
) -> None:
    """The gateway moves the work within the round trip of one message; a hang is no death to blame on it."""
    agent = ready()
    agent.step(1.0, offer())
    assert agent.step(1.5, EngineDown("e", hung)) == [
        Stop("w", 1),
        Reply(Ended("w", 1, 0, fault=fault, detail="the engine went down")),
        Launch("e", 2, kill=hung),
        told(3, up=False, generation=2),
    ]
    assert agent.step(1.8, EngineUp("e", 1, (MODEL,))) == [told(4, generation=2)]


def test_a_crash_loop_backs_off_and_a_stable_minute_forgives() -> None:
    """A crash loop must cost nothing, and one crash a day no wait."""
    agent = ready()
    now_s, waits = 0.0, []
    for _ in range(10):
        effects = agent.step(now_s, EngineDown("e"))
        down_s = now_s
        while not any(isinstance(one, Launch) for one in effects):
            assert agent.wake_s is not None
            now_s = max(now_s, agent.wake_s)
            effects = agent.step(now_s, Tick())
        waits.append(now_s - down_s)
        agent.step(now_s, EngineUp("e", 1, (MODEL,)))
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert any(isinstance(one, Launch) for one in agent.step(now_s + 60.0, EngineDown("e")))


def test_an_engine_that_has_done_a_work_is_launched_at_once_however_often_it_was_killed() -> None:
    """Killed from outside again and again, it is in no crash loop; streams wait for it to come back."""
    agent = ready()
    for number in range(1, 6):
        agent.step(number, offer(f"w{number}"))
        agent.step(number + 0.1, Ended(f"w{number}", 1, 3))
        effects = agent.step(number + 0.2, EngineDown("e"))
        assert any(isinstance(one, Launch) for one in effects)
        agent.step(number + 0.3, EngineUp("e", 1, (MODEL,)))
    agent.step(7.0, offer("bad"))
    agent.step(7.1, Ended("bad", 1, 0, fault=Fault.BROKEN))
    effects = agent.step(7.2, EngineDown("e"))
    assert not any(isinstance(one, Launch) for one in effects), "a work that failed proves nothing"


def test_an_engine_that_dies_before_it_was_up_backs_off_too() -> None:
    """A wrong command line must not spin."""
    agent = Agent("a", 1, {"e": 0})
    agent.step(0.0, Tick())
    assert agent.step(0.1, EngineDown("e")) == [Launch("e", 2)]
    assert agent.step(0.2, EngineDown("e")) == []
    assert agent.step(0.3, EngineDown("e", hung=True)) == [], "it is known to be down"
    assert agent.wake_s == 0.7
    assert agent.step(0.7, Tick()) == [Launch("e", 3, kill=True)]


def test_news_of_an_unknown_engine_is_ignored() -> None:
    """A probe of an engine that was just removed may still come in."""
    agent = ready()
    assert agent.step(1.0, EngineUp("other", 1, ())) == []
    assert agent.step(1.0, EngineDown("other")) == []


def test_only_news_is_reported_at_once() -> None:
    """Probes repeat; a report each time would be noise, a changed capability is not."""
    agent = ready()
    assert agent.step(1.0, EngineUp("e", 1, (MODEL,))) == []
    (news,) = agent.step(1.1, EngineUp("e", 2, (MODEL,)))
    assert isinstance(news, Report)


def test_a_draining_node_refuses_finishes_and_says_when_it_is_empty() -> None:
    """A planned end costs no request."""
    agent = ready()
    agent.step(1.0, offer())
    assert agent.step(1.1, Drain()) == [told(3, attempts=(("w", 1),), draining=True)]
    assert agent.step(1.1, Drain()) == []
    assert agent.step(1.2, offer("x")) == [Reply(Refused("x", 1, Refusal.DRAINING))]
    assert agent.step(1.25, Withdraw("x", 1)) == [Reply(Refused("x", 1, Refusal.DRAINING))], (
        "so it was answered"
    )
    done = Ended("w", 1, 0)
    assert agent.step(1.3, done) == [Reply(done), Drained()]
    assert agent.step(1.4, Tick()) == []


def test_an_empty_node_is_drained_at_once() -> None:
    """Nothing to wait for."""
    assert ready().step(1.0, Drain()) == [Drained(), told(3, draining=True)]


EVENTS = st.one_of(
    st.builds(offer, st.sampled_from("uvwxyz"), st.integers(1, 2), st.sampled_from(["e", "f"])),
    st.builds(Withdraw, st.sampled_from("uvwxyz"), st.integers(1, 2)),
    st.builds(Ended, st.sampled_from("uvwxyz"), st.integers(1, 2), st.just(0)),
    st.builds(EngineUp, st.sampled_from(["e", "f"]), st.integers(0, 3), st.just((MODEL,))),
    st.builds(EngineDown, st.sampled_from(["e", "f"]), st.booleans()),
    st.just(Tick()),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_any_order_of_events_keeps_slots_and_answers_straight(events: list[Any]) -> None:
    """No attempt begins twice or beyond the slots; what began is stopped or ended once; generations rise."""
    agent = Agent("a", 1, {"e": 2, "f": 1})
    running: set[tuple[str, int]] = set()
    began: set[tuple[str, int]] = set()
    generations = {"e": 0, "f": 0}
    up = [EngineUp("e", 2, (MODEL,)), EngineUp("f", 1, (MODEL,))]
    for now, event in enumerate([Tick(), *up, *events]):
        key = (getattr(event, "work_id", ""), getattr(event, "attempt", 0))
        for effect in agent.step(now / 4, event):
            match effect:
                case Begin(one):
                    begun = (one.work_id, one.attempt)
                    assert begun not in began
                    began.add(begun)
                    running.add(begun)
                case Stop(work_id, attempt):
                    running.remove((work_id, attempt))
                case Reply(Ended()) if isinstance(event, Ended):
                    running.remove(key)
                case Launch(engine_id, generation):
                    assert generation > generations[engine_id]
                    generations[engine_id] = generation
                case Report(report):
                    assert set(report.attempts) == running
                    assert sum(one.running for one in report.engines) == len(running)
        assert agent.running == len(running) <= 3
