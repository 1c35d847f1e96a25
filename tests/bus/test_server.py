"""The NATS server that comes with the package: checked before it is run, closed to what is not needed."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from groundswell.bus import server
from groundswell.model.errors import InternalError


def test_a_binary_that_was_not_tested_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from a third party; another one than ours could do anything."""
    real = server.find().read_bytes()
    (tmp_path / "nats-server").write_bytes(real[:-1] + bytes([real[-1] ^ 1]))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InternalError) as raised:
        server.find()
    assert raised.value.code == "nats_server_unknown"


def test_a_missing_binary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever installed without it reads what to install."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InternalError) as raised:
        server.find()
    assert raised.value.code == "nats_server_missing"
    assert server.VERSION in raised.value.message


async def test_a_server_that_cannot_start_says_so(tmp_path: Path) -> None:
    """A setting that it does not know must not end in a wait without end."""
    one = server.NatsServer(tmp_path, {"no_such_setting": True})
    with pytest.raises(InternalError) as raised:
        await one.start()
    assert raised.value.code == "nats_server_failed"
    assert "no_such_setting" in raised.value.message
    assert one.pid == 0
