"""Chance that can be replayed."""

from __future__ import annotations

from groundswell.core.chance import name_hash, unit


def test_the_generator_is_splitmix64() -> None:
    """The published outputs for seed 1234567, so that any other implementation agrees."""
    from groundswell.core.chance import GOLDEN, MASK, mix

    state, seen = 1234567, []
    for _ in range(3):
        seen.append(mix(state))
        state = (state + GOLDEN) & MASK
    assert seen == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_unit_is_in_its_interval() -> None:
    """One itself never comes: it would point behind the last seat."""
    assert unit(0) == 0.0
    assert 0.999 < unit((1 << 64) - 1) < 1.0


def test_names_hash_alike_in_every_process() -> None:
    """Python's own hash is salted; gateways must agree."""
    assert name_hash("groundswell") == 6465256575629598725
    assert len({name_hash(f"node-{number}") for number in range(1000)}) == 1000
