"""How long will this take on that engine? The router's predictor.

A gateway sees little of an engine: time to first token, time per output token, lengths, and what it has
itself in flight there. So the shape of the step time stays that of the shipped profile, and only three
scales are learned for each (node, engine, model): of the base (c0 and the request's overhead), of prefill
(b and a2) and of the sequences that decode beside (d and e). Every finished request gives two equations that
are linear in the three scales,

    TPOT = base * c0                + prefill * b * n * P/O     + sequence * n * (d + e * L)
    TTFT = base * (ingress + k*c0)  + prefill * (b*w + a2*p^2/2) + sequence * k * n * (d + e * L)

with n the sequences beside, P, O and L their mean prompt, output and context, p our prompt tokens, w those to
be prefilled up to and with ours, and k the steps until ours has run: those that w needs, and half of the one
that was running. Each equation is weighted by what was predicted, so that means come out right, and old
ones fade. The scales are the least-squares solution that stays within bounds; a weak pull towards one common
scale settles what the data leave open.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from groundswell.core.profiles import DEFAULT_PROFILE, PROFILES, Profile, profile_named

Key = str  # of a seat: node, engine and model
Terms = tuple[float, float, float]

KEYS_MAX = 16_384  # about 1 kB each; beyond it the least recently used is forgotten
WARMUP_SAMPLES = 5  # the first answers of a fresh engine pay for loading, compiling and empty caches
FADE = 0.99  # about the last hundred requests count
PRIOR_WEIGHT = 0.2  # the prior weighs as much as a fifth of a sample in which only one term counts
SCALE_MIN, SCALE_MAX = 0.001, 1000.0
OUTLIER = 5.0  # a sample counts at most as this many times what was predicted: one stall teaches little
WEIGHT_MAX = 4.0  # a very long answer counts as this many mean ones at most
SWEEPS = 8
AHEAD = 0.65  # of the prompt tokens before us, the part that is still to do once we have come in
PIXELS_PER_S = 65e6  # prior: output pixels per core-second, summed over the renditions


class Prediction(NamedTuple):
    """Seconds to the first token and per further token, and tokens per second of the whole engine then."""

    ttft_s: float
    tpot_s: float
    rate_tokens_s: float


class _Steps(NamedTuple):
    """How an engine of this profile steps with the mean request on it: what the equations take from both.
    With the scales multiplied in, it is how we think that the engine really steps.

    ``sequence_s`` is what one more sequence adds to a step, ``turnover_s`` what the prompts add that come in
    its place: while one sequence makes O tokens, each of its neighbours ends once and a new prompt follows.
    """

    ingress_s: float
    step_s: float
    prompt_s: float
    pair_s: float
    sequence_s: float
    turnover_s: float
    tokens_max: int
    places: int


@dataclass(slots=True)
class _Learned:
    """What one engine taught us: the scales (base, prefill, sequence), and the sums that they come from.

    The sums are those of least squares: ``xx`` has the products of the three terms with each other (upper
    triangle, by rows), ``xy`` those with what was seen.
    """

    slower: float = 1.0  # than the profile, all in all
    scales: Terms = (1.0, 1.0, 1.0)
    xx: tuple[float, float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    xy: Terms = (0.0, 0.0, 0.0)
    samples: int = 0
    prompt_tokens: float = 512.0
    output_tokens: float = 128.0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    pixels: float = PIXELS_PER_S
    pixels_s: float = 1.0
    profile: str = ""
    steps: _Steps | None = None  # for this profile, the means and the scales above

    def steps_of(self, profile: str) -> _Steps:
        """Kept, for it is asked for several times in each decision."""
        if self.steps is None or profile != self.profile:
            steps = _steps(profile_named(profile), self)
            self.profile, self.steps = profile, _scaled(steps, *self.scales)
        return self.steps


class Estimator:
    """Predicts, and learns from what was seen. Every call costs the same, however much was seen."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._learned: OrderedDict[Key, _Learned] = OrderedDict()

    def predict(self, key: Key, profile: str, prompt_tokens: int, ahead: int, sequences: int) -> Prediction:
        """What a request with this prompt would see if it were sent now.

        In flight is what runs on this engine already, ours not included: ``ahead`` are prompt tokens of
        requests that have no first token yet, ``sequences`` all requests.
        """
        learned = self._learned.get(key)
        if learned is None:
            learned = _UNKNOWN.get(profile) or _NOTHING
            profile = learned.profile
        steps = learned.steps_of(profile)
        places = steps.places
        beside = sequences if sequences < places else places - 1
        ttft_s, tpot_s = _times(steps, prompt_tokens, ahead, beside)
        if sequences >= places:
            # Beyond the engine's places a request waits until enough of the others have ended.
            ttft_s += (sequences + 1 - places) * learned.output_tokens * tpot_s / places
        return Prediction(ttft_s, tpot_s, (beside + 1) / tpot_s)

    def observe(
        self,
        key: Key,
        profile: str,
        prompt_tokens: int,
        output_tokens: int,
        ttft_s: float,
        tpot_s: float,
        sequences: int,
    ) -> None:
        """Learn from one finished request. ``sequences`` ran on the engine when it was sent, itself included;
        ``tpot_s`` is (last token - first token) / (output tokens - 1), and 0 when there was only one."""
        if ttft_s <= 0 or output_tokens < 1 or sequences < 1:
            return
        learned = self._of(key)
        learned.samples += 1
        if learned.samples <= WARMUP_SAMPLES:
            return
        pace = max(1.0 - FADE, 1.0 / (learned.samples - WARMUP_SAMPLES))
        learned.prompt_tokens += pace * (prompt_tokens - learned.prompt_tokens)
        learned.output_tokens += pace * (output_tokens - learned.output_tokens)
        learned.ttft_s += pace * (ttft_s - learned.ttft_s)
        learned.decode_s += pace * ((output_tokens - 1) * tpot_s - learned.decode_s)
        # By Little's law, the share of sequences that wait for their first token is the share of that time.
        waiting = (sequences - 1) * learned.ttft_s / (learned.ttft_s + learned.decode_s)
        ahead = int(waiting * learned.prompt_tokens)
        steps = _steps(profile_named(profile), learned)
        first, further = _terms(steps, prompt_tokens, ahead, sequences - 1)
        _fade(learned)
        # What waited for a place says nothing about the speed of a step.
        if sequences <= steps.places:
            _add(learned, first, ttft_s, 1.0)
        if tpot_s > 0:
            # A TPOT over few tokens is mostly chance; so each token counts the same, up to a bound.
            weight = min(WEIGHT_MAX, (output_tokens - 1) / learned.output_tokens)
            _add(learned, further, tpot_s, weight)
        _solve(learned)
        learned.steps = None

    def predict_transcode_s(self, key: Key, pixels: int) -> float:
        """Seconds that an engine takes for so many output pixels (frame size x frames, all renditions)."""
        learned = self._learned.get(key, _NOTHING)
        return pixels * learned.pixels_s / learned.pixels

    def observe_transcode(self, key: Key, pixels: int, seconds: float) -> None:
        """Learn from one finished transcode."""
        if pixels <= 0 or seconds <= 0:
            return
        learned = self._of(key)
        learned.pixels = 0.9 * learned.pixels + pixels
        learned.pixels_s = 0.9 * learned.pixels_s + seconds

    def scales(self, key: Key) -> Terms:
        """The learned scales of base, prefill and sequence; all 1 before anything was learned."""
        return self._learned.get(key, _NOTHING).scales

    def _of(self, key: Key) -> _Learned:
        learned = self._learned.setdefault(key, _Learned())
        self._learned.move_to_end(key)
        if len(self._learned) > self._keys_max:
            self._learned.popitem(last=False)
        return learned


