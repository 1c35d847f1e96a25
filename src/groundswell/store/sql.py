"""The durable store: one writer thread with group commit, a few readers; SQLite now, PostgreSQL when needed.

Theory of operation. A caller hands over a function that takes a connection. The writer thread takes whatever
is waiting, runs it in one transaction, each function inside a SAVEPOINT of its own so that one failing does
not fail its neighbours, commits, and only then tells the callers. A lone write waits for nobody; while one
commit syncs, the next group (at most 64) gathers, so the number of syncs falls as the load rises. SQLite runs
in WAL mode with ``synchronous=FULL``: NORMAL may lose the last commits in a power cut
(https://www.sqlite.org/pragma.html#pragma_synchronous).

Errors are of three kinds. The function's own go to its caller alone. A full or read-only disk fails the whole
group, undone, and the store lives on. An I/O error marks the store *broken*: after a failed sync nobody knows
what is on the disk, so it is never tried again; every caller hears it and the process must stop.

All that is particular to SQLite is in this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from groundswell.model.errors import Conflict, GroundswellError, InternalError, Overloaded
from groundswell.store.schema import SCHEMA_VERSION

T = TypeVar("T")
Done = Callable[[BaseException | None, Any], object]

GROUP_OPERATIONS_MAX = 64
WAITING_WRITES_MAX = 10_000  # About 1 s of work at 10,000 small writes/s; beyond it, waiting helps nobody.
WAITING_READS_MAX = 1_000
READERS = 2
BUSY_TIMEOUT_MS = 5_000  # Another process (the command line) may hold the write lock for one transaction.
WAL_AGAIN_S = 0.01
# For each connection. The system keeps the file's pages as well: with four times as much, settling 500 works
# takes as long, and it fills for half an hour, which looks like a leak.
CACHE_KIB = 512


class Store:
    """An open database. Made by ``Store.open``; ``close`` writes out what is waiting.

    ``broken`` is the error after which nothing more is written; ``on_broken`` is called once, on the writer
    thread, when that happens. ``on_commit(seconds, operations)`` is called there too, after each group.
    """

    def __init__(self, engine: sa.Engine, readers: sa.Engine, path: Path | None) -> None:
        self.path = path
        self.broken: GroundswellError | None = None
        self.on_broken: Callable[[GroundswellError], None] | None = None
        self.on_commit: Callable[[float, int], None] | None = None
        self._engine = engine
        self._readers = readers
        self._queue: queue.Queue[tuple[Callable[[Connection], Any], Done] | None] = queue.Queue(
            WAITING_WRITES_MAX
        )
        self._closed = False
        self._lock_file: IO[str] | None = None
        self._reading = 0
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._writer = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, url: str) -> Store:
        """Open, create or migrate the database at a SQLAlchemy URL, such as ``sqlite:////data/groundswell.db``.

        A new SQLite file gets mode 0600, a new folder 0700. Raises ``InternalError`` (``store_unavailable``)
        when the place cannot be written or the database is of a newer release.
        """
        parsed = sa.make_url(url)
        path = Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None
        try:
            if path is not None:
                _make_private(path)
            engine, readers = _connect(parsed, READERS)
            _migrate(engine)
            _open_all(readers)
        except (OSError, sa.exc.DBAPIError) as error:
            raise InternalError(
                f"The database cannot be opened for writing: {_plain(error)}.", code="store_unavailable"
            ) from error
        return cls(engine, readers, path)

    def own(self) -> None:
        """Take the lock that only one gateway can hold for a SQLite file, until ``close`` or death.

        Raises ``Conflict`` (``store_in_use``) when another process holds it. Nothing to do on PostgreSQL,
        where leases expire instead.
        """
        if self.path is None or self._lock_file is not None:
            return
        file = open(f"{self.path}.lock", "w", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise Conflict(
                f"Another gateway is using {self.path}. Stop it first, or give this one a data folder of its "
                "own (GROUNDSWELL_DATA).",
                code="store_in_use",
            ) from error
        self._lock_file = file

    async def write(self, function: Callable[[Connection], T]) -> T:
        """Run ``function`` in the next group; return its result once that is on the disk.

        Raises what the function raised, ``Overloaded`` when too much is waiting or the disk is full or
        read-only, ``InternalError`` when the store is broken (both ``store_unavailable``).
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def done(error: BaseException | None, result: Any) -> None:
            with contextlib.suppress(RuntimeError):  # A loop that has ended no longer waits for an answer.
                loop.call_soon_threadsafe(_resolve, future, error, result)

        self._put(function, done)
        return await future

    def write_soon(self, function: Callable[[Connection], T], done: Done | None = None) -> None:
        """As ``write`` without waiting: ``done(error, result)`` is called on the writer thread after the
        commit. Raises ``Overloaded`` or ``InternalError`` at once when the write cannot be taken."""
        self._put(function, done or _ignore)

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Run ``function`` on a reading connection; it sees everything whose ``write`` has returned."""
        if self._closed:
            raise _unavailable("The store is closed.")
        if self._reading >= WAITING_READS_MAX:
            raise Overloaded("The store is busy.", code="store_unavailable", retry_after_s=1)
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, function)
        finally:
            self._reading -= 1

    def close(self) -> None:
        """Write what is waiting, end the threads, free the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._writer.join()
        self._pool.shutdown()
        self._readers.dispose()
        self._engine.dispose()
        if self._lock_file is not None:
            self._lock_file.close()

    def _put(self, function: Callable[[Connection], Any], done: Done) -> None:
        if self.broken is not None:
            raise self.broken
        if self._closed:
            raise _unavailable("The store is closed.")
        try:
            self._queue.put_nowait((function, done))
        except queue.Full:
            raise Overloaded("The store is busy.", code="store_unavailable", retry_after_s=1) from None

    def _read(self, function: Callable[[Connection], T]) -> T:
        try:
            with self._readers.connect() as connection:
                return function(connection)
        except sa.exc.DBAPIError as error:
            raise _outage(error) or error from error

    def _run(self) -> None:
        """The writer thread: one group after another until ``close``."""
        while True:
            first = self._queue.get()
            if first is None:
                break
            group, last = self._gather(first)
            self._write_group(group)
            if last:
                break
        self._fail_waiting(_unavailable("The store is closed."))

    def _gather(
        self, first: tuple[Callable[[Connection], Any], Done]
    ) -> tuple[list[tuple[Callable[[Connection], Any], Done]], bool]:
        """What is waiting now, up to a group; and whether ``close`` was among it."""
        group = [first]
        while len(group) < GROUP_OPERATIONS_MAX:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return group, True
            group.append(item)
        return group, False

    def _write_group(self, group: list[tuple[Callable[[Connection], Any], Done]]) -> None:
        if self.broken is not None:
            for _, done in group:
                done(self.broken, None)
            return
        started_s = time.perf_counter()
        try:
            with self._engine.begin() as connection:
                outcomes = [_run_in_savepoint(connection, function) for function, _ in group]
        except Exception as error:  # Whatever it is, nothing of the group was committed.
            failure = self._failed(error)
            outcomes = [(failure, None)] * len(group)
        else:
            if self.on_commit is not None:
                self.on_commit(time.perf_counter() - started_s, len(group))
        for (_, done), (failed, result) in zip(group, outcomes, strict=True):
            done(failed, result)

    def _failed(self, error: Exception) -> GroundswellError:
        """What a failed commit means for those who wait; an I/O error breaks the store for good."""
        outage = _outage(error)
        if isinstance(outage, Overloaded):
            return outage
        self.broken = outage or _unavailable("The store failed to commit.")
        self.broken.__cause__ = error
        if self.on_broken is not None:
            self.on_broken(self.broken)
        return self.broken

    def _fail_waiting(self, error: GroundswellError) -> None:
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if item is not None:
                item[1](error, None)


