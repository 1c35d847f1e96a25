"""The continuous-batching engine, checked by hand-computed times and by what must hold in any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundswell.core.batching import BatchingEngine, Happened, Load, StepEnded
from groundswell.core.profiles import BLOCK_TOKENS, PROFILES, Profile
from groundswell.model.errors import BadRequest, Overloaded

# Powers of two, so that sums are exact: a step is 1 s, a prompt token 1/8 s, a sequence 1/16 s.
PLAIN = Profile(
    "plain", c0_s=1.0, b_s=0.125, a2_s=0.0, d_s=0.0625, e_s=0.0, kv_blocks=100, step_tokens_max=64,
    sequences_max=4, ingress_s=0.0, finish_s=0.0,
)  # fmt: skip


def drain(engine: BatchingEngine, happened: Happened) -> list[StepEnded]:
    """Call the engine whenever it asks until it asks no more; every step that ended."""
    steps = list(happened.steps)
    while happened.wake_s is not None:
        happened = engine.step(happened.wake_s)
        steps += happened.steps
    return steps


def times(steps: list[StepEnded], request_id: str) -> list[float]:
    return [step.at_s for step in steps if request_id in step.tokens]


def test_the_step_that_ends_the_prefill_makes_the_first_token() -> None:
    """Time to first token is one prefill step, and each further token one decode step."""
    engine = BatchingEngine(PLAIN)
    engine.add(0.0, "a", prompt_tokens=16, output_tokens=3)
    steps = drain(engine, engine.step(0.0))
    assert times(steps, "a") == [3.0, 4.0625, 5.125]
    assert steps[-1].finished == ("a",)
    assert engine.load().kv_blocks_used == 0


def test_a_step_costs_what_the_five_coefficients_say() -> None:
    """A prompt in two chunks: attention to the first chunk and the contexts of decoders are paid for."""
    shape = replace(PLAIN, a2_s=1 / 1024, e_s=1 / 1024)
    engine = BatchingEngine(shape)
    engine.add(0.0, "a", prompt_tokens=96, output_tokens=2)
    steps = drain(engine, engine.step(0.0))
    first = 1.0 + 64 / 8 + 64 * 32 / 1024
    second = 1.0 + 32 / 8 + 32 * (64 + 16) / 1024
    decode = 1.0 + 1 / 16 + 97 / 1024
    assert times(steps, "a") == [first + second, first + second + decode]


def test_decodes_go_first_and_a_long_prompt_fills_what_is_left_of_the_budget() -> None:
    """A long prompt slows running streams down, but never stops them: that is what chunks are for."""
    engine = BatchingEngine(PLAIN)
    engine.add(0.0, "a", 8, 10)
    engine.step(0.0)
    engine.add(2.0, "b", 100, 1)  # 63 tokens beside the decode of a, then 37
    steps = drain(engine, engine.step(2.0))
    chunk_s, rest_s = 1 + 63 / 8 + 1 / 16, 1 + 37 / 8 + 1 / 16
    assert times(steps, "a")[:3] == [2.0, 2.0 + chunk_s, 2.0 + chunk_s + rest_s]
    assert times(steps, "b") == [2.0 + chunk_s + rest_s]


def test_requests_start_in_the_order_in_which_they_came() -> None:
    """A short request behind one that does not fit yet waits too, or long ones would starve."""
    engine = BatchingEngine(replace(PLAIN, kv_blocks=8))
    engine.add(0.0, "a", 5 * BLOCK_TOKENS, 4)
    engine.add(0.0, "big", 4 * BLOCK_TOKENS, 2)
    engine.add(0.0, "small", 1, 1)
    steps = drain(engine, engine.step(0.0))
    assert times(steps, "a")[-1] < times(steps, "big")[0] <= times(steps, "small")[0]


def test_no_more_sequences_run_than_there_are_places() -> None:
    """Slots that the engine reports must be true, since gateways plan with them."""
    engine = BatchingEngine(PLAIN)
    for number in range(6):
        engine.add(0.0, str(number), 4, 2)
    engine.step(0.0)
    assert (engine.load().running, engine.load().waiting) == (4, 2)


def test_a_request_waits_for_its_overhead_before_it_is_queued() -> None:
    """Parsing and tokenizing take their time, also on an idle engine."""
    engine = BatchingEngine(replace(PLAIN, ingress_s=0.5))
    engine.add(1.0, "a", 8, 1)
    assert engine.step(1.0) == Happened((), 1.5)
    assert times(drain(engine, engine.step(1.5)), "a") == [3.5]


def test_the_newest_is_sent_back_when_blocks_run_out_and_loses_no_token() -> None:
    """Recompute preemption: the oldest goes on; the newest starts from nothing and still gets all tokens."""
    engine = BatchingEngine(replace(PLAIN, kv_blocks=4, e_s=1 / 1024))
    engine.add(0.0, "old", 20, 40)
    engine.add(0.0, "new", 20, 40)
    steps = drain(engine, engine.step(0.0))
    assert {name for step in steps for name in step.preempted} == {"new"}
    assert len(times(steps, "old")) == len(times(steps, "new")) == 40
    before = [at_s for at_s in times(steps, "new") if at_s <= times(steps, "old")[-1]]
    again = 20 + len(before)
    first_s, second_s = times(steps, "new")[len(before) : len(before) + 2]
    assert first_s - times(steps, "old")[-1] == 1 + again / 8, "all its tokens in one prefill"
    assert second_s - first_s == 1 + 1 / 16 + (again + 1) / 1024
    assert engine.load() == Load(running=0, waiting=0, kv_blocks_used=0, kv_blocks=4)


def test_a_sequence_that_needs_the_last_block_itself_goes_back_itself() -> None:
    """The newest may be the one that asks; it must not take a block from an older one."""
    engine = BatchingEngine(replace(PLAIN, kv_blocks=4))
    engine.add(0.0, "old", 33, 14)  # three blocks, never a fourth
    engine.add(0.0, "new", 15, 20)  # one block, soon a second
    steps = drain(engine, engine.step(0.0))
    assert {name for step in steps for name in step.preempted} == {"new"}
    assert len(times(steps, "new")) == 20


def test_a_cancelled_request_gets_nothing_more_and_frees_what_it_held() -> None:
    """A client that leaves in the middle of a step must not keep blocks, nor get the step's token."""
    engine = BatchingEngine(PLAIN)
    engine.add(0.0, "a", 16, 9)
    engine.add(0.0, "b", 16, 9)
    engine.step(0.0)
    engine.cancel("a")
    engine.cancel("a")
    engine.add(0.0, "a", 16, 1)  # the id is free again, and the old step's token is not the new one's
    engine.cancel("b")
    assert engine.load().kv_blocks_used == 0
    steps = drain(engine, engine.step(1.0))
    assert times(steps, "b") == []
    assert times(steps, "a") == [8.0]


