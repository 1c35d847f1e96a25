"""The router's predictor against the engine model, and its bounds."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from groundswell.core.batching import BatchingEngine
from groundswell.core.estimate import PIXELS_PER_S, WARMUP_SAMPLES, Estimator, Key, Prediction
from groundswell.core.profiles import PROFILES, Profile

KEY: Key = "node\nengine\nmodel"


@dataclass
class Seen:
    """One request as the gateway sees it."""

    prompt: int
    output: int
    sent_s: float
    sequences: int
    predicted: Prediction
    tokens: int = 0
    first_s: float = 0.0
    last_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float:
        return (self.last_s - self.first_s) / (self.output - 1)


def watch(prior: str, truth: Profile, rate_per_s: float, learn: int, check: int, seed: int) -> list[Seen]:
    """Poisson arrivals on an engine that is really ``truth``; learn from the first, predict the rest.

    Prompts are log-normal (mean 500), outputs exponential (mean 120). Returns the requests predicted after
    ``learn`` were finished, each with what was predicted when it was sent.
    """
    chance = random.Random(seed)
    estimator, engine = Estimator(), BatchingEngine(truth)
    flying: dict[str, Seen] = {}
    done: list[Seen] = []
    checked: list[Seen] = []
    next_s, wake_s, number = chance.expovariate(rate_per_s), None, 0
    while len(checked) < check or not all(one.tokens == one.output for one in checked):
        now_s = next_s if wake_s is None else min(next_s, wake_s)
        if now_s == next_s:
            prompt = max(8, int(chance.lognormvariate(0, 0.8) * 365))
            output = max(2, int(chance.expovariate(1 / 120)))
            waiting = sum(one.prompt for one in flying.values() if not one.tokens)
            seen = estimator.predict(KEY, prior, prompt, waiting, len(flying))
            flying[str(number)] = Seen(prompt, output, now_s, len(flying) + 1, seen)
            if len(done) >= learn and len(checked) < check:
                checked.append(flying[str(number)])
            engine.add(now_s, str(number), prompt, output)
            number += 1
            next_s += chance.expovariate(rate_per_s)
        happened = engine.step(now_s)
        wake_s = happened.wake_s
        for step in happened.steps:
            for name in step.tokens:
                one = flying[name]
                one.first_s = one.first_s or step.at_s
                one.last_s, one.tokens = step.at_s, one.tokens + 1
            for name in step.finished:
                one = flying.pop(name)
                done.append(one)
                if len(done) <= learn:
                    estimator.observe(
                        KEY, prior, one.prompt, one.output, one.ttft_s, one.tpot_s, one.sequences
                    )
    return checked


def errors(checked: list[Seen]) -> tuple[float, float]:
    """Relative errors of the mean TTFT over requests, and of the mean TPOT over tokens after the first."""
    ttft = sum(one.predicted.ttft_s for one in checked) / sum(one.ttft_s for one in checked) - 1
    tpot = (
        sum(one.predicted.tpot_s * (one.output - 1) for one in checked)
        / sum(one.tpot_s * (one.output - 1) for one in checked)
        - 1
    )
    return ttft, tpot


def rate_at(truth: Profile, load: float) -> float:
    """Requests per second for about that share of what the engine can do with such requests."""
    return load / (500 * truth.b_s + 120 * (truth.c0_s / 40 + truth.d_s + 560 * truth.e_s))


@pytest.mark.parametrize("load", [0.1, 0.4])
@pytest.mark.parametrize(
    ("prior", "truth"),
    [
        ("h100-8b", PROFILES["h100-8b"].slower(0.5)),
        ("h100-8b", PROFILES["h100-8b"].slower(3.0)),
        ("h100-8b", PROFILES["h100-70b"]),
        ("h100-8b", PROFILES["a100-8b"]),
        ("a100-8b", PROFILES["h200-70b"]),
        ("h100-8b", PROFILES["h100-8b"].slower(0.1)),  # an emulated engine at tenfold speed
    ],
)
def test_after_300_requests_means_are_within_15_percent_of_the_truth(
    prior: str, truth: Profile, load: float
) -> None:
    """Routing compares nodes by these two numbers; a wrong prior must not last."""
    checked = watch(prior, truth, rate_at(truth, load), learn=300, check=150, seed=7)
    ttft, tpot = errors(checked)
    assert abs(ttft) < 0.15
    assert abs(tpot) < 0.15


def test_without_learning_a_wrong_prior_stays_wrong() -> None:
    """The test above can fail: the same run with nothing learned is off by half."""
    truth = PROFILES["h100-8b"].slower(3.0)
    ttft, tpot = errors(watch("h100-8b", truth, rate_at(truth, 0.1), learn=0, check=100, seed=7))
    assert ttft < -0.5
    assert tpot < -0.5


def test_the_first_answers_of_an_engine_teach_nothing() -> None:
    """They pay for loading and compiling, and would make a fresh node look slow for long."""
    estimator = Estimator()
    for _ in range(WARMUP_SAMPLES):
        estimator.observe(KEY, "h100-8b", 500, 100, 60.0, 1.0, 1)
    assert estimator.scales(KEY) == (1.0, 1.0, 1.0)


def test_one_stall_is_soon_forgiven() -> None:
    """A single answer a hundred times too slow moves the prediction by less than a half."""
    estimator = Estimator()
    before = estimator.predict(KEY, "h100-8b", 500, 0, 0)
    for number in range(100):
        slow = 100.0 if number == 90 else 1.0
        estimator.observe(KEY, "h100-8b", 500, 100, before.ttft_s * slow, before.tpot_s * slow, 1)
    after = estimator.predict(KEY, "h100-8b", 500, 0, 0)
    assert after.ttft_s < 1.5 * before.ttft_s
    assert after.tpot_s < 1.5 * before.tpot_s


def test_more_in_flight_never_looks_faster() -> None:
    """The router spreads load by this; a busy engine must cost more, also beyond its places."""
    estimator = Estimator()
    seen = [estimator.predict(KEY, "cpu", 200, 0, n) for n in (0, 1, 4, 8, 16, 32)]
    assert [one.ttft_s for one in seen] == sorted(one.ttft_s for one in seen)
    assert [one.tpot_s for one in seen] == sorted(one.tpot_s for one in seen)
    waiting = estimator.predict(KEY, "cpu", 200, 5000, 4)
    assert waiting.ttft_s > seen[2].ttft_s


def test_nonsense_is_not_learned() -> None:
    """Clocks jump and engines lie; a sample without a time says nothing."""
    estimator = Estimator()
    for _ in range(WARMUP_SAMPLES + 5):
        estimator.observe(KEY, "h100-8b", 500, 100, 0.0, 0.01, 1)
        estimator.observe(KEY, "h100-8b", 500, 0, 0.1, 0.01, 1)
        estimator.observe_transcode(KEY, 0, 1.0)
        estimator.observe_transcode(KEY, 1_000_000, 0.0)
    assert estimator.scales(KEY) == (1.0, 1.0, 1.0)
    assert estimator.predict_transcode_s(KEY, int(PIXELS_PER_S)) == pytest.approx(1.0)


def test_answers_of_one_token_teach_the_time_to_the_first() -> None:
    """They have no time between tokens, which must not be read as zero."""
    estimator = Estimator()
    before = estimator.predict(KEY, "h100-8b", 500, 0, 0)
    for _ in range(100):
        estimator.observe(KEY, "h100-8b", 500, 1, 2 * before.ttft_s, 0.0, 1)
    after = estimator.predict(KEY, "h100-8b", 500, 0, 0)
    assert after.ttft_s == pytest.approx(2 * before.ttft_s, rel=0.05)
    assert after.tpot_s > before.tpot_s


def test_keys_are_bounded_and_the_least_used_is_forgotten() -> None:
    """Nodes come and go for years; what is known of them must not pile up."""
    estimator = Estimator(keys_max=2)
    for name in ("a", "b", "a", "c"):
        for _ in range(WARMUP_SAMPLES + 1):
            estimator.observe(name, "h100-8b", 500, 100, 1.0, 0.1, 1)
    assert estimator.scales("b") == (1.0, 1.0, 1.0)
    assert estimator.scales("a") != (1.0, 1.0, 1.0)


def test_a_transcoder_is_predicted_by_its_own_pace() -> None:
    """From the prior to what was measured, and steady from there."""
    estimator = Estimator()
    assert estimator.predict_transcode_s(KEY, int(PIXELS_PER_S)) == pytest.approx(1.0)
    for _ in range(30):
        estimator.observe_transcode(KEY, 200_000_000, 1.0)
    assert estimator.predict_transcode_s(KEY, 100_000_000) == pytest.approx(0.5, rel=0.02)


def test_waiting_for_a_place_is_not_taken_for_a_slow_engine() -> None:
    """A request beyond the engine's places waits for others to end; no step was slower for that."""
    estimator = Estimator()
    before = estimator.predict(KEY, "cpu", 200, 0, 0)
    for _ in range(100):
        estimator.observe(KEY, "cpu", 200, 100, 60.0, before.tpot_s, 20)
    assert estimator.predict(KEY, "cpu", 200, 0, 0).ttft_s <= before.ttft_s


