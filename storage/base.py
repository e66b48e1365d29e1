"""What every group of the ledger's queries stands on: write, read, the clock, rows to records.

Knows how work reaches the database; the queries themselves are in `people`, `exchanges`, `feedback`, `inbox`,
`runs`, `registry` and their like, which `ledger` puts together.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlite_utils import Database

from storage.reader_pool import Readers
from storage.writer import Together, Writer

Result = TypeVar("Result")
Argument = TypeVar("Argument")


class Queries:
    """Collaborators of a group of queries; the ledger inherits from every group."""

    def __init__(self, writer: Writer, readers: Readers, clock: Callable[[], float]) -> None:
        self._writer = writer
        self._readers = readers
        self._clock = clock

    async def _write(self, work: Callable[[Database], Result]) -> Result:
        """Run `work` on the writer's thread; return after the commit."""
        return await self._writer.do(work)

    async def _write_together(self, together: Together[Argument, Result], argument: Argument) -> Result:
        """As `_write`, in one call for everyone who waits for the same function."""
        return await self._writer.do_together(together, argument)

    async def _read(self, work: Callable[[Database], Result]) -> Result:
        """Run `work` on a reading thread."""
        return await self._readers.do(work)

    def _now(self, given: float = 0.0) -> float:
        """`given`, or the present time where that is 0 (UTC seconds since the epoch)."""
        return given or self._clock()


def first(database: Database, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> sqlite3.Row | None:
    """The first row of a query, None without any."""
    row: sqlite3.Row | None = database.execute(sql, values).fetchone()
    return row


def every(database: Database, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[sqlite3.Row]:
    """All rows of a query."""
    return database.execute(sql, values).fetchall()


def number(database: Database, sql: str, values: Sequence[Any] = ()) -> int:
    """The one integer that a query yields, such as a count."""
    value: int = database.execute(sql, values).fetchone()[0]
    return value