def _steps(shape: Profile, learned: _Learned) -> _Steps:
    """The profile with the mean request put in: its prompt, and half of its output as context."""
    context = learned.prompt_tokens + learned.output_tokens / 2
    # As many sequences of that context run at once as have a place and KV cache.
    places = min(shape.sequences_max, int(shape.kv_tokens / max(1.0, context)))
    return _Steps(
        shape.ingress_s,
        shape.c0_s,
        shape.b_s,
        shape.a2_s / 2,
        shape.d_s + shape.e_s * context,
        shape.b_s * learned.prompt_tokens / max(1.0, learned.output_tokens),
        shape.step_tokens_max,
        max(1, places),
    )


def _scaled(steps: _Steps, base: float, prefill: float, sequence: float) -> _Steps:
    return _Steps(
        base * steps.ingress_s,
        base * steps.step_s,
        prefill * steps.prompt_s,
        prefill * steps.pair_s,
        sequence * steps.sequence_s,
        prefill * steps.turnover_s,
        steps.tokens_max,
        steps.places,
    )


def _times(steps: _Steps, prompt: int, ahead: int, beside: int) -> tuple[float, float]:
    """The two equations: TTFT and TPOT, in seconds."""
    ingress_s, step_s, prompt_s, pair_s, sequence_s, turnover_s, tokens_max, _ = steps
    # Some of what is ahead is in the running step, or is done while our request is being taken in. The share
    # was found with core.batching under Poisson arrivals; it is right within 7 % from 10 to 70 % load.
    todo = prompt + int(AHEAD * ahead)
    room = tokens_max - beside if beside < tokens_max else 1
    count = -(-todo // room) + (0.5 if beside else 0.0)
    prefill_s = prompt_s * todo + pair_s * prompt * prompt
    ttft_s = ingress_s + prefill_s + count * (step_s + beside * sequence_s)
    return ttft_s, step_s + (beside + 1) * (turnover_s + sequence_s)


def _terms(steps: _Steps, prompt: int, ahead: int, beside: int) -> tuple[Terms, Terms]:
    """What each scale is multiplied with in TTFT and in TPOT: the equations with the other two at nothing."""
    base = _times(_scaled(steps, 1.0, 0.0, 0.0), prompt, ahead, beside)
    prefill = _times(_scaled(steps, 0.0, 1.0, 0.0), prompt, ahead, beside)
    sequence = _times(_scaled(steps, 0.0, 0.0, 1.0), prompt, ahead, beside)
    return (base[0], prefill[0], sequence[0]), (base[1], prefill[1], sequence[1])


def _fade(learned: _Learned) -> None:
    a, b, c, d, e, f = learned.xx
    learned.xx = (FADE * a, FADE * b, FADE * c, FADE * d, FADE * e, FADE * f)
    a, b, c = learned.xy
    learned.xy = (FADE * a, FADE * b, FADE * c)


def _add(learned: _Learned, terms: Terms, seen_s: float, weight: float) -> None:
    base, prefill, sequence = learned.scales
    x, y, z = terms
    predicted = base * x + prefill * y + sequence * z
    seen_s = min(seen_s, OUTLIER * predicted)
    learned.slower += (1.0 - FADE) * weight * (seen_s / (x + y + z) - learned.slower)
    x, y, z = x / predicted, y / predicted, z / predicted
    a, b, c, d, e, f = learned.xx
    wx, wy, wz = weight * x, weight * y, weight * z
    learned.xx = (a + wx * x, b + wx * y, c + wx * z, d + wy * y, e + wy * z, f + wz * z)
    target = seen_s / predicted
    a, b, c = learned.xy
    learned.xy = (a + wx * target, b + wy * target, c + wz * target)


def _solve(learned: _Learned) -> None:
    """Projected Gauss-Seidel: least squares within bounds, a few sweeps from where we were."""
    base, prefill, sequence = learned.scales
    xx, xy, xz, yy, yz, zz = learned.xx
    pull = PRIOR_WEIGHT * learned.slower
    x, y, z = (one + pull for one in learned.xy)
    xx, yy, zz = xx + PRIOR_WEIGHT, yy + PRIOR_WEIGHT, zz + PRIOR_WEIGHT
    for _ in range(SWEEPS):
        base = _within((x - xy * prefill - xz * sequence) / xx)
        prefill = _within((y - xy * base - yz * sequence) / yy)
        sequence = _within((z - xz * base - yz * prefill) / zz)
    learned.scales = (base, prefill, sequence)


def _within(scale: float) -> float:
    return SCALE_MIN if scale < SCALE_MIN else SCALE_MAX if scale > SCALE_MAX else scale


# What we assume of engines that taught us nothing; only read.
_UNKNOWN = {name: _Learned(profile=name) for name in PROFILES}
_NOTHING = _UNKNOWN[DEFAULT_PROFILE]
