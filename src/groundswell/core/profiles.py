"""Priors: how fast an engine of a known GPU and model is, before it was measured.

A profile holds the five coefficients of the step time (``core.batching`` says what they mean) and the
engine's limits. The numbers and where they come from:

* ``fit`` below: non-negative fits of TPOT on the measured serving points that ai-dynamo/aiconfigurator
  publishes (``silicon_sample.csv``, Apache-2.0). b absorbs scheduling effects, d and e trade off.
* Where a fit put d at zero, BLIS' 4.42 us per sequence stands in (inference-sim/inference-sim, Apache-2.0).
* ``scaled``: no usable measurement is published; the H100 row is scaled by the datasheet ratios of BLIS
  (TFLOPS x MFU: H100 989.5 x 0.45, A100 312 x 0.38; memory: H100 3.35, H200 4.8, A100 2.039 TB/s), with
  c0 = 1.363 weight reads + 32.1 us per layer + 126 us as in its trained-physics model.
* A100 70B: fits on Mutinifni/splitwise-sim (``perf_model.csv``, MIT), Llama-2-70B on four A100-80GB, a stack
  of 2023; b is set so that a prefill of 2,048 tokens takes what that fit says.
* a2 is attention arithmetic from the same datasheets: 4 x layers x hidden size flops per pair of tokens.
* KV blocks: 90 % of memory less the weights, at 128 KiB (8B) and 320 KiB (70B) per token.
"""

from __future__ import annotations

from dataclasses import replace

from groundswell.model.value import value

BLOCK_TOKENS = 16


@value
class Profile:
    """One model on one kind of engine. Times in seconds, sizes in tokens.

    ``c0_s`` per step; ``b_s`` per prompt token; ``a2_s`` per pair of tokens attended in prefill; ``d_s`` per
    decoding sequence; ``e_s`` per token of context of the decoding sequences. ``ingress_s`` passes between
    arrival and the queue, ``finish_s`` between the last token and the end (both BLIS).
    """

    name: str
    c0_s: float
    b_s: float
    a2_s: float
    d_s: float
    e_s: float
    kv_blocks: int
    step_tokens_max: int = 8192
    sequences_max: int = 256
    context_tokens: int = 131_072
    ingress_s: float = 0.0156
    finish_s: float = 0.00078

    def __post_init__(self) -> None:
        if min(self.c0_s, self.b_s, self.kv_blocks, self.step_tokens_max, self.sequences_max) <= 0:
            raise ValueError(f"profile {self.name}: c0, b and the limits must be above zero")
        if min(self.a2_s, self.d_s, self.e_s, self.ingress_s, self.finish_s) < 0:
            raise ValueError(f"profile {self.name}: no coefficient may be negative")

    @property
    def kv_tokens(self) -> int:
        """How many tokens of context fit on the engine at once."""
        return self.kv_blocks * BLOCK_TOKENS

    def slower(self, factor: float) -> Profile:
        """The same engine with every time multiplied by ``factor`` (below 1: faster)."""
        return replace(
            self,
            c0_s=self.c0_s * factor,
            b_s=self.b_s * factor,
            a2_s=self.a2_s * factor,
            d_s=self.d_s * factor,
            e_s=self.e_s * factor,
            ingress_s=self.ingress_s * factor,
            finish_s=self.finish_s * factor,
        )


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        # fit: Llama-3.1-8B-Instruct, TensorRT-LLM, one GPU, 30 points, 1.8 % error; d from BLIS.
        Profile("h100-8b", 6.4224e-3, 2.0118e-5, 1.2e-9, 4.42e-6, 4.868e-8, kv_blocks=26_700),
        # fit: Llama-3.1-70B FP8, vLLM, four GPUs, 11 points, 1.2 % error.
        Profile("h100-70b", 11.0436e-3, 4.6173e-5, 1.5e-9, 4.336e-5, 2.824e-8, kv_blocks=41_500),
        # scaled from h100-8b: the published H200 8B points (SGLang FP8) fit badly and are not used.
        Profile("h200-8b", 4.77e-3, 2.0118e-5, 1.2e-9, 4.42e-6, 3.40e-8, kv_blocks=53_000),
        # fit: Llama-3.1-70B FP8, vLLM, four GPUs, 9 points, 1.4 % error.
        Profile("h200-70b", 9.1822e-3, 2.867e-5, 1.5e-9, 2.707e-5, 3.452e-8, kv_blocks=82_000),
        # scaled from h100-8b and BLIS' c0.
        Profile("a100-8b", 11.89e-3, 7.55e-5, 4.4e-9, 4.42e-6, 8.00e-8, kv_blocks=26_700),
        # Splitwise, Llama-2-70B in 16 bit, four GPUs; the context is that model's.
        Profile(
            "a100-70b", 43.3e-3, 2.58e-4, 5.5e-9, 1.83e-4, 3.72e-7, kv_blocks=28_200, context_tokens=4096
        ),
        # Our small built-in model on two CPU cores: an order of magnitude, to be corrected by learning.
        Profile(
            "cpu", 2.0e-3, 5.0e-5, 1.0e-9, 1.0e-3, 1.0e-7, kv_blocks=1024,
            step_tokens_max=512, sequences_max=8, context_tokens=2048, ingress_s=0.002, finish_s=0.0002,
        ),
    )
}  # fmt: skip

# Where nothing is known of an engine (a URL that the user gave): the middle of the shipped ones.
DEFAULT_PROFILE = "a100-8b"


def profile_named(name: str) -> Profile:
    """The shipped profile of that name, or the default one when nobody knows it."""
    return PROFILES.get(name) or PROFILES[DEFAULT_PROFILE]