# --- the arithmetic, number by number ---

H100, CPU = PROFILES["h100-8b"], PROFILES["cpu"]


def decode_s(shape: Profile, sequences: int, context: float) -> float:
    """A step in which so many decode, and the prompts of those who take an ended one's place are read."""
    return shape.c0_s + shape.b_s * sequences * 512 / 128 + sequences * (shape.d_s + shape.e_s * context)


def test_an_idle_engine_reads_the_prompt_and_takes_one_step() -> None:
    """Nobody is beside; a prompt beyond what a step reads takes several."""
    seen = Estimator().predict(KEY, "h100-8b", 500, 0, 0)
    assert seen.tpot_s == pytest.approx(decode_s(H100, 1, 576))
    assert seen.rate_tokens_s == pytest.approx(1 / seen.tpot_s)
    reading = H100.b_s * 500 + H100.a2_s * 500 * 500 / 2
    assert seen.ttft_s == pytest.approx(H100.ingress_s + H100.c0_s + reading)
    for tokens, steps in ((8192, 1), (8193, 2)):
        reading = H100.b_s * tokens + H100.a2_s * tokens * tokens / 2
        first_s = Estimator().predict(KEY, "h100-8b", tokens, 0, 0).ttft_s
        assert first_s == pytest.approx(H100.ingress_s + steps * H100.c0_s + reading)


