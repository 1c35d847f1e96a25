"""Chat from a web page: the official client in a real browser, on a page of another origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import seen_by, site
from gateway_process import gateway_process

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SETTINGS = """
[gateway]
allowed_origins = [{origins}]
[[nodes]]
id = "a"
engines = [{{kind = "builtin"}}]
"""


def chat_of_a_page(folder: Path, *, allowed: bool) -> dict[str, Any]:
    """What a page sees of a gateway that allows its origin, or only another one."""
    with site() as origin:
        settings = SETTINGS.format(origins=json.dumps(origin if allowed else "https://other.example"))
        with gateway_process(folder, settings) as gateway:
            gateway.wait_for_model("builtin")
            given = {"base_url": f"{gateway.url}/v1", "key": gateway.key, "model": "builtin"}
            return seen_by(f"{origin}/chat.html", json.dumps(given), folder / "profile")


def test_an_allowed_page_chats_and_reads_errors(tmp_path: Path) -> None:
    """The browser asks first, for the headers that the client adds; then streams, answers and errors come
    through."""
    seen = chat_of_a_page(tmp_path, allowed=True)
    assert "node" in seen["whole"]
    assert len(seen["pieces"]) > 3
    assert "".join(seen["pieces"]) == seen["whole"]
    assert seen["request_id"].startswith("req_")
    assert (seen["status"], seen["code"]) == (404, "model_not_found")


def test_another_page_gets_nothing(tmp_path: Path) -> None:
    """With the right key even: the browser keeps the answer from it."""
    seen = chat_of_a_page(tmp_path, allowed=False)
    assert seen["failed"] == "APIConnectionError"
    assert (seen["pieces"], seen["whole"], seen["status"]) == ([], "", 0)
    assert any("CORS" in error for error in seen["console_errors"]), seen["console_errors"]
