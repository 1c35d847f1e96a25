"""Blobs in a local folder: uploads and results, checked by their SHA-256, bounded in size and in sum."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from groundswell.model.errors import GroundswellError, InternalError, NotFound, Overloaded, TooLarge

BLOB_ID = re.compile(r"blob_[0-9a-f]{32}")
CHUNK_BYTES = 1 << 20  # Written in one go by a thread; smaller pieces are gathered first.
FREE_BYTES_MIN = 256 << 20  # Kept free for the database, which often lies on the same disk.


@dataclass(frozen=True, slots=True)
class Blob:
    """``sha256`` is in hexadecimal."""

    id: str
    size_bytes: int
    sha256: str


class Blobs:
    """Blobs under ``root``, one folder for each tenant, so that an id is of use to its owner only.

    ``total_bytes_max`` bounds the sum, ``free_bytes_min`` what is left on the disk.
    """

    def __init__(
        self,
        root: Path,
        total_bytes_max: int = 100 << 30,
        free_bytes_min: int = FREE_BYTES_MIN,
        clock: Callable[[], float] = time.time,
    ) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root
        self._drafts = root / "drafts"
        shutil.rmtree(self._drafts, ignore_errors=True)  # Left by a process that was killed in an upload.
        self._drafts.mkdir(mode=0o700)
        self._total_bytes_max = total_bytes_max
        self._free_bytes_min = free_bytes_min
        self._clock = clock
        self.used_bytes = sum(path.stat().st_size for path in root.glob("*/blob_*"))

    async def put(self, stream: AsyncIterator[bytes], tenant: str, limit_bytes: int) -> Blob:
        """Keep a stream; the blob exists, whole and synced, once this returns, and not at all before.

        Raises ``TooLarge`` beyond ``limit_bytes`` and ``Overloaded`` (``storage_full``) when there is no
        room; nothing is left behind then.
        """
        blob_id = f"blob_{secrets.token_hex(16)}"
        draft = _Draft(self._drafts / blob_id, self._reserve, limit_bytes)
        try:
            await asyncio.to_thread(draft.open)
            await draft.fill(stream)
            await asyncio.to_thread(draft.finish, self._place(blob_id, tenant))
        except BaseException as error:
            self.used_bytes -= draft.size_bytes
            await asyncio.shield(asyncio.to_thread(draft.discard))
            if isinstance(error, OSError):
                raise _full_or_broken(error) from error
            raise
        return Blob(blob_id, draft.size_bytes, draft.sha256.hexdigest())

    def path(self, blob_id: str, tenant: str) -> Path:
        """Where the bytes lie. Raises ``NotFound`` (``blob_not_found``) for anything but a blob of this
        tenant."""
        if BLOB_ID.fullmatch(blob_id):
            path = self._place(blob_id, tenant)
            if path.is_file():
                return path
        raise NotFound("No such blob.", code="blob_not_found")

    def open(self, blob_id: str, tenant: str) -> IO[bytes]:
        """The blob for reading, as ``path`` finds it."""
        return self.path(blob_id, tenant).open("rb")

    def delete(self, blob_id: str, tenant: str) -> None:
        """Remove a blob; raises ``NotFound``. Who has it open can read on."""
        self._remove(self.path(blob_id, tenant))

    def sweep(self, older_than_s: float, limit: int = 1000) -> int:
        """Remove up to ``limit`` blobs that were put more than so many seconds ago; returns how many."""
        before_s = self._clock() - older_than_s
        removed = 0
        for path in self._root.glob("*/blob_*"):
            if removed >= limit:
                break
            if path.parent != self._drafts and path.stat().st_mtime < before_s:
                self._remove(path)
                removed += 1
        return removed

    def _remove(self, path: Path) -> None:
        size_bytes = path.stat().st_size
        path.unlink()
        self.used_bytes -= size_bytes

    def _reserve(self, size_bytes: int) -> None:
        """Count bytes that are about to be written."""
        free_bytes = shutil.disk_usage(self._root).free
        if (
            self.used_bytes + size_bytes > self._total_bytes_max
            or free_bytes - size_bytes < self._free_bytes_min
        ):
            raise _storage_full()
        self.used_bytes += size_bytes

    def _place(self, blob_id: str, tenant: str) -> Path:
        # A digest, since a tenant's name may hold anything.
        return self._root / hashlib.sha256(tenant.encode()).hexdigest()[:32] / blob_id


class _Draft:
    """A blob while it is written."""

    def __init__(self, path: Path, reserve: Callable[[int], None], limit_bytes: int) -> None:
        self.size_bytes = 0
        self.sha256 = hashlib.sha256()
        self._path = path
        self._reserve = reserve
        self._limit_bytes = limit_bytes
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    async def fill(self, stream: AsyncIterator[bytes]) -> None:
        waiting = bytearray()
        async for piece in stream:
            waiting += piece
            if self.size_bytes + len(waiting) > self._limit_bytes:
                raise TooLarge(f"The upload is larger than {self._limit_bytes} bytes.")
            if len(waiting) >= CHUNK_BYTES:
                await self._append(bytes(waiting))
                waiting.clear()
        if waiting:
            await self._append(bytes(waiting))

    async def _append(self, data: bytes) -> None:
        self._reserve(len(data))
        self.size_bytes += len(data)
        await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.sha256.update(data)

    def finish(self, place: Path) -> None:
        """Sync the bytes, then the name."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()
        place.parent.mkdir(mode=0o700, exist_ok=True)
        self._path.rename(place)
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._path.unlink(missing_ok=True)


def _storage_full() -> Overloaded:
    return Overloaded("There is no room for this upload.", code="storage_full", retry_after_s=60)


def _full_or_broken(error: OSError) -> GroundswellError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _storage_full()
    return InternalError("The blob store failed.", code="store_unavailable")
