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
from dataclasses import dataclass, field

from groundswell.core.profiles import Profile, profile_named
from groundswell.model.value import value

Key = tuple[str, str, str]  # node, engine, model
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


@value
class Prediction:
    """Seconds to the first token and per further token, and tokens per second of the whole engine then."""

    ttft_s: float
    tpot_s: float
    rate_tokens_s: float


@dataclass(slots=True)
class _Learned:
    """What one engine taught us: the scales (base, prefill, sequence), and the sums that they come from."""

    slower: float = 1.0  # than the profile, all in all
    scales: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])
    products: list[list[float]] = field(default_factory=lambda: [[0.0] * 3 for _ in range(3)])
    targets: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    samples: int = 0
    prompt_tokens: float = 512.0
    output_tokens: float = 128.0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    pixels: float = PIXELS_PER_S
    pixels_s: float = 1.0


_UNKNOWN = _Learned()  # only read: what we assume of an engine that taught us nothing


class Estimator:
    """Predicts, and learns from what was seen. Every call costs the same, however much was seen."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._learned: OrderedDict[Key, _Learned] = OrderedDict()

    def predict(
        self,
        key: Key,
        profile: str,
        prompt_tokens: int,
        output_tokens: int,
        in_flight_prefill_tokens: int,
        in_flight_sequences: int,
        in_flight_context_tokens: int = 0,
    ) -> Prediction:
        """What a request would see if it were sent now.

        In flight is what runs on this engine already, ours not included: prompt tokens of requests that have
        no first token yet, all sequences, and the context of those that decode (0: taken from the means).
        """
        shape = profile_named(profile)
        learned = self._learned.get(key, _UNKNOWN)
        context = in_flight_context_tokens / max(1, in_flight_sequences) or _context(learned)
        places = _places(shape, context)
        beside = min(in_flight_sequences, places - 1)
        tpot_s = _dot(learned.scales, _tpot_terms(shape, learned, beside + 1, context))
        first = _ttft_terms(shape, prompt_tokens, in_flight_prefill_tokens, beside, context)
        # Beyond the engine's places a request waits until enough of the others have ended.
        queue_s = max(0, in_flight_sequences + 1 - places) * learned.output_tokens * tpot_s / places
        return Prediction(_dot(learned.scales, first) + queue_s, tpot_s, (beside + 1) / tpot_s)

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
        shape = profile_named(profile)
        pace = max(1.0 - FADE, 1.0 / (learned.samples - WARMUP_SAMPLES))
        learned.prompt_tokens += pace * (prompt_tokens - learned.prompt_tokens)
        learned.output_tokens += pace * (output_tokens - learned.output_tokens)
        context = _context(learned)
        learned.ttft_s += pace * (ttft_s - learned.ttft_s)
        learned.decode_s += pace * ((output_tokens - 1) * tpot_s - learned.decode_s)
        # By Little's law, the share of sequences that wait for their first token is the share of that time.
        waiting = (sequences - 1) * learned.ttft_s / (learned.ttft_s + learned.decode_s)
        ahead = int(waiting * learned.prompt_tokens)
        _fade(learned)
        # What waited for a place says nothing about the speed of a step.
        if sequences <= _places(shape, context):
            _add(learned, _ttft_terms(shape, prompt_tokens, ahead, sequences - 1, context), ttft_s, 1.0)
        if tpot_s > 0:
            # A TPOT over few tokens is mostly chance; so each token counts the same, up to a bound.
            weight = min(WEIGHT_MAX, (output_tokens - 1) / learned.output_tokens)
            _add(learned, _tpot_terms(shape, learned, sequences, context), tpot_s, weight)
        _solve(learned)

    def predict_transcode_s(self, key: Key, pixels: int) -> float:
        """Seconds that an engine takes for so many output pixels (frame size x frames, all renditions)."""
        learned = self._learned.get(key, _UNKNOWN)
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
        base, prefill, sequence = self._learned.get(key, _UNKNOWN).scales
        return base, prefill, sequence

    def _of(self, key: Key) -> _Learned:
        learned = self._learned.setdefault(key, _Learned())
        self._learned.move_to_end(key)
        if len(self._learned) > self._keys_max:
            self._learned.popitem(last=False)
        return learned


def _context(learned: _Learned) -> float:
    """The mean context of a decoding sequence: its prompt and half of its output."""
    return learned.prompt_tokens + learned.output_tokens / 2


def _places(shape: Profile, context: float) -> int:
    """How many sequences of that context run at once: as many as have a place and KV cache."""
    return max(1, min(shape.sequences_max, int(shape.kv_tokens / max(1.0, context))))


def _tpot_terms(shape: Profile, learned: _Learned, sequences: int, context: float) -> Terms:
    # While one sequence makes O tokens, each of its neighbours ends once and a new prompt takes its place.
    prefill = sequences * learned.prompt_tokens / max(1.0, learned.output_tokens)
    return shape.c0_s, shape.b_s * prefill, sequences * (shape.d_s + shape.e_s * context)


def _ttft_terms(shape: Profile, prompt: int, ahead: int, beside: int, context: float) -> Terms:
    # Some of what is ahead is in the running step, or is done while our request is being taken in. The share
    # was found with core.batching under Poisson arrivals; it is right within 7 % from 10 to 70 % load.
    todo = prompt + int(AHEAD * ahead)
    room = max(1, shape.step_tokens_max - beside)
    steps = -(-todo // room) + (0.5 if beside else 0.0)
    prefill = shape.b_s * todo + shape.a2_s * prompt * prompt / 2
    return (
        shape.ingress_s + steps * shape.c0_s,
        prefill,
        steps * beside * (shape.d_s + shape.e_s * context),
    )


def _dot(scales: list[float], terms: Terms) -> float:
    return scales[0] * terms[0] + scales[1] * terms[1] + scales[2] * terms[2]


def _fade(learned: _Learned) -> None:
    learned.targets = [FADE * value for value in learned.targets]
    learned.products = [[FADE * value for value in row] for row in learned.products]


def _add(learned: _Learned, terms: Terms, seen_s: float, weight: float) -> None:
    predicted = _dot(learned.scales, terms)
    seen_s = min(seen_s, OUTLIER * predicted)
    learned.slower += (1.0 - FADE) * weight * (seen_s / sum(terms) - learned.slower)
    row = [term / predicted for term in terms]
    target = seen_s / predicted
    for i in range(3):
        learned.targets[i] += weight * row[i] * target
        for j in range(3):
            learned.products[i][j] += weight * row[i] * row[j]


def _solve(learned: _Learned) -> None:
    """Projected Gauss-Seidel: least squares within bounds, a few sweeps from where we were."""
    for _ in range(SWEEPS):
        for i in range(3):
            rest = sum(learned.products[i][j] * learned.scales[j] for j in range(3) if j != i)
            scale = (learned.targets[i] + PRIOR_WEIGHT * learned.slower - rest) / (
                learned.products[i][i] + PRIOR_WEIGHT
            )
            learned.scales[i] = min(SCALE_MAX, max(SCALE_MIN, scale))