def test_a_busy_engine_ends_its_step_and_reads_most_of_what_is_before_us() -> None:
    """Half a step runs already; each step decodes for those beside, who take of what a step can read."""
    seen = Estimator().predict(KEY, "h100-8b", 500, 1000, 3)
    assert seen.tpot_s == pytest.approx(decode_s(H100, 4, 576))
    assert seen.rate_tokens_s == pytest.approx(4 / seen.tpot_s)
    reading = H100.b_s * 1150 + H100.a2_s * 500 * 500 / 2
    beside = 1.5 * 3 * (H100.d_s + H100.e_s * 576)
    assert seen.ttft_s == pytest.approx(H100.ingress_s + 1.5 * H100.c0_s + reading + beside)
    fits, over = (Estimator().predict(KEY, "cpu", tokens, 0, 4) for tokens in (508, 509))
    assert over.ttft_s - fits.ttft_s > CPU.c0_s, "of 512 tokens in a step, four are for those beside"


def test_beyond_its_places_a_request_waits_until_enough_others_have_ended() -> None:
    """A place is free once in an answer's time divided by the places."""
    last, full, later = (Estimator().predict(KEY, "cpu", 200, 0, n) for n in (7, 8, 10))
    assert last.tpot_s == full.tpot_s == later.tpot_s == pytest.approx(decode_s(CPU, 8, 576))
    assert last.rate_tokens_s == later.rate_tokens_s == pytest.approx(8 / last.tpot_s)
    assert full.ttft_s - last.ttft_s == pytest.approx(1 * 128 * last.tpot_s / 8)
    assert later.ttft_s - last.ttft_s == pytest.approx(3 * 128 * last.tpot_s / 8)


@pytest.mark.parametrize(
    ("prompt", "places"), [(16_383, 1), (8192, 1), (8191, 2), (5461, 2), (5460, 3), (1_000_000, 1), (1, 8)]
)
def test_long_contexts_leave_fewer_places(prompt: int, places: int) -> None:
    """The memory of an engine holds so many tokens; one sequence it always takes."""
    estimator = Estimator()
    for _ in range(WARMUP_SAMPLES + 1):
        estimator.observe(KEY, "cpu", prompt, 2, 1.0, 0.1, 1)
    seen = estimator.predict(KEY, "cpu", 200, 0, 10)
    assert seen.rate_tokens_s * seen.tpot_s == pytest.approx(places)


def taught(base: float, prefill: float, sequence: float, requests: int) -> Estimator:
    """An estimator that saw an engine whose parts are so many times slower than its profile's."""
    estimator = Estimator()
    for number in range(requests + WARMUP_SAMPLES):
        beside = number % 4 * 20
        prompt = 4000 if number % 3 else 500
        todo_s = H100.b_s * prompt + H100.a2_s * prompt * prompt / 2
        steps = 1.5 if beside else 1.0
        context = 2833 + 500
        ttft_s = base * (H100.ingress_s + steps * H100.c0_s) + prefill * todo_s
        ttft_s += sequence * steps * beside * (H100.d_s + H100.e_s * context)
        n = beside + 1
        tpot_s = base * H100.c0_s + prefill * H100.b_s * n * 2833 / 1000
        tpot_s += sequence * n * (H100.d_s + H100.e_s * context)
        estimator.observe(KEY, "h100-8b", prompt, 1000, ttft_s, tpot_s, n)
    return estimator


@pytest.mark.parametrize("scales", [(2.0, 2.0, 2.0), (3.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.0, 0.3)])
def test_what_is_slow_about_an_engine_is_found_out(scales: tuple[float, float, float]) -> None:
    """A slow disk, a slow prefill and slow memory cost different works differently."""
    assert taught(*scales, requests=400).scales(KEY) == pytest.approx(scales, rel=0.25)
