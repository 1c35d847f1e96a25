"""Chance as an argument: one 64-bit number from an event is expanded into as many as a decision needs.

The core draws nothing itself, so that a decision can be replayed from a log of events. The generator is
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): each state
gives one well mixed output, so neighbouring draws share nothing.
"""

from __future__ import annotations

from typing import Final

MASK: Final = (1 << 64) - 1
GOLDEN: Final = 0x9E3779B97F4A7C15
FNV_OFFSET: Final = 0xCBF29CE484222325
FNV_PRIME: Final = 0x100000001B3


def mix(state: int) -> int:
    """One output of SplitMix64 for this state, 64 bits."""
    z = (state + GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def unit(draw: int) -> float:
    """The draw as a number in [0, 1)."""
    return (draw >> 11) * (1.0 / (1 << 53))


def name_hash(text: str) -> int:
    """A 64-bit hash of a name, equal in every process (``hash`` is salted); FNV-1a, then mixed."""
    value = FNV_OFFSET
    for byte in text.encode():
        value = ((value ^ byte) * FNV_PRIME) & MASK
    return mix(value)
