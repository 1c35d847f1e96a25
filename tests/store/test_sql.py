"""The store keeps what it acknowledged, whatever happens to the process or the disk."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import groundswell.store
from groundswell.model.errors import Conflict, GroundswellError, InternalError, Overloaded
from groundswell.store import sql
from groundswell.store.schema import SCHEMA_VERSION, metadata
from groundswell.store.sql import Store, _version

INSERT = sa.text("INSERT INTO notes (id, body) VALUES (:id, :body)")
COUNT = sa.text("SELECT count(*) FROM notes")

WRITER = """
import asyncio, resource, sys
import sqlalchemy as sa
from groundswell.model.errors import GroundswellError
from groundswell.store.sql import Store

store = Store.open(sys.argv[1])
store.on_broken = lambda error: print("broken", error.code, flush=True)

async def write(i):
    insert = sa.text("INSERT INTO notes (id, body) VALUES (:id, :body)")
    try:
        await store.write(lambda c: c.execute(insert, {"id": i, "body": "x" * 1000}))
        print("acknowledged", i, flush=True)
    except GroundswellError as error:
        print("refused", i, error.code, flush=True)

async def main():
    await store.write(lambda c: c.exec_driver_sql("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)"))
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    for start in range(0, 1_000_000, 10):
        await asyncio.gather(*(write(i) for i in range(start, start + 10)))
        if store.broken:
            return

asyncio.run(main())
"""


async def make_notes(store: Store) -> None:
    await store.write(
        lambda c: c.exec_driver_sql(
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT CHECK (body <> ''))"
        )
    )


async def note(store: Store, number: int, body: str = "x") -> None:
    await store.write(lambda c: c.execute(INSERT, {"id": number, "body": body}))


def pragma(store: Store, text: str) -> None:
    """Set something on the writing connection, outside any transaction."""
    raw = store._engine.raw_connection()
    assert raw.driver_connection is not None
    raw.driver_connection.execute(f"PRAGMA {text}")
    raw.close()


def hang(store: Store) -> threading.Event:
    """Make the writer wait, with nothing else in its group, until the event is set."""
    begun, hangs = threading.Event(), threading.Event()

    def wait(_connection: sa.Connection) -> None:
        begun.set()
        hangs.wait(timeout=10)

    store.write_soon(wait)
    begun.wait(timeout=10)
    return hangs


def descriptors(store: Store) -> list[str]:
    """What this process has open of the database's files."""
    opened = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return sorted(path for path in opened if path.startswith(str(store.path)))


def stored_ids(url: str) -> set[int]:
    """What a process that opens the database afterwards finds."""
    store = Store.open(url)
    try:
        return set(asyncio.run(store.read(lambda c: c.scalars(sa.text("SELECT id FROM notes")).all())))
    finally:
        store.close()


def test_what_was_acknowledged_survives_kill_9(database_url: str) -> None:
    """A client that was told yes must find its work after the worst death of the process."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, database_url], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = set()
    for line in child.stdout:
        acknowledged.add(int(line.split()[1]))
        if len(acknowledged) == 200:
            child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert len(acknowledged) >= 200
    assert acknowledged <= stored_ids(database_url)


def test_an_io_error_breaks_the_store_and_loses_nothing_acknowledged(database_url: str) -> None:
    """After a failed write or sync nobody knows what the disk holds: stop, and recover at the next start."""
    command = [sys.executable, "-c", WRITER, database_url, "400000"]
    lines = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    acknowledged = {int(line.split()[1]) for line in lines if line.startswith("acknowledged")}
    refused = {int(line.split()[1]) for line in lines if line.startswith("refused")}
    assert lines.count("broken store_unavailable") == 1
    assert all(line.endswith("store_unavailable") for line in lines if line.startswith("refused"))
    assert acknowledged
    assert refused
    assert acknowledged == stored_ids(database_url)


async def test_writes_that_wait_together_are_committed_together(store: Store) -> None:
    """One sync for a group is what makes synchronous=FULL affordable under load."""
    await make_notes(store)
    groups: list[int] = []
    store.on_commit = lambda _seconds, operations: groups.append(operations)
    await asyncio.gather(*(note(store, i) for i in range(200)))
    assert sum(groups) == 200
    assert len(groups) < 100
    assert max(groups) <= sql.GROUP_OPERATIONS_MAX


async def test_one_that_fails_does_not_fail_its_neighbours(store: Store) -> None:
    """A bad write of one tenant in a group must not undo the others', nor leave half of itself behind."""
    await make_notes(store)

    def half(connection: sa.Connection) -> None:
        connection.execute(INSERT, {"id": 100, "body": "half"})
        raise KeyError("a defect in the caller's function")

    outcomes = await asyncio.gather(
        note(store, 1), store.write(half), note(store, 2, body=""), note(store, 3), return_exceptions=True
    )
    assert outcomes[0] is None
    assert isinstance(outcomes[1], KeyError)
    assert isinstance(outcomes[2], sa.exc.IntegrityError)
    assert outcomes[3] is None
    assert store.broken is None
    ids = await store.read(lambda c: c.scalars(sa.text("SELECT id FROM notes ORDER BY id")).all())
    assert ids == [1, 3]