def _run_in_savepoint(
    connection: Connection, function: Callable[[Connection], T]
) -> tuple[BaseException | None, T | None]:
    """The function's error or result. Raises when the transaction itself is lost, which fails the group."""
    try:
        with connection.begin_nested():
            return None, function(connection)
    except Exception as error:
        if _outage(error) is not None or not _in_transaction(connection):
            raise
        return error, None


def _in_transaction(connection: Connection) -> bool:
    """SQLite ends the whole transaction itself on some errors (full disk, I/O, out of memory)."""
    raw = connection.connection.dbapi_connection
    return raw.in_transaction if isinstance(raw, sqlite3.Connection) else True


def _resolve(future: asyncio.Future[Any], error: BaseException | None, result: Any) -> None:
    if future.done():  # The caller was cancelled; what it asked for is written all the same.
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _ignore(error: BaseException | None, result: Any) -> None: ...


def _unavailable(message: str) -> InternalError:
    return InternalError(message, code="store_unavailable")


def _outage(error: BaseException) -> GroundswellError | None:
    """The store's own failure behind a driver error, or None when the statement was at fault."""
    code = _sqlite_code(error)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
        what = "full" if code == sqlite3.SQLITE_FULL else "read-only"
        return Overloaded(f"The store's disk is {what}.", code="store_unavailable", retry_after_s=30)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Overloaded("The store is busy.", code="store_unavailable", retry_after_s=1)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN):
        return _unavailable("The store's disk failed; the gateway must stop.")
    return None


