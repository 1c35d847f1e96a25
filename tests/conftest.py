"""What all tests share: nothing of the user's own settings may reach them."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

for _name in [name for name in os.environ if name.startswith("GROUNDSWELL_")]:
    del os.environ[_name]


# Nothing is judged by how long it took: a busy machine must not fail an example.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long chaos tests, fuzzers and the soak go on; `make chaos` and its like ask for more."""
    parser.addoption("--inputs", type=int, default=3000, help="requests of the HTTP fuzzer")
    parser.addoption("--fuzz-seconds", type=int, default=1, help="time of atheris for each parser")
    parser.addoption("--seed", type=int, default=20261125, help="what they are made of")
    parser.addoption("--streams", type=int, default=30, help="streams that are broken in the chaos test")
    parser.addoption(
        "--jobs", type=int, default=10, help="transcodes that are open when the gateway is killed"
    )
    parser.addoption("--readers", type=int, default=40, help="clients that read a byte a second")
    parser.addoption("--disconnects", type=int, default=200, help="clients that leave within a second")
    parser.addoption("--soak-minutes", type=float, default=3, help="how long the soak goes on")
