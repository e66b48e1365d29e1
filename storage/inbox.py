"""The inbox of updates, which are stored before they are acknowledged to Telegram.

An update is first stored, then marked as begun when its handling begins, and as finished when its
effects are complete. When the bot starts, it handles all updates that are stored but not finished. Inbox
queries are the ledger's most frequent ones, so concurrent calls are combined into one statement.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from storage.base import Queries, first, transaction
from storage.chat_records import StoredUpdate
from storage.database import Database
from storage.errors import IllegalTransition, StorageError, UnknownRecord
from storage.pending_removals import RemovalKind

Row = tuple[int, str, str]
"""An update to store: its ID, lane and payload."""

ANONYMOUS_LANE = ""
"""The lane of an update whose sender was erased, so that nothing in its row identifies the sender."""

_SELECT = "SELECT id, lane, payload, attempts, received, state, error FROM inbox"
_IDS = "(SELECT value FROM json_each(?))"


class Inbox(Queries):
    """Queries for the updates in the inbox."""

    @transaction
    def store(self, database: Database, updates: Sequence[Row]) -> list[bool]:
        """Store updates, given as (ID, lane, payload) tuples, in one commit.

        Updates with the same lane are handled one after another.

        Returns:
            For each update, whether its ID was new.
        """
        rows = [(update, lane, _storable(payload)) for update, lane, payload in updates]
        known = _json(database, f"SELECT json_group_array(id) FROM inbox WHERE id IN {_IDS}", [row[0] for row in rows])
        fresh = {row[0]: row for row in reversed(rows)}  # of two updates with the same ID, the first is kept
        for update in known:
            fresh.pop(update, None)
        # A single statement, because each one releases the GIL and may have to wait for a busy event loop to return it.
        database.execute(
            "INSERT INTO inbox(id, lane, payload, received) SELECT json_extract(value, '$[0]'),"
            " json_extract(value, '$[1]'), json_extract(value, '$[2]'), ? FROM json_each(?)",
            (self._clock(), json.dumps(list(fresh.values()))),
        )
        return [fresh.pop(row[0], None) is not None for row in rows]

    async def pending(self) -> list[StoredUpdate]:
        """Return the updates that are neither finished nor set aside, in the order of their IDs."""
        return await self._list(_stored, f"{_SELECT} WHERE state IN ('stored', 'begun') ORDER BY id")

    async def get(self, update: int) -> StoredUpdate:
        """Return an update, whatever its state; a finished update has no payload.

        Raises:
            UnknownRecord: There is no such update.
        """
        found = await self._find(_stored, f"{_SELECT} WHERE id = ?", [update])
        if found is None:
            raise _unknown(update)
        return found

    async def begin(self, update: int) -> int:
        """Count a new attempt at handling an update, and return the number of attempts, including the new one.

        Raises:
            UnknownRecord: There is no such update.
            IllegalTransition: The update is finished.
        """
        return await self._writer.do_batched(_begin, update)

    async def check_disk(self, update: int) -> None:
        """Test the disk by rewriting an update's row unchanged.

        Raises:
            NotSaved: The disk is full or failing.
        """
        await self._execute("UPDATE inbox SET attempts = attempts WHERE id = ?", [update])

    async def finish(self, update: int, unreachable: str = "") -> None:
        """Mark an update as finished and delete its payload.

        If the answer could not be delivered, `unreachable` is stored as the reason. If the sender of the update
        was erased in the meantime, the replies to the update are deleted.

        Raises:
            UnknownRecord: There is no such update.
        """
        await self._writer.do_batched(self._finish, (update, unreachable))

    @transaction
    def set_aside(self, database: Database, update: int, error: str) -> bool:
        """Set aside an update whose handling always fails, keeping its payload and `error` for the operator.

        Returns:
            False if the update is finished and therefore left unchanged, otherwise True.

        Raises:
            UnknownRecord: There is no such update.
        """
        sql = "UPDATE inbox SET state = 'aside', error = ? WHERE id = ? AND state <> 'done'"
        if database.execute(sql, (error, update)).rowcount:
            return True
        if first(database, "SELECT 1 FROM inbox WHERE id = ?", [update]) is None:
            raise _unknown(update)
        return False

    @transaction
    def prune(self, database: Database, before: float) -> int:
        """Delete the updates that finished before the time `before`, and the rows of their replies.

        When choosing `before`, note that Telegram keeps an undelivered update for a day. The last update
        received is never deleted, because its ID shows where to continue. It need not have the highest ID, since
        Telegram continues from a random number after a week without updates
        (https://core.telegram.org/bots/api#update). Replies that show an exchange are also kept, because users
        may react to old answers.

        Returns:
            The number of deleted updates.
        """
        old = (
            "(SELECT id FROM inbox WHERE state = 'done' AND finished < ?"
            " AND id <> (SELECT id FROM inbox ORDER BY received DESC, id DESC LIMIT 1))"
        )
        dropped = database.execute(f"DELETE FROM inbox WHERE id IN {old}", [before]).rowcount
        database.execute(
            'DELETE FROM replies WHERE doubtful = 0 AND "update" NOT IN (SELECT id FROM inbox)'
            ' AND "update" NOT IN (SELECT "update" FROM exchanges)'
        )
        return dropped

    def _finish(self, database: Database, ends: Sequence[tuple[int, str]]) -> list[Exception | None]:
        updates = [update for update, _ in ends]
        cursor = database.execute(
            "UPDATE inbox SET state = 'done', payload = '', finished = ?, error = json_extract(value, '$[1]')"
            " FROM json_each(?) WHERE inbox.id = json_extract(value, '$[0]')",
            (self._clock(), json.dumps(ends)),
        )
        database.execute(
            f'DELETE FROM replies WHERE "update" IN (SELECT id FROM inbox WHERE id IN {_IDS} AND lane = ?)',
            (json.dumps(updates), ANONYMOUS_LANE),
        )
        database.execute(  # the deleted text remains on disk until the write-ahead log is truncated again
            "INSERT INTO removals(kind, name) SELECT ?, '' FROM inbox"
            f" WHERE id IN {_IDS} AND lane = ? LIMIT 1 ON CONFLICT DO NOTHING",
            (RemovalKind.LOG, json.dumps(updates), ANONYMOUS_LANE),
        )
        if cursor.rowcount == len(set(updates)):
            return [None] * len(updates)
        known = set(_json(database, f"SELECT json_group_array(id) FROM inbox WHERE id IN {_IDS}", updates))
        return [None if update in known else _unknown(update) for update in updates]


def refuse_closed(database: Database, update: int | None) -> None:
    """Raise `UnknownRecord` if `update` was closed because its sender's data was erased.

    If `update` is None, nothing happens.
    """
    if first(database, "SELECT 1 FROM inbox WHERE id = ? AND state = 'done'", [update]) is not None:
        raise UnknownRecord(f"Update {update} is closed: its sender's data has been deleted.")


def _begin(database: Database, updates: Sequence[int]) -> list[int | Exception]:
    database.execute(
        f"UPDATE inbox SET state = 'begun', attempts = attempts + 1 WHERE id IN {_IDS} AND state <> 'done'",
        [json.dumps(updates)],
    )
    rows = _json(
        database, f"SELECT json_group_array(json_array(id, attempts, state)) FROM inbox WHERE id IN {_IDS}", updates
    )
    found = {update: (attempts, state) for update, attempts, state in rows}
    return [_attempts(update, *found[update]) if update in found else _unknown(update) for update in updates]


def _attempts(update: int, attempts: int, state: str) -> int | Exception:
    if state == "done":
        return IllegalTransition(f"Update {update} is already finished: there is nothing left to handle.")
    return attempts


def _json(database: Database, sql: str, values: Sequence[int]) -> list[Any]:
    """Run a query with `values` encoded as JSON, and return the list decoded from its JSON result."""
    found: list[Any] = json.loads(database.execute(sql, [json.dumps(values)]).fetchone()[0])
    return found


def _stored(row: sqlite3.Row) -> StoredUpdate:
    return StoredUpdate(**row)


def _storable(payload: str) -> str:
    """Return `payload` if it can be encoded as UTF-8.

    Raises:
        StorageError: The payload contains a lone surrogate, which UTF-8 cannot encode.
    """
    try:
        payload.encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"An update's payload is not valid Unicode ({error}): escape it as JSON does.") from error
    return payload


def _unknown(update: int) -> UnknownRecord:
    return UnknownRecord(f"The inbox has no update {update}: store it first.")
