"""Erasure of a user's data: first the ledger's rows, in one transaction, then data outside the ledger.

The data outside the ledger's rows comprises the picture files, the rows in the files of runs, the
prompts that might be sent to an engine again, and the ledger's write-ahead log. This module is used by
the chat, the schedule and the command line (whether or not the bot is running). If an erasure is
interrupted, or a run is in progress, the bot finishes the erasure later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from storage.ledger import Ledger
from storage.pending_removals import Removal, RemovalKind
from storage.personal_data import PersonalDataSummary
from storage.picture_files import PictureStore
from training.data.row_erasure import remove_rows

ABANDONED_SECONDS: Final = 3600.0
"""A file older than this without a row is a stray, since a picture's row is written moments after its file."""

FEW_STRAYS: Final = 5
STRAY_SHARE: Final = 0.05
"""Crashes and full disks leave only a few strays; a larger share suggests that the ledger is outdated or new."""

log = structlog.get_logger()


class ManyStrays(Exception):
    """So many picture files are unknown to the ledger that it may be the wrong one; nothing was removed."""

    def __init__(self, count: int, total: int) -> None:
        super().__init__(f"{count} of {total} picture files are unknown to the database")
        self.count = count
        self.total = total


class Erasure:
    """Deletes users' data from the ledger, and the picture files and rows of run files that depend on it.

    `forget_session` drops the newest prompt of a chat session, which might otherwise be sent to engines
    again. Outside the bot's process, `forget_session` is None, and the bot drops the prompt later.
    """

    def __init__(self, ledger: Ledger, forget_session: Callable[[int], None] | None = None) -> None:
        folder = ledger.path.parent
        self._ledger = ledger
        self._pictures = PictureStore(folder / "pictures")
        self._runs = folder / "runs"
        self._forget_session = forget_session
        self._withdrawn = frozenset[int]()
        self._alone = asyncio.Lock()

    async def forget(self, user: int, *, during: int | None = None) -> PersonalDataSummary:
        """Delete all data of a user, and return a summary of the deleted data.

        `during` is the ID of the update that requests the deletion.

        Raises `StorageError`, or `OSError` if a run's file cannot be changed. In either case, the remaining data
        is deleted later.
        """
        gone = await self._ledger.personal_data.erase(user, during=during)
        log.info("a user's data was deleted", exchanges=gone.exchanges, pictures=gone.pictures)
        await self.settle()
        return gone

    async def settle(self) -> None:
        """Remove everything that depends on deleted rows, no matter which process deleted the rows."""
        async with self._alone:
            found = await self._ledger.personal_data.pending_removals()
            if not found:
                return
            by_kind = {kind: [each for each in found if each.kind is kind] for kind in RemovalKind}
            for each in by_kind[RemovalKind.PICTURE]:
                await self._ledger.personal_data.remove_picture(each.name, partial(self._pictures.remove, each.name))
            await self._sessions(by_kind[RemovalKind.SESSION])
            await self._rows(by_kind[RemovalKind.ROW])
            if by_kind[RemovalKind.LOG] and await self._ledger.empty_log():
                await self._ledger.personal_data.finish_removals(by_kind[RemovalKind.LOG])

    async def strays(self) -> tuple[list[Path], int]:
        """Return the picture files that are unknown to the ledger, and the total number of picture files.

        A picture file becomes a stray if a crash or a full disk keeps its row from being written.
        """
        oldest = time.time() - ABANDONED_SECONDS
        files = await asyncio.to_thread(self._pictures.files)
        known = {each.sha256 for each in await self._ledger.pictures.all()}
        unknown = [each for each in files if each.name not in known]
        return await asyncio.to_thread(lambda: [each for each in unknown if _written(each) < oldest]), len(files)

    async def sweep(self, *, confirmed: bool = False) -> int:
        """Remove the stray picture files and return their number.

        Raises `ManyStrays` if there are many, unless `confirmed` is true.
        """
        gone, total = await self.strays()
        if not confirmed and len(gone) > max(FEW_STRAYS, STRAY_SHARE * total):
            raise ManyStrays(len(gone), total)
        for each in gone:
            await self._ledger.personal_data.remove_picture(each.name, partial(self._pictures.remove, each.name))
        return len(gone)

    async def _sessions(self, sessions: list[Removal]) -> None:
        if self._forget_session and sessions:
            for each in sessions:
                self._forget_session(int(each.name))
            await self._ledger.personal_data.finish_removals(sessions)

    async def _rows(self, rows: list[Removal]) -> None:
        """Remove deleted exchanges from the files of runs.

        If a run is in progress, the removal is repeated after the run has ended, because the run may write some
        of the exchanges again.
        """
        exchanges = frozenset(int(each.name) for each in rows)
        busy = await self._ledger.runs.active() is not None
        if exchanges and not (busy and exchanges <= self._withdrawn):
            await asyncio.to_thread(remove_rows, self._runs, exchanges)
            self._withdrawn = exchanges
            if not busy:
                await self._ledger.personal_data.finish_removals(rows)


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # removed in the meantime
        return time.time()
