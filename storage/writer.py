"""The writer thread, which collects work from all event loops and commits it in shared transactions.

Everything queued during a commit goes into the next transaction. Each piece of work has its own
savepoint, so a failure does not affect the rest. A caller's await ends only after the commit, so
anything that the caller acknowledges afterwards survives `kill -9`.

Two pieces of work in flight at the same time may take effect in either order; where the order matters,
await the first before queueing the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from storage.connection import BUSY_SECONDS, connect, from_sqlite_error
from storage.database import Database
from storage.errors import NotSaved, StorageError

Result = TypeVar("Result")
Argument = TypeVar("Argument")

Work = Callable[[Database], Result]
"""Work in a transaction on the writer's thread. It may run twice (after a rollback), so it must change nothing else."""

Batched = Callable[[Database, Sequence[Argument]], Sequence[Result | Exception]]
"""Work for several callers at once; it returns one result or one exception for each argument."""

MAX_JOBS = 512
"""The maximum number of pieces of work in one commit, which bounds how long the first of them waits."""


@dataclass(slots=True, eq=False)
class _Job:
    """A piece of work and the future that its caller awaits."""

    together: Batched[Any, Any]
    argument: Any
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None
    lost: bool = False
    """Whether `error` concerns the whole transaction, so that none of its jobs was saved."""


class Writer:
    """This process's write connection to the database, served by a dedicated thread."""

    def __init__(self, path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
        """Open the database at `path` and start the thread. Raises `StorageError` if the database cannot be opened."""
        self._path = path
        self._database = connect(path, busy_seconds=busy_seconds)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self.trouble = ""
        """Why the latest commit was not saved; empty if it was."""
        # A daemon thread, so that a process can exit without calling `close`; only unacknowledged work is lost.
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    async def do(self, work: Work[Result]) -> Result:
        """Run `work` in a transaction and return its result after the commit.

        If `work` raises an exception, its changes are undone and the caller gets the exception; SQLite errors
        become `StorageError`. Cancelling the await does not undo the work.
        """
        return await self.do_batched(lambda database, _: [work(database)], None)

    async def do_batched(self, together: Batched[Argument, Result], argument: Argument) -> Result:
        """Call `together` once with the arguments of all waiting callers, and return the result for `argument`.

        If the call fails, `together` is called again with each argument alone. This method is meant for small,
        frequent writes.
        """
        if self._closed:
            raise StorageError(f"The database at {self._path} is closed: open it again.")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(together, argument, future))
        return await future

    async def close(self) -> None:
        """Finish the queued work, then close the connection. Further calls do nothing."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            closing = False
            while not closing:
                batch, closing = self._next_batch()
                if batch:
                    self._commit(batch)
                    unsaved = [str(job.error) for job in batch if job.lost or isinstance(job.error, NotSaved)]
                    self.trouble = unsaved[0] if unsaved else ""
                    _deliver(batch)
        finally:
            self._database.close()

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """Wait for work; return at most MAX_JOBS queued jobs, and whether the writer is closing."""
        batch: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) == MAX_JOBS:
                return batch, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: list[_Job]) -> None:
        """Run the batch in one transaction and give each job a result or an error."""
        connection = self._database.conn
        try:
            # IMMEDIATE, because a deferred transaction that reads first cannot wait for another process's commit:
            # it fails at once with SQLITE_BUSY_SNAPSHOT (https://www.sqlite.org/isolation.html).
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            for job in batch:
                job.error, job.lost = self._explained(error), True
            return
        try:
            for group in _groups(batch):
                self._do_group(group)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the error is for the waiting callers, not for this thread
            with contextlib.suppress(sqlite3.Error):  # the next BEGIN reports whatever is wrong
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if len(batch) == 1:
                batch[0].error, batch[0].lost = self._explained(error), True
                return
            # The transaction is lost, and one job may be the cause: run each job in its own transaction.
            for job in batch:
                job.error = None
                self._commit([job])

    def _do_group(self, group: list[_Job]) -> None:
        """Run jobs that share a function in one call, or each job alone if that call fails."""
        connection = self._database.conn
        connection.execute("SAVEPOINT work")
        try:
            results = group[0].together(self._database, [job.argument for job in group])
        except Exception as error:
            if not connection.in_transaction:  # SQLite rolled back the whole transaction: disk full, I/O error
                raise
            connection.execute("ROLLBACK TO work")
            connection.execute("RELEASE work")
            if len(group) == 1:
                group[0].error = self._explained(error)
            else:
                for job in group:
                    self._do_group([job])
            return
        connection.execute("RELEASE work")
        for job, result in zip(group, results, strict=True):
            if isinstance(result, Exception):
                job.error = result
            else:
                job.result = result

    def _explained(self, error: Exception) -> Exception:
        if not isinstance(error, sqlite3.Error):
            return error
        explanation = from_sqlite_error(error, self._path)
        explanation.__cause__ = error
        return explanation


def _groups(batch: list[_Job]) -> list[list[_Job]]:
    """Return the jobs grouped by function, in the order of each function's first job."""
    groups: dict[Batched[Any, Any], list[_Job]] = {}
    for job in batch:
        groups.setdefault(job.together, []).append(job)
    return list(groups.values())


def _deliver(batch: list[_Job]) -> None:
    """Wake the callers of a batch with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in batch:
        by_loop.setdefault(job.future.get_loop(), []).append(job)
    for loop, jobs in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: its callers are gone
            loop.call_soon_threadsafe(_deliver_all, jobs)


def _deliver_all(jobs: list[_Job]) -> None:
    """Deliver each job's result or error in its caller's event loop, unless the caller is no longer waiting."""
    for job in jobs:
        if job.future.done():
            continue
        if job.error is None:
            job.future.set_result(job.result)
        else:
            job.future.set_exception(job.error)
