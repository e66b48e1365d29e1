"""Reader threads, each with its own connection, so that no query runs on an event loop.

In WAL mode, readers and the writer do not block each other. A read sees every write that was awaited
before the read.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from storage.connection import connect, translating_errors
from storage.database import Database
from storage.errors import StorageError

Result = TypeVar("Result")

THREADS = 2
"""How many reads can run at once. More would gain little, because the GIL serializes the conversion of rows."""


class ReaderPool:
    """A pool of read-only connections, one per thread, each opened on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ledger-reader")
        self._mine = threading.local()
        self._opened: list[Database] = []
        self._closed = False

    async def do(self, work: Callable[[Database], Result]) -> Result:
        """Run `work` with a read-only connection in a thread of the pool and return its result.

        All statements in one call of `work` see the same state of the ledger.

        Raises:
            StorageError: The ledger is closed, or the read fails.
        """
        if self._closed:
            raise StorageError(f"The database at {self._path} is closed: open it again.")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._work, work)

    async def close(self) -> None:
        """Wait for reads in flight, then close every connection; a second call does nothing."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._pool.shutdown)
            for database in self._opened:
                database.close()

    def _work(self, work: Callable[[Database], Result]) -> Result:
        database: Database | None = getattr(self._mine, "database", None)
        if database is None:
            database = self._mine.database = connect(self._path, read_only=True)
            self._opened.append(database)
        with translating_errors(self._path), database.atomic():
            return work(database)
