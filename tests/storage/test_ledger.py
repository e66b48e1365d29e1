"""Opening, migrating, counting and backing up the ledger."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path

import pytest

from storage.connection import connect
from storage.database import Database, Migrations
from storage.errors import StorageError
from storage.file_permissions import open_to_others
from storage.learning_records import Rating
from storage.ledger import FILE_NAME, Ledger
from storage.migrations import migrate, migrations
from storage.picture_files import PictureStore
from tests.support.ledgers import exchange, picture

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def real_migrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply the real migrations to each new ledger instead of copying prepared tables."""
    monkeypatch.setattr("storage.ledger.migrate", migrate)


def applied(path: Path) -> list[str]:
    """Return the names of the migrations recorded in the database at `path`."""
    database = connect(path)
    try:
        return [each.name for each in migrations.applied(database)]
    finally:
        database.close()


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


async def test_a_ledger_is_made_where_there_is_none(tmp_path: Path) -> None:
    """Opening a ledger creates its folder and tables and records each migration.

    Opening it again records no migration twice.
    """
    directory = tmp_path / "deep" / "data"
    for _ in range(2):
        async with Ledger.open(directory) as ledger:
            assert set((await ledger.counts.totals()).values()) == {0}
    names = applied(directory / FILE_NAME)
    assert names == sorted(names)
    assert [name[:4] for name in names] == [f"m{number:03d}" for number in range(1, len(names) + 1)]
    database = sqlite3.connect(directory / FILE_NAME)
    try:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
    finally:
        database.close()
    assert tables >= {
        "users", "chats", "sessions", "exchanges", "turns", "pictures", "exchange_pictures", "feedback", "ratings",
        "runs", "run_selections", "models", "promotions", "inbox", "replies", "broadcasts",
    }  # fmt: skip


def test_every_connection_is_durable(tmp_path: Path) -> None:
    """Connections use WAL, synchronous=FULL, foreign keys and a busy timeout; read-only ones cannot write."""
    database = connect(tmp_path / "test.db")
    try:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [next(database.query(f"PRAGMA {name}")).popitem()[1] for name in pragmas]
    finally:
        database.close()
    assert values == ["wal", 2, 1, 30000]
    reader = connect(tmp_path / "test.db", read_only=True)
    try:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("CREATE TABLE t(a)")
    finally:
        reader.close()


async def test_a_new_folder_is_its_owners(tmp_path: Path) -> None:
    """Other users of the machine cannot enter a folder that the ledger creates; an existing one is unchanged."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    for name, mode in (("new", 0o700), ("shared", 0o755)):
        async with Ledger.open(tmp_path / name):
            assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_failing_migration_leaves_nothing_behind(tmp_path: Path) -> None:
    """A migration that fails halfway is undone and stays pending; earlier ones are kept.

    A corrected migration can then be applied.
    """
    broken, mended = Migrations("test"), Migrations("test")

    def m001(database: Database) -> None:
        database.table("one").create({"id": int})

    def m002(database: Database) -> None:
        database.table("two").create({"id": int})
        raise RuntimeError("half-way")

    def m002_mended(database: Database) -> None:
        database.table("two").create({"id": int, "more": str})

    for each, second in ((broken, m002), (mended, m002_mended)):
        each()(m001)
        each(name="m002")(second)
    database = connect(tmp_path / "test.db")
    try:
        with pytest.raises(RuntimeError, match="half-way"):
            migrate(database, broken)
        assert [each.name for each in broken.applied(database)] == ["m001"]
        assert set(database.table_names()) & {"one", "two"} == {"one"}
        migrate(database, mended)
        assert [each.name for each in mended.applied(database)] == ["m001", "m002"]
        assert list(database.table("two").columns_dict) == ["id", "more"]
    finally:
        database.close()


async def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    """A ledger with a migration unknown to this version is left unchanged, and the error explains why."""
    await Ledger.open(tmp_path).close()
    path = tmp_path / FILE_NAME
    database = sqlite3.connect(path)
    with database:
        database.execute(
            "INSERT INTO _sqlite_migrations(migration_set, name, applied_at) VALUES ('thumbtune', 'm999_later', '')"
        )
    database.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"newer version .* m999_later, .* Nothing has been changed"):
        Ledger.open(tmp_path)
    assert path.read_bytes() == before


async def test_processes_that_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    """Several processes can create a missing ledger at the same time without an error."""
    children = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.ledgers", str(tmp_path), str(1000 * n), "3"),
            cwd=ROOT, stdout=asyncio.subprocess.DEVNULL,
        )
        for n in range(4)
    ]  # fmt: skip
    assert await asyncio.gather(*(child.wait() for child in children)) == [0] * 4
    assert len(set(applied(tmp_path / FILE_NAME))) == len(applied(tmp_path / FILE_NAME))


async def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """A folder that cannot be created or a file that is not a database raises an error that names it."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file/data"):
        Ledger.open(tmp_path / "file" / "data")
    (tmp_path / FILE_NAME).write_bytes(b"no database at all, whatever its name says" * 100)
    with pytest.raises(StorageError, match="restore the latest backup"):
        Ledger.open(tmp_path)


