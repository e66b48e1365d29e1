"""The writer: shared commits, isolated failures, and errors that say what to do next."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from storage.database import Database
from storage.errors import StorageError
from storage.writer import Writer


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
async def writer(path: Path) -> AsyncIterator[Writer]:
    """Yield a writer for a file with a table `marks(mark)` that allows no duplicates."""
    writer = Writer(path, busy_seconds=0.2)
    await writer.do(lambda database: database.table("marks").create({"mark": int}, pk="mark"))
    yield writer
    await writer.close()


def insert(database: Database, mark: int) -> int:
    database.execute("INSERT INTO marks VALUES (?)", [mark])
    return mark


def marks(path: Path) -> list[int]:
    """Return the committed marks, as another connection sees them."""
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute("SELECT mark FROM marks ORDER BY mark")]
    finally:
        connection.close()


async def hold(writer: Writer) -> tuple[threading.Event, asyncio.Future[None]]:
    """Keep the writer's thread busy until the returned event is set.

    Writes queued in the meantime share the next commit.
    """
    began, release = threading.Event(), threading.Event()

    def work(database: Database) -> None:
        began.set()
        release.wait()

    held = asyncio.ensure_future(writer.do(work))
    await asyncio.to_thread(began.wait)
    return release, held


async def test_a_result_comes_after_the_commit(writer: Writer, path: Path) -> None:
    """Once a write has returned, any other connection sees it."""
    for mark in range(30):
        assert await writer.do(partial(insert, mark=mark)) == mark
        assert marks(path) == list(range(mark + 1))


async def test_what_waits_shares_one_commit(writer: Writer, path: Path) -> None:
    """Writes that queue up behind another write share a single transaction."""
    statements: list[str] = []
    await writer.do(lambda database: database.conn.set_trace_callback(statements.append))
    release, held = await hold(writer)
    writes = [asyncio.ensure_future(writer.do(partial(insert, mark=mark))) for mark in range(40)]
    await asyncio.sleep(0)
    statements.clear()
    release.set()
    await asyncio.gather(held, *writes)
    assert statements.count("COMMIT") == 2  # the one that was held, and all the others
    assert marks(path) == list(range(40))


async def test_a_failure_spoils_no_other_write(writer: Writer, path: Path) -> None:
    """A failing write is undone and raises an error; the other writes in the same commit are kept."""

    def half_done(database: Database) -> None:
        insert(database, 100)
        raise ValueError("stop here")

    release, held = await hold(writer)
    before = asyncio.ensure_future(writer.do(partial(insert, mark=1)))
    failing = asyncio.ensure_future(writer.do(half_done))
    twice = asyncio.ensure_future(writer.do(partial(insert, mark=1)))
    after = asyncio.ensure_future(writer.do(partial(insert, mark=2)))
    await asyncio.sleep(0)
    release.set()
    results = await asyncio.gather(held, before, failing, twice, after, return_exceptions=True)
    assert results[1] == 1
    assert isinstance(results[2], ValueError)
    assert isinstance(results[3], StorageError)
    assert isinstance(results[3].__cause__, sqlite3.IntegrityError)
    assert results[4] == 2
    assert marks(path) == [1, 2]


async def test_a_lost_transaction_spoils_no_other_write(writer: Writer, path: Path) -> None:
    """When SQLite rolls back a whole transaction, every write but the one at fault is repeated and kept."""
    await writer.do(
        lambda database: database.execute(
            "CREATE TRIGGER burn BEFORE INSERT ON marks WHEN new.mark = 13 BEGIN SELECT RAISE(ROLLBACK, 'burnt'); END"
        )
    )
    release, held = await hold(writer)
    writes = [asyncio.ensure_future(writer.do(partial(insert, mark=mark))) for mark in (12, 13, 14)]
    await asyncio.sleep(0)
    release.set()
    results = await asyncio.gather(held, *writes, return_exceptions=True)
    assert (results[1], results[3]) == (12, 14)
    assert isinstance(results[2], StorageError)
    assert marks(path) == [12, 14]


async def test_work_for_one_function_is_done_in_one_call(writer: Writer) -> None:
    """Queued calls to the same function are combined into one call, and each caller gets its own result."""
    calls: list[list[int]] = []

    def together(database: Database, arguments: Sequence[int]) -> list[int | Exception]:
        calls.append(list(arguments))
        return [ValueError("odd") if argument % 2 else argument * 10 for argument in arguments]

    release, held = await hold(writer)
    writes = [asyncio.ensure_future(writer.do_batched(together, number)) for number in range(4)]
    await asyncio.sleep(0)
    release.set()
    results = await asyncio.gather(held, *writes, return_exceptions=True)
    assert calls == [[0, 1, 2, 3]]
    assert (results[1], results[3]) == (0, 20)
    assert isinstance(results[2], ValueError)
    assert isinstance(results[4], ValueError)


async def test_a_failing_call_for_many_is_repeated_for_each(writer: Writer, path: Path) -> None:
    """When a call made for several callers fails, only the caller whose argument is at fault gets an error."""

    def together(database: Database, arguments: Sequence[int]) -> list[int]:
        for argument in arguments:
            insert(database, argument)
        return list(arguments)

    release, held = await hold(writer)
    writes = [asyncio.ensure_future(writer.do_batched(together, number)) for number in (1, 2, 2, 3)]
    await asyncio.sleep(0)
    release.set()
    results = await asyncio.gather(held, *writes, return_exceptions=True)
    assert [result for result in results[1:] if not isinstance(result, Exception)] == [1, 2, 3]
    assert isinstance(results[3], StorageError)
    assert marks(path) == [1, 2, 3]


async def test_a_locked_file_is_an_error_with_the_next_step(writer: Writer, path: Path) -> None:
    """Writing to a file that another process locks for longer than the timeout raises an error that says so.

    The writer's `trouble` keeps the message until something is saved again.
    """
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"Another process has locked .*: find it with `fuser"):
            await writer.do(partial(insert, mark=1))
        assert "Another process has locked" in writer.trouble
        other.execute("ROLLBACK")
    finally:
        other.close()
    assert await writer.do(partial(insert, mark=1)) == 1
    assert writer.trouble == ""
    with pytest.raises(StorageError, match="violates a constraint"):
        await writer.do(partial(insert, mark=1))
    assert writer.trouble == "", "a row that is refused keeps nothing else from being saved"


async def test_a_held_file_is_waited_for(path: Path, writer: Writer) -> None:
    """A file that another process locks for less than the timeout only delays a write."""
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO marks VALUES (1)")
        write = asyncio.ensure_future(writer.do(partial(insert, mark=2)))
        await asyncio.sleep(0.02)
        other.execute("COMMIT")
        assert await write == 2
    finally:
        other.close()
    assert marks(path) == [1, 2]


async def test_a_full_disk_is_an_error_with_the_next_step(writer: Writer, path: Path) -> None:
    """A write to a full disk raises an error that says so and leaves nothing behind.

    Once there is space again, writes succeed. SQLite's limit on the number of pages stands in for a full
    disk: both cause SQLITE_FULL.
    """
    await writer.do(lambda database: database.execute("CREATE TABLE large(data BLOB)").rowcount)
    await writer.do(lambda database: database.execute("PRAGMA max_page_count = 8").fetchall())
    with pytest.raises(StorageError, match=r"disk .* is full: free some space"):
        await writer.do(lambda database: database.execute("INSERT INTO large VALUES (zeroblob(100000))").rowcount)
    await writer.do(lambda database: database.execute("PRAGMA max_page_count = 1000000").fetchall())
    await writer.do(lambda database: database.execute("INSERT INTO large VALUES (zeroblob(100000))").rowcount)
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("SELECT count(*) FROM large").fetchone() == (1,)
    finally:
        connection.close()


async def test_a_cancelled_await_leaves_the_writer_working(writer: Writer, path: Path) -> None:
    """Cancelling an await neither stops its write nor affects later ones."""
    release, held = await hold(writer)
    cancelled = asyncio.ensure_future(writer.do(partial(insert, mark=1)))
    await asyncio.sleep(0)
    cancelled.cancel()
    release.set()
    await held
    assert await writer.do(partial(insert, mark=2)) == 2
    assert cancelled.cancelled()
    assert marks(path) == [1, 2]


async def test_closing_finishes_what_is_queued(path: Path, writer: Writer) -> None:
    """Closing waits for queued writes; a later write is refused, and a second close does nothing."""
    writes = [asyncio.ensure_future(writer.do(partial(insert, mark=mark))) for mark in range(20)]
    await asyncio.sleep(0)
    await writer.close()
    assert await asyncio.gather(*writes) == list(range(20))
    assert marks(path) == list(range(20))
    with pytest.raises(StorageError, match="closed"):
        await writer.do(partial(insert, mark=99))
    await writer.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Opening a file that is not a database raises an error that names the file."""
    stranger = tmp_path / "notes.txt"
    stranger.write_text("not a database, but long enough to be taken for the header of one" * 20)
    with pytest.raises(StorageError, match=r"notes\.txt is damaged or not a database"):
        Writer(stranger)
