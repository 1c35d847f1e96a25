"""What all tests share: nothing of the user's own settings may reach them."""

from __future__ import annotations

import os

import pytest

for _name in [name for name in os.environ if name.startswith("GROUNDSWELL_")]:
    del os.environ[_name]


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the chaos tests go on; `make chaos` asks for the full figures."""
    parser.addoption("--streams", type=int, default=30, help="streams that are broken in the chaos test")
    parser.addoption(
        "--jobs", type=int, default=10, help="transcodes that are open when the gateway is killed"
    )