async def test_nobody_is_told_before_the_commit(store: Store) -> None:
    """An acknowledgement before the commit would be a lie for as long as the group lasts."""
    await make_notes(store)
    told: list[int] = []
    visible: list[int] = []

    def slow(connection: sa.Connection) -> None:
        connection.execute(INSERT, {"id": 1, "body": "x"})
        visible.append(len(told))

    def done(error: BaseException | None, _result: object) -> None:
        with store._readers.connect() as connection:
            told.append(connection.scalar(COUNT) if error is None else -1)

    store.write_soon(slow, done)
    await store.write(lambda _c: None)
    assert visible == [0]
    assert told == [1]


async def test_a_full_disk_is_said_and_outlived(store: Store) -> None:
    """Refuse while the disk is full, keep everything acknowledged, and go on when there is room again."""
    await make_notes(store)
    await note(store, 0)
    pages = await store.read(lambda c: c.scalar(sa.text("PRAGMA page_count")))
    pragma(store, f"max_page_count={pages + 2}")
    outcomes = await asyncio.gather(
        *(note(store, i, "x" * 4000) for i in range(1, 20)), return_exceptions=True
    )
    refused = [error for error in outcomes if error is not None]
    assert refused
    for error in refused:
        assert isinstance(error, Overloaded)
        assert (error.code, error.message) == ("store_unavailable", "The store's disk is full.")
    assert store.broken is None
    pragma(store, "max_page_count=1000000")
    await note(store, 100)
    ids = await store.read(lambda c: c.scalars(sa.text("SELECT id FROM notes")).all())
    assert set(ids) == {0, 100} | {i for i, error in enumerate(outcomes, 1) if error is None}


async def test_a_read_only_disk_is_said_and_outlived(store: Store) -> None:
    """A disk that the system remounted read-only refuses writes in words, and reads go on."""
    await make_notes(store)
    pragma(store, "query_only=ON")
    with pytest.raises(Overloaded, match="read-only") as caught:
        await note(store, 1)
    assert caught.value.code == "store_unavailable"
    assert await store.read(lambda c: c.scalar(COUNT)) == 0
    pragma(store, "query_only=OFF")
    await note(store, 1)


def test_a_place_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    """Better no gateway than one that cannot remember."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InternalError, match="cannot be opened for writing") as caught:
        Store.open(f"sqlite:///{tmp_path / 'file' / 'groundswell.db'}")
    assert caught.value.code == "store_unavailable"


def test_a_file_that_is_no_database_is_refused_at_the_start(tmp_path: Path) -> None:
    """A damaged file must not be taken for an empty database."""
    (tmp_path / "groundswell.db").write_text("this is not a database, and long enough to be one" * 100)
    with pytest.raises(InternalError) as caught:
        Store.open(f"sqlite:///{tmp_path / 'groundswell.db'}")
    assert caught.value.code == "store_unavailable"


def test_only_the_owner_can_read_the_files(store: Store, tmp_path: Path) -> None:
    """The database holds digests of keys and the requests of all tenants."""
    files = list((tmp_path / "data").iterdir())
    assert len(files) >= 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_database_has_one_gateway(store: Store, database_url: str) -> None:
    """Two that both think they are alone would take back each other's leases."""
    store.own()
    store.own()
    second = Store.open(database_url)
    with pytest.raises(Conflict) as caught:
        second.own()
    assert caught.value.code == "store_in_use"
    store.close()
    second.own()
    second.close()