def _sqlite_code(error: BaseException | None) -> int | None:
    """SQLite's primary result code. When a statement's error ended the whole transaction, undoing its
    savepoint fails as well; the first error in the chain is the one that tells why."""
    code = None
    while error is not None:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        extended = getattr(cause, "sqlite_errorcode", None)
        code = code if extended is None else extended & 0xFF
        error = error.__context__
    return code


def _plain(error: Exception) -> str:
    """A foreign error's own words, without the statement, parameters and links that SQLAlchemy adds."""
    if isinstance(error, sa.exc.DBAPIError):
        return str(error.orig)
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _make_private(path: Path) -> None:
    """The folder 0700 and the file 0600, when they are new. SQLite gives its WAL the mode of the file."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _connect(url: sa.URL, readers: int) -> tuple[sa.Engine, sa.Engine]:
    """One engine with the single writing connection, one with the reading ones."""
    writer = sa.create_engine(url, pool_size=1, max_overflow=0)
    reader = sa.create_engine(url, pool_size=readers, max_overflow=0)
    if url.get_backend_name() == "sqlite":
        sa.event.listen(writer, "connect", _set_up_writer)
        sa.event.listen(reader, "connect", _set_up_reader)
        # The write lock is taken first: a transaction that read before it wrote could never be upgraded.
        sa.event.listen(writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        sa.event.listen(reader, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return writer, reader


def _open_all(readers: sa.Engine) -> None:
    """Open every reading connection now, with all its files: what a process holds must not depend on whether
    two reads ever met."""
    with contextlib.ExitStack() as stack:
        for connection in [stack.enter_context(readers.connect()) for _ in range(READERS)]:
            _version(connection)


def _set_up_writer(raw: sqlite3.Connection, _record: Any) -> None:
    raw.isolation_level = None  # Transactions are begun by the listeners above, not by the driver's guess.
    raw.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    _use_wal(raw)
    raw.execute("PRAGMA synchronous=FULL")
    raw.execute("PRAGMA foreign_keys=ON")
    raw.execute(f"PRAGMA cache_size=-{CACHE_KIB}")


def _use_wal(raw: sqlite3.Connection) -> None:
    """Of two that open a new database, one may be told at once that it is locked: here SQLite does not wait
    as ``busy_timeout`` says, since two that both hold a read lock would wait for each other."""
    give_up_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            raw.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() >= give_up_s:
                raise
            time.sleep(WAL_AGAIN_S)


def _set_up_reader(raw: sqlite3.Connection, _record: Any) -> None:
    raw.isolation_level = None
    raw.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    raw.execute("PRAGMA query_only=ON")
    raw.execute(f"PRAGMA cache_size=-{CACHE_KIB}")


def _migrate(engine: sa.Engine) -> None:
    """Bring the tables up to date; Alembic is imported only when they are not."""
    with engine.begin() as connection:  # BEGIN IMMEDIATE: of two that start at once, one waits here.
        version = _version(connection)
        if version == SCHEMA_VERSION:
            return
        if version is not None and version > SCHEMA_VERSION:
            raise _unavailable("The database was written by a newer release of Groundswell.")
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _version(connection: Connection) -> str | None:
    """The schema version that the database says it has; None when it is new."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)
