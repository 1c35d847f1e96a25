"""A blob is there whole or not at all, belongs to one tenant, and the disk never runs full of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hand_clock import HandClock

from groundswell.model.errors import NotFound, Overloaded, TooLarge
from groundswell.store.blobs import CHUNK_BYTES, Blobs

DATA = os.urandom(CHUNK_BYTES * 2 + 12345)


async def pieces(data: bytes = DATA, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def test_what_was_put_is_read_back(tmp_path: Path) -> None:
    """Size and digest are those of the bytes that are kept, and a new process finds them."""
    blob = await Blobs(tmp_path / "blobs").put(pieces(), "acme", limit_bytes=len(DATA))
    assert (blob.size_bytes, blob.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    blobs = Blobs(tmp_path / "blobs")
    with blobs.open(blob.id, "acme") as file:
        assert file.read() == DATA
    assert blobs.path(blob.id, "acme").stat().st_mode & 0o777 == 0o600
    assert blobs.used_bytes == len(DATA)
    blobs.delete(blob.id, "acme")
    assert blobs.used_bytes == 0
    assert files(tmp_path) == []


async def test_a_blob_is_its_tenants_own_and_an_id_is_no_path(tmp_path: Path) -> None:
    """Neither another tenant nor a forged id reaches a file."""
    blobs = Blobs(tmp_path / "blobs")
    blob = await blobs.put(pieces(), "acme", limit_bytes=len(DATA))
    wrong = [(blob.id, "else"), (f"../{blob.id}", "acme"), ("../../../etc/passwd", "acme"), ("", "acme")]
    wrong += [(blob.id + "\n", "acme"), (blob.id.upper(), "acme"), ("blob_" + "0" * 32, "acme")]
    for blob_id, tenant in wrong:
        with pytest.raises(NotFound) as caught:
            blobs.path(blob_id, tenant)
        assert caught.value.code == "blob_not_found"
        with pytest.raises(NotFound):
            blobs.delete(blob_id, tenant)


async def test_an_upload_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    """The limit holds at the byte, whatever the client announced."""
    blobs = Blobs(tmp_path / "blobs")
    with pytest.raises(TooLarge):
        await blobs.put(pieces(), "acme", limit_bytes=len(DATA) - 1)
    assert (blobs.used_bytes, files(tmp_path)) == (0, [])


async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    """A client that goes away must not cost disk space."""
    blobs = Blobs(tmp_path / "blobs")
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield DATA
        begun.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(blobs.put(endless(), "acme", limit_bytes=1 << 30))
    await begun.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert (blobs.used_bytes, files(tmp_path)) == (0, [])


@pytest.mark.parametrize("limits", [{"total_bytes_max": len(DATA) - 1}, {"free_bytes_min": 1 << 60}])
async def test_no_room_is_said_before_the_disk_is_full(tmp_path: Path, limits: dict[str, int]) -> None:
    """The database on the same disk needs room more than an upload does."""
    blobs = Blobs(tmp_path / "blobs", **limits)
    with pytest.raises(Overloaded) as caught:
        await blobs.put(pieces(), "acme", limit_bytes=1 << 30)
    assert caught.value.code == "storage_full"
    assert (blobs.used_bytes, files(tmp_path)) == (0, [])


def test_a_disk_that_fails_in_mid_write_is_full_in_words(tmp_path: Path) -> None:
    """The file system may refuse although it seemed to have room."""
    code = (
        "import asyncio, resource, sys; from pathlib import Path\n"
        "from groundswell.store.blobs import Blobs\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500000, 500000))\n"
        "async def pieces():\n    yield b'x' * 3000000\n"
        "blobs = Blobs(Path(sys.argv[1]))\n"
        "try:\n    asyncio.run(blobs.put(pieces(), 'acme', 1 << 30))\n"
        "except Exception as error:\n    print(error.code, blobs.used_bytes)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (output, files(tmp_path)) == ("storage_full 0\n", [])


async def test_old_blobs_are_swept_and_so_is_what_a_killed_upload_left(tmp_path: Path) -> None:
    """Nothing stays for ever without somebody wanting it."""
    clock = HandClock()
    root = tmp_path / "blobs"
    blobs = Blobs(root, clock=clock)
    old = await blobs.put(pieces(), "acme", limit_bytes=len(DATA))
    young = await blobs.put(pieces(), "acme", limit_bytes=len(DATA))
    os.utime(blobs.path(old.id, "acme"), (clock.now_s - 100, clock.now_s - 100))
    os.utime(blobs.path(young.id, "acme"), (clock.now_s - 50, clock.now_s - 50))
    assert blobs.sweep(older_than_s=60) == 1
    assert blobs.path(young.id, "acme").is_file()
    assert blobs.used_bytes == len(DATA)
    (root / "drafts" / ("blob_" + "1" * 32)).write_bytes(b"half")
    assert Blobs(root).used_bytes == len(DATA)
    assert len(files(tmp_path)) == 1
