"""The ledger: everything that the bot stores except pictures and model files, in one SQLite file.

Once a method that writes has returned, its changes survive a crash or a power failure. Two processes may
have the ledger open at the same time.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Self

from storage.atomic_files import PRIVATE, PRIVATE_FILE, sync_directory, sync_file
from storage.base import number
from storage.blocklist import Blocks
from storage.broadcasts import Broadcasts
from storage.canaries import Canaries
from storage.comparisons import Comparisons
from storage.connection import connect, translating_errors, translating_os_errors
from storage.corrections import Corrections
from storage.counts import Counts
from storage.database import Database
from storage.duels import Duels
from storage.errors import StorageError
from storage.exchanges import Exchanges
from storage.file_permissions import close_to_others
from storage.inbox import Inbox
from storage.integrity import database_faults
from storage.menus import Menus
from storage.migrations import migrate
from storage.model_buttons import ModelButtons
from storage.models import Models
from storage.people import People
from storage.personal_data import PersonalData
from storage.pictures import Pictures
from storage.promotions import Promotions
from storage.reader_pool import ReaderPool
from storage.replies import Replies
from storage.review_cards import ReviewCards
from storage.reviews import Reviews
from storage.run_selections import RunSelections
from storage.runs import Runs
from storage.sessions import Sessions
from storage.setting_changes import SettingChanges
from storage.teachers import Teachers
from storage.votes import Votes
from storage.writer import Writer

FILE_NAME = "ledger.db"

LOG_SECONDS = 5.0
"""How long `Ledger.empty_log` waits for readers and writers. New writes are delayed in the meantime."""


class Ledger:
    """The ledger, whose queries are grouped by subject.

    Open the ledger with `Ledger.open`, and close it with `close` or use it in an `async with` statement.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Open a ledger file that is fully migrated; callers should use `Ledger.open` instead."""
        self.path = path
        self._writer = writer = Writer(path)
        self._readers = readers = ReaderPool(path)
        self.people = People(writer, readers, clock)
        self.blocks = Blocks(writer, readers, clock)
        self.setting_changes = SettingChanges(writer, readers, clock)
        self.sessions = Sessions(writer, readers, clock)
        self.pictures = Pictures(writer, readers, clock)
        self.exchanges = Exchanges(writer, readers, clock)
        self.votes = Votes(writer, readers, clock)
        self.corrections = Corrections(writer, readers, clock)
        self.reviews = Reviews(writer, readers, clock)
        self.review_cards = ReviewCards(writer, readers, clock)
        self.inbox = Inbox(writer, readers, clock)
        self.replies = Replies(writer, readers, clock)
        self.runs = Runs(writer, readers, clock)
        self.run_selections = RunSelections(writer, readers, clock)
        self.models = Models(writer, readers, clock)
        self.model_buttons = ModelButtons(writer, readers, clock)
        self.promotions = Promotions(writer, readers, clock)
        self.canaries = Canaries(writer, readers, clock)
        self.duels = Duels(writer, readers, clock)
        self.comparisons = Comparisons(writer, readers, clock)
        self.teachers = Teachers(writer, readers, clock)
        self.personal_data = PersonalData(writer, readers, clock)
        self.broadcasts = Broadcasts(writer, readers, clock)
        self.menus = Menus(writer, readers, clock)
        self.counts = Counts(writer, readers, clock)

    @classmethod
    def open(cls, directory: Path, *, clock: Callable[[], float] = time.time) -> Ledger:
        """Open the ledger in `directory` and bring its tables up to date.

        The folder and the ledger are created if needed. The call blocks for a few milliseconds and needs no
        event loop.

        Raises:
            StorageError: The ledger was written by a newer release, or the folder or file cannot be written.
                Nothing has been changed.
        """
        path = directory / FILE_NAME
        with translating_os_errors(f"creating {path}"):
            directory.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            close_to_others(directory)
            if not path.exists():
                path.touch(mode=PRIVATE_FILE)  # SQLite gives its log the permissions of the file
        with closing(connect(path)) as database, translating_errors(path):
            migrate(database)
        return cls(path, clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish queued work and close every connection; a second call does nothing."""
        await self._writer.close()
        await self._readers.close()

    @property
    def trouble(self) -> str:
        """Why the latest commit was not saved, worded for the operator; empty if it was saved."""
        return self._writer.trouble

    async def backup(self, path: Path) -> None:
        """Copy a snapshot of the ledger, which may be in use, to the new file `path`.

        The copy is checked for damage and needs no other files.

        Raises:
            StorageError: The file `path` already exists, or the copy is damaged.
        """
        await self._readers.do(lambda database: _backup(database, path))

    async def empty_log(self) -> bool:
        """Move the write-ahead log into the ledger's file and truncate the log.

        Deleted rows may remain on the disk until the log has been truncated.

        Returns:
            False if another process prevented the move (try again later), otherwise True.
        """
        return await asyncio.to_thread(_empty_log, self.path)


def _empty_log(path: Path) -> bool:
    with closing(connect(path, busy_seconds=LOG_SECONDS)) as database, translating_errors(path):
        return number(database, "PRAGMA wal_checkpoint(TRUNCATE)") == 0


def _backup(database: Database, path: Path) -> None:
    if path.exists():
        raise StorageError(f"{path} already exists: choose another name for the backup.")
    temporary = path.with_name(f".{path.name}.part")
    try:
        with translating_os_errors(f"writing the backup {path}"):
            temporary.unlink(missing_ok=True)
            with translating_errors(temporary), closing(sqlite3.connect(temporary, isolation_level=None)) as copy:
                database.conn.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")
                faults = database_faults(copy)
            if faults:
                raise StorageError(f"The database is damaged ({'; '.join(faults)}): restore an earlier backup.")
            sync_file(temporary)
            temporary.rename(path)
            sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