async def test_a_closed_ledger_refuses(tmp_path: Path) -> None:
    """A closed ledger refuses reads and writes with an explanation, and closing it again does nothing."""
    ledger = Ledger.open(tmp_path)
    await ledger.close()
    await ledger.close()
    with pytest.raises(StorageError, match="closed"):
        await ledger.counts.totals()
    with pytest.raises(StorageError, match="closed"):
        await ledger.inbox.store([(1, "a", "{}")])


async def test_reads_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    """While another process writes, reads do not wait and return the data committed before the write."""
    async with Ledger.open(tmp_path) as ledger:
        await ledger.inbox.store([(1, "a", "{}")])
        other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            other.execute("DELETE FROM inbox")
            assert [update.id for update in await ledger.inbox.pending()] == [1]
        finally:
            other.close()


async def test_counts(tmp_path: Path) -> None:
    """The ledger's totals match the recorded data."""
    async with Ledger.open(tmp_path) as ledger:
        await ledger.pictures.add(picture("aa"))
        found = (await ledger.exchanges.record(exchange(await ledger.sessions.open(1, 1), 1, pictures=("aa",)))).id
        for update, value in enumerate((1, -1, 1)):
            await ledger.votes.cast(Rating(found, 2, value, update))
        await ledger.inbox.store([(number, "a", "{}") for number in range(4)])
        await ledger.inbox.finish(0)
        await ledger.runs.start("admin")
        assert await ledger.counts.totals() == {
            "users": 2, "chats": 1, "sessions": 1, "exchanges": 1, "pictures": 1, "votes": 3, "ups": 1, "downs": 0,
            "runs": 1, "runs_failed": 0, "models": 0, "updates_pending": 3, "updates_set_aside": 0,
            "replies_doubtful": 0,
        }  # fmt: skip


async def test_a_backup_is_a_whole_ledger(tmp_path: Path) -> None:
    """A backup made during writes consists of a single file that opens as a ledger.

    The backup contains everything that was acknowledged before it started.
    """
    async with Ledger.open(tmp_path / "data") as ledger:
        await ledger.inbox.store([(number, "a", "{}") for number in range(500)])
        writes = [asyncio.ensure_future(ledger.inbox.store([(number, "a", "{}")])) for number in range(500, 600)]
        copy = tmp_path / "copy" / FILE_NAME
        copy.parent.mkdir()
        await ledger.backup(copy)
        await asyncio.gather(*writes)
        with pytest.raises(StorageError, match="already exists"):
            await ledger.backup(copy)
    assert names(copy.parent) == [FILE_NAME]
    async with Ledger.open(copy.parent) as restored:
        kept = [update.id for update in await restored.inbox.pending()]
    assert kept[:500] == list(range(500))


async def test_an_unsound_ledger_is_not_backed_up(tmp_path: Path) -> None:
    """A row with a dangling reference is detected, and no backup is left behind."""
    async with Ledger.open(tmp_path / "data") as ledger:
        database = sqlite3.connect(tmp_path / "data" / FILE_NAME)
        with database:  # foreign keys are off on a plain connection
            database.execute("INSERT INTO exchange_pictures(exchange, position, sha256) VALUES (99, 0, 'none')")
        database.close()
        with pytest.raises(StorageError, match="restore an earlier backup"):
            await ledger.backup(tmp_path / "copy.db")
    assert names(tmp_path) == ["data"]
    with pytest.raises(StorageError, match="no such folder"):
        async with Ledger.open(tmp_path / "data") as ledger:
            await ledger.backup(tmp_path / "no such folder" / "copy.db")


async def test_a_folder_that_others_may_search_shows_them_nothing(tmp_path: Path) -> None:
    """Other users cannot read the ledger, its log or the pictures, even if an earlier version allowed it."""
    folder = tmp_path / "data"
    for each in (folder, *(folder / left_open for left_open in ("runs", "logs", "pictures"))):
        each.mkdir()
        each.chmod(0o755)
    async with Ledger.open(folder) as ledger:
        await ledger.inbox.store([(1, "a:1", "{}")])
        await PictureStore(folder / "pictures").put(b"a picture")
    (folder / FILE_NAME).chmod(0o644)
    assert [each.name for each in open_to_others(folder)] == [FILE_NAME]
    async with Ledger.open(folder) as ledger:
        await ledger.inbox.store([(2, "a:1", "{}")])
        assert open_to_others(folder) == []
        modes = {each.name: each.stat().st_mode & 0o777 for each in folder.rglob("*")}
    assert modes.pop(f"{FILE_NAME}-wal") == 0o600
    assert {name for name, mode in modes.items() if mode & 0o077} == set()
    assert folder.stat().st_mode & 0o777 == 0o755