async def test_closing_writes_what_waits_and_takes_no_more(database_url: str) -> None:
    """A clean stop loses nothing, and nothing waits forever for a thread that has ended."""
    store = Store.open(database_url)
    await make_notes(store)
    for i in range(100):
        store.write_soon(lambda c, i=i: c.execute(INSERT, {"id": i, "body": "x"}))
    store.close()
    store.close()
    with pytest.raises(InternalError, match="closed"):
        await note(store, 1000)
    with pytest.raises(InternalError, match="closed"):
        await store.read(lambda c: c.scalar(COUNT))
    reopened = Store.open(database_url)
    assert await reopened.read(lambda c: c.scalar(COUNT)) == 100
    reopened.close()


async def test_what_waits_is_bounded(store: Store) -> None:
    """While the disk hangs, memory must not fill with writes; the client hears when to come back."""
    hangs = hang(store)
    try:
        for _ in range(sql.WAITING_WRITES_MAX):
            store.write_soon(lambda _c: None)
        with pytest.raises(Overloaded) as caught:
            store.write_soon(lambda _c: None)
    finally:
        hangs.set()
    assert caught.value.code == "store_unavailable"


async def test_a_caller_that_gives_up_does_not_stop_the_writer(store: Store) -> None:
    """A client that goes away in mid-write must not take the store with it."""
    await make_notes(store)
    hangs = hang(store)
    waiting = asyncio.create_task(note(store, 1))
    await asyncio.sleep(0)
    waiting.cancel()
    hangs.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await note(store, 2)
    assert await store.read(lambda c: c.scalar(COUNT)) == 2


async def test_all_files_are_open_from_the_start(store: Store) -> None:
    """A descriptor that comes with the first two reads at once would look like one that is never closed."""
    opened = descriptors(store)
    assert opened
    meet = threading.Barrier(sql.READERS, timeout=10)
    await asyncio.gather(*(store.read(lambda c: (meet.wait(), _version(c))) for _ in range(sql.READERS)))
    assert descriptors(store) == opened


async def test_the_pages_that_a_connection_keeps_are_bounded(store: Store) -> None:
    """Memory that fills with the database, for half an hour, cannot be told from a leak."""
    size = "PRAGMA cache_size"
    assert await store.write(lambda c: c.exec_driver_sql(size).scalar()) == -sql.CACHE_KIB
    assert await store.read(lambda c: c.exec_driver_sql(size).scalar()) == -sql.CACHE_KIB


async def test_reading_cannot_write(store: Store) -> None:
    """All writes go through the one writer, or the lock order is lost."""
    await make_notes(store)
    with pytest.raises(GroundswellError):
        await store.read(lambda c: c.execute(INSERT, {"id": 1, "body": "x"}))


async def test_commits_are_synced_and_foreign_keys_hold(store: Store) -> None:
    """With synchronous=NORMAL a power cut may undo what was acknowledged."""
    names = ("journal_mode", "synchronous", "foreign_keys")
    values = await store.write(lambda c: [c.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names])
    assert values == ["wal", 2, 1]


def test_migrations_from_empty_make_the_tables_that_the_code_expects(store: Store) -> None:
    """A migration that was forgotten would fail on the users' machines first."""
    with store._readers.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    assert differences == []


def test_the_version_in_the_code_is_the_newest_migration() -> None:
    """The fast start compares this constant; if it lagged, migrations would never run."""
    config = Config()
    config.set_main_option("script_location", str(Path(groundswell.store.__path__[0]) / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_VERSION


def test_two_that_open_a_new_database_at_once_both_succeed(database_url: str) -> None:
    """The gateway and the command line may start in the same moment."""
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(Store.open, [database_url] * 4))
    for store in stores:
        store.close()


def test_a_second_start_does_not_load_the_migrations(store: Store, database_url: str) -> None:
    """Loading Alembic would cost every start a good part of a second."""
    code = (
        "import sys; from groundswell.store.sql import Store\n"
        "Store.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", code, database_url]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


async def test_a_database_of_a_newer_release_is_left_alone(store: Store, database_url: str) -> None:
    """An old program that writes into newer tables would damage them."""
    await store.write(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InternalError, match="newer release"):
        Store.open(database_url)
