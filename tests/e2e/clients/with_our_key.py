"""A pytest plugin for the tests that openai-python ships: they take the address from TEST_API_BASE_URL, but
the key is a constant of theirs. Nothing else of them is changed."""

from __future__ import annotations

import os
import sys

import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionstart() -> None:
    conftest = sys.modules["tests.conftest"]
    conftest.api_key = conftest.admin_api_key = os.environ["GROUNDSWELL_API_KEY"]
