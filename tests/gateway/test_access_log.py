"""Every answered request has its line, however many lines share one write."""

from __future__ import annotations

import asyncio
import logging

import pytest

from groundswell.gateway import access_log
from groundswell.gateway.access_log import AccessLog
from groundswell.gateway.pipeline import Seen

SEEN = Seen("req_1", "POST", "/v1/chat/completions", 200, 0.123456, "acme", "key_1")


def rows(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [len(record.__dict__["rows"]) for record in caplog.records if record.name == "groundswell.access"]


async def test_lines_go_out_together_and_none_waits_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator who follows the log sees a request within moments, and a busy gateway is not slowed."""
    monkeypatch.setattr(access_log, "FLUSH_S", 0.001)
    caplog.set_level(logging.INFO, "groundswell.access")
    log = AccessLog(asyncio.get_running_loop())
    for _ in range(access_log.GROUP_ROWS_MAX + 3):
        log.add(SEEN)
    assert rows(caplog) == [access_log.GROUP_ROWS_MAX]
    async with asyncio.timeout(5):
        while len(rows(caplog)) < 2:
            await asyncio.sleep(0.001)
    assert rows(caplog) == [access_log.GROUP_ROWS_MAX, 3]
    log.flush()
    assert len(rows(caplog)) == 2


async def test_a_log_that_is_off_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Lines that nobody wants must not gather in memory."""
    caplog.set_level(logging.WARNING, "groundswell.access")
    log = AccessLog(asyncio.get_running_loop())
    log.add(SEEN)
    caplog.set_level(logging.INFO, "groundswell.access")
    log.flush()
    assert rows(caplog) == []
