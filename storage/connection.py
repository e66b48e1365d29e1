"""Connections to the ledger's file, and the translation of SQLite errors to `StorageError`."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from storage.database import Database
from storage.errors import NotSaved, StorageError

BUSY_SECONDS = 30.0
"""How long a statement waits for a lock that another process (the bot or a command) holds on the ledger."""


def connect(path: Path, *, read_only: bool = False, busy_seconds: float = BUSY_SECONDS) -> Database:
    """Open the ledger's file at `path` with the settings that the ledger relies on.

    The caller must close the connection, and may do so from a thread other than the one that uses it.

    In WAL mode with synchronous=FULL, a commit that has returned survives a crash of the process or the
    machine (https://www.sqlite.org/pragma.html#pragma_synchronous); NORMAL would sync only at checkpoints
    and could lose the latest commits. secure_delete overwrites deleted rows with zeros, so that no text
    remains in free pages (https://www.sqlite.org/pragma.html#pragma_secure_delete). `isolation_level` is
    None because transactions are begun explicitly.

    Raises:
        StorageError: The file cannot be opened or is not a database.
    """
    with translating_errors(path):
        connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            database = Database(connection, execute_plugins=False, strict=True)
            database.enable_wal()
            database.execute("PRAGMA synchronous=FULL")
            database.execute("PRAGMA secure_delete=ON")
            database.execute("PRAGMA foreign_keys=ON")
            database.execute("PRAGMA journal_size_limit=67108864")
            if read_only:
                database.execute("PRAGMA query_only=ON")
        except BaseException:
            connection.close()
            raise
        return database


@contextmanager
def inspecting(path: Path) -> Iterator[Database]:
    """Open the ledger at `path` read-only, without creating it or changing its settings.

    SQLite errors inside the `with` block are raised as `StorageError`.
    """
    with (
        translating_errors(path),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection,
    ):
        connection.row_factory = sqlite3.Row
        yield Database(connection, execute_plugins=False)


@contextmanager
def translating_errors(path: Path) -> Iterator[None]:
    """Translate SQLite errors that occur inside the `with` block to `StorageError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise from_sqlite_error(error, path) from error


def from_sqlite_error(error: sqlite3.Error, path: Path) -> StorageError:
    """Return the `StorageError` that describes an SQLite error in the ledger at `path`."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None  # the low byte: https://www.sqlite.org/rescode.html
    if primary == sqlite3.SQLITE_FULL:
        return NotSaved(f"The disk that holds {path} is full: free some space and try again; nothing was recorded.")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError(
            f"Another process has locked {path} for too long: find it with `fuser {path}`, let it finish and try again."
        )
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return StorageError(
            f"{path} cannot be opened for writing ({error}): check that its folder exists and belongs to this user."
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StorageError(f"{path} is damaged or not a database ({error}): restore the latest backup in its place.")
    if primary == sqlite3.SQLITE_IOERR:
        # SQLite also reports an exceeded quota or file size limit as SQLITE_IOERR; SQLITE_FULL means only ENOSPC.
        return NotSaved(
            f"The disk that holds {path} is full or failing ({error}): free some space or check the disk;"
            " nothing was recorded."
        )
    if primary == sqlite3.SQLITE_CONSTRAINT:
        return StorageError(f"The database rejected a row that violates a constraint ({error}).")
    return StorageError(f"The database at {path} could not complete the operation ({error}).")


@contextmanager
def translating_os_errors(what: str) -> Iterator[None]:
    """Convert any OSError raised in the block to `StorageError`.

    `what` describes the operation for the error message, for example "writing a picture to /…".
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise NotSaved(
                f"The disk filled up or failed while {what} ({error}): free some space or check the disk."
            ) from error
        raise StorageError(
            f"{what[:1].upper()}{what[1:]} failed ({error}): check the folder and its permissions."
        ) from error
