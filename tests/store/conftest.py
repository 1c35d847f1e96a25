"""An open store in a folder of its own, and clocks that the tests move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hand_clock import HandClock

from groundswell.store.sql import Store


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'data' / 'groundswell.db'}"


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store.open(database_url)
    yield store
    store.close()