def test_a_late_caller_gets_the_same_steps_as_a_punctual_one() -> None:
    """A busy event loop calls late; that must not slow the engine down."""
    engines = [BatchingEngine(PROFILES["h100-8b"]) for _ in range(2)]
    for engine in engines:
        for number in range(5):
            engine.add(0.0, str(number), 300 * (number + 1), 20)
    punctual = drain(engines[0], engines[0].step(0.0))
    engines[1].step(0.0)
    engines[1].step(engines[1].profile.ingress_s)
    assert list(engines[1].step(1e9).steps) == punctual


def test_what_can_never_run_is_refused_at_once() -> None:
    """A request larger than the KV cache, and one too many in the queue, are errors for the client."""
    engine = BatchingEngine(PLAIN, waiting_max=1)
    with pytest.raises(BadRequest, match=r"^the request needs more KV cache than the engine has$") as huge:
        engine.add(0.0, "huge", 100 * BLOCK_TOKENS, 1)
    assert huge.value.code == "context_length_exceeded"
    engine.add(0.0, "a", 1, 1)
    with pytest.raises(Overloaded, match=r"^the engine's queue is full$") as full:
        engine.add(0.0, "b", 1, 1)
    assert full.value.retry_after_s == 1.0
    with pytest.raises(ValueError):
        engine.add(0.0, "a", 1, 1)


@pytest.mark.parametrize(("prompt", "output"), [(0, 1), (1, 0)])
def test_a_request_of_nothing_is_a_bug_of_the_caller(prompt: int, output: int) -> None:
    """It would never end, or end before it began."""
    with pytest.raises(ValueError, match="a prompt and an output"):
        BatchingEngine(PLAIN).add(0.0, "a", prompt, output)


def test_a_waiting_request_that_is_cancelled_leaves_the_queue() -> None:
    """Its place in the queue is for somebody else."""
    engine = BatchingEngine(PLAIN, waiting_max=2)
    engine.add(0.0, "a", 1, 1)
    engine.add(0.0, "b", 1, 1)
    engine.cancel("a")
    engine.add(0.0, "c", 1, 1)
    assert engine.load().waiting == 2
    assert {name for step in engine.step(0.0).steps + engine.step(99.0).steps for name in step.finished} == {
        "b",
        "c",
    }


@given(
    requests=st.lists(
        st.tuples(
            st.floats(0, 50), st.integers(1, 120), st.integers(1, 40), st.one_of(st.none(), st.floats(0, 60))
        ),
        max_size=12,
    )
)
def test_in_any_order_everyone_gets_exactly_his_tokens(
    requests: list[tuple[float, int, int, float | None]],
) -> None:
    """Whatever comes and goes when: no token is lost or doubled, no limit is broken, nothing stays behind."""
    engine = BatchingEngine(replace(PLAIN, kv_blocks=12, ingress_s=0.25))
    events = [(at, 0, number) for number, (at, *_) in enumerate(requests)]
    events += [(at + wait, 1, number) for number, (at, *_, wait) in enumerate(requests) if wait is not None]
    events.sort()
    got = [0] * len(requests)
    cancelled: set[int] = set()
    finished: set[int] = set()
    wake: float | None = None
    while events or wake is not None:
        now = min(events[0][0] if events else float("inf"), wake if wake is not None else float("inf"))
        while events and events[0][0] <= now:
            _, cancels, number = events.pop(0)
            if cancels:
                engine.cancel(str(number))
                cancelled.add(number)
            else:
                engine.add(now, str(number), requests[number][1], requests[number][2])
        happened = engine.step(now)
        wake = happened.wake_s
        for step in happened.steps:
            for name in step.tokens:
                got[int(name)] += 1
            finished |= {int(name) for name in step.finished}
        load = engine.load()
        assert load.running <= 4
        assert 0 <= load.kv_blocks_used <= 12
    assert all(got[number] == request[2] or number in cancelled for number, request in enumerate(requests))
    assert all(got[number] == requests[number][2] for number in finished)
    assert (engine.load().running, engine.load().waiting, engine.load().kv_blocks_used) == (0, 0, 0)
