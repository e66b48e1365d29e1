"""Base class for the parts of the ledger, and helpers for queries."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from storage.database import Database
from storage.errors import UnknownRecord
from storage.reader_pool import ReaderPool
from storage.writer import Writer

Result = TypeVar("Result")
Record = TypeVar("Record")
Part = TypeVar("Part", bound="Queries")
Args = ParamSpec("Args")
Values = Sequence[Any] | dict[str, Any]


class Queries:
    """Base class of the ledger's parts, which share a writer, readers and a clock.

    The clock returns UTC seconds since the epoch.
    """

    def __init__(self, writer: Writer, readers: ReaderPool, clock: Callable[[], float]) -> None:
        self._writer = writer
        self._readers = readers
        self._clock = clock

    async def _execute(self, sql: str, values: Values = ()) -> int:
        """Run one statement on the writer's thread and, after the commit, return the number of changed rows."""
        return await self._writer.do(lambda database: int(database.execute(sql, values).rowcount))

    async def _read(self, work: Callable[[Database], Result]) -> Result:
        """Run `work` on a reader's thread and return its result."""
        return await self._readers.do(work)

    async def _find(self, record: Callable[[sqlite3.Row], Record], sql: str, values: Values = ()) -> Record | None:
        """Return the record made from the first row of a query's result, or None if the result is empty."""
        return await self._read(lambda database: find(record, database, sql, values))

    async def _list(self, record: Callable[[sqlite3.Row], Record], sql: str, values: Values = ()) -> list[Record]:
        """Return the records made from all rows of a query's result."""
        return [record(row) for row in await self._every(sql, values)]

    async def _every(self, sql: str, values: Values = ()) -> list[sqlite3.Row]:
        """Return all rows of a query's result."""
        return await self._read(lambda database: every(database, sql, values))

    async def _column(self, sql: str, values: Values = ()) -> list[Any]:
        """Return the first column of a query's result."""
        return await self._read(lambda database: column(database, sql, values))

    async def _number(self, sql: str, values: Values = ()) -> int:
        """Return the single integer that a query yields."""
        return await self._read(lambda database: number(database, sql, values))


def transaction(
    work: Callable[Concatenate[Part, Database, Args], Result],
) -> Callable[Concatenate[Part, Args], Coroutine[Any, Any, Result]]:
    """Turn a method with the parameter `database` into a coroutine function, whose callers leave the parameter out.

    The method runs in a transaction on the writer's thread, and the coroutine returns after the commit. The method
    may run twice (see `storage.writer.Work`).
    """

    @wraps(work)
    async def method(self: Part, /, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        return await self._writer.do(lambda database: work(self, database, *args, **kwargs))

    return method


def query(
    work: Callable[Concatenate[Part, Database, Args], Result],
) -> Callable[Concatenate[Part, Args], Coroutine[Any, Any, Result]]:
    """Turn a method with the parameter `database` into a coroutine function, as `transaction` does, for reads only.

    All statements of the method see the same state of the ledger.
    """

    @wraps(work)
    async def method(self: Part, /, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        return await self._readers.do(lambda database: work(self, database, *args, **kwargs))

    return method


def first(database: Database, sql: str, values: Values = ()) -> sqlite3.Row | None:
    """Return the first row of a query's result, or None if the result is empty."""
    row: sqlite3.Row | None = database.execute(sql, values).fetchone()
    return row


def find(record: Callable[[sqlite3.Row], Record], database: Database, sql: str, values: Values = ()) -> Record | None:
    """Return the record made from the first row of a query's result, or None if the result is empty."""
    row = first(database, sql, values)
    return None if row is None else record(row)


def known(record: Record | None, trouble: str) -> Record:
    """Return `record`, or raise an error if it is None.

    Raises:
        UnknownRecord: `record` is None; `trouble` is the error message.
    """
    if record is None:
        raise UnknownRecord(trouble)
    return record


def every(database: Database, sql: str, values: Values = ()) -> list[sqlite3.Row]:
    """Return all rows of a query's result."""
    return database.execute(sql, values).fetchall()


def number(database: Database, sql: str, values: Values = ()) -> int:
    """Return the single integer that a query yields, such as a count."""
    value: int = database.execute(sql, values).fetchone()[0]
    return value


def insert(database: Database, table: str, row: Mapping[str, Any]) -> int:
    """Insert a row, given as the values of its columns, and return its new ID; the value of `id` is ignored.

    `Table.insert` would read the schema several times, which costs a millisecond.
    """
    values = {f'"{name}"': value for name, value in row.items() if name != "id"}
    sql = f"INSERT INTO {table}({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"
    identifier = database.execute(sql, list(values.values())).lastrowid
    assert identifier is not None
    return identifier


def column(database: Database, sql: str, values: Values = ()) -> list[Any]:
    """Return the first column of a query's result."""
    return [row[0] for row in database.execute(sql, values)]
