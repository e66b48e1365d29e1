"""Queries about updates and the messages that answer them: what makes a crash harmless.

An update is stored before Telegram hears that we have it, begun when it is handled, finished when everything it
asked for has happened. What is stored and not finished is handled again at the next start. These queries are the
busiest of all, so callers that arrive together share one statement.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from sqlite_utils import Database

from storage.base import Queries, every, first
from storage.errors import IllegalTransition, StorageError, UnknownRecord
from storage.records import Kind, Reply, StoredUpdate

Row = tuple[int, str, str]
"""An update to store: id, lane, payload."""

NOBODYS_LANE = ""
"""The lane of an update whose sender was forgotten: nothing in its row leads to them."""

_IDS = "(SELECT value FROM json_each(?))"
_REPLIES = 'SELECT "update", slot, chat, message, final, question FROM replies'
_REPLY = f'{_REPLIES} WHERE "update" = ?'


class Inbox(Queries):
    """Updates and replies."""

    async def store_updates(self, updates: Iterable[Row]) -> list[bool]:
        """Store updates in one commit: for each (id, lane, payload), False if it is already known.

        `lane` orders: one lane, one update at a time.
        """
        rows = [(update, lane, _storable(payload)) for update, lane, payload in updates]
        return await self._write(lambda database: self._store(database, rows))

    async def pending_updates(self) -> list[StoredUpdate]:
        """What was stored and neither finished nor set aside, in Telegram's order."""
        rows = await self._read(
            lambda database: every(
                database,
                "SELECT id, lane, payload, attempts, received, state, error FROM inbox"
                " WHERE state IN ('stored', 'begun') ORDER BY id",
            )
        )
        return [StoredUpdate(**row) for row in rows]

    async def stored_update(self, update: int) -> StoredUpdate:
        """One update in whatever state; a finished one has no payload any more. Raises `UnknownRecord`."""
        row = await self._read(
            lambda database: first(
                database,
                "SELECT id, lane, payload, attempts, received, state, error FROM inbox WHERE id = ?",
                [update],
            )
        )
        if row is None:
            raise _unknown(update)
        return StoredUpdate(**row)

    async def begin_update(self, update: int) -> int:
        """Count an attempt at an update before handling it; return how many there were, this one included.

        Raises `UnknownRecord`, or `IllegalTransition` for an update that is finished.
        """
        return await self._write_together(_begin, update)

    async def check_room(self, update: int) -> None:
        """Write an update's row as it is. Raises `NotSaved` while the disk takes nothing."""
        await self._write(
            lambda database: database.execute("UPDATE inbox SET attempts = attempts WHERE id = ?", [update])
        )

    async def finish_update(self, update: int, unreachable: str = "") -> None:
        """Everything the update asked for has happened: it is not handled again and its payload is dropped.

        Where nobody was there to be answered, `unreachable` says why; the row keeps it. What is known of the replies to
        somebody who was forgotten meanwhile goes. Raises `UnknownRecord`.
        """
        await self._write_together(self._finish, (update, unreachable))

    async def set_aside_update(self, update: int, error: str) -> bool:
        """Give up on an update that fails each time; it stays with its payload and `error` for the operator.

        Returns:
            False for an update that is closed, which stays so: it has no payload any more.

        Raises:
            UnknownRecord: There is no such update.
        """

        def work(database: Database) -> bool:
            sql = "UPDATE inbox SET state = 'aside', error = ? WHERE id = ? AND state <> 'done'"
            if database.execute(sql, (error, update)).rowcount:
                return True
            if first(database, "SELECT 1 FROM inbox WHERE id = ?", [update]) is None:
                raise _unknown(update)
            return False

        return await self._write(work)

    async def prune_updates(self, before: float) -> int:
        """Drop finished updates and their replies' rows from before that time; return how many updates.

        Telegram keeps an undelivered update for a day, so what is a few days old cannot come again. The last
        update, not always the highest, since after a quiet week Telegram continues from a random number
        (https://core.telegram.org/bots/api#update), always stays, and so do the replies that show an exchange: people
        react to old answers too.
        """

        def work(database: Database) -> int:
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

        return await self._write(work)

    async def begin_reply(self, update: int, slot: int, chat: int, question: int = 0) -> Reply:
        """Note that reply number `slot` (from 0) to an update is about to be sent, or return what is known of it.

        `question` is the message that it answers. A `message` in the result means that it was sent before: edit that.
        None on an update's second attempt means that an earlier send may or may not have happened; such replies are
        counted as doubtful.
        """
        now = self._now()

        def work(database: Database) -> Reply:
            row = first(database, f"{_REPLY} AND slot = ?", (update, slot))
            if row is None:
                database.execute(
                    'INSERT INTO replies("update", slot, chat, question, created) VALUES (?, ?, ?, ?, ?)',
                    (update, slot, chat, question, now),
                )
                return Reply(update, slot, chat, None, question=question)
            if row["message"] is None:
                database.execute(
                    'UPDATE replies SET doubtful = doubtful + 1 WHERE "update" = ? AND slot = ?', (update, slot)
                )
            return _reply(row)

        return await self._write(work)

    async def sent_reply(self, update: int, slot: int, message: int) -> None:
        """Telegram has the reply under this message id. Raises `UnknownRecord` for a reply that was not begun."""
        await self._set_reply(update, slot, "message = ?", [message])

    async def finish_reply(self, update: int, slot: int) -> None:
        """The reply shows its final text. Raises `UnknownRecord` for a reply that was not begun."""
        await self._set_reply(update, slot, "final = 1", [])

    async def replies(self, update: int) -> list[Reply]:
        """All replies begun for an update, by slot."""
        rows = await self._read(lambda database: every(database, f"{_REPLY} ORDER BY slot", [update]))
        return [_reply(row) for row in rows]

    async def replied(self, chat: int, *, message: int | None = None, question: int | None = None) -> bool:
        """Whether a message of a chat is one of our replies, or a question that has one."""
        row = await self._read(
            lambda database: first(
                database,
                "SELECT 1 FROM replies WHERE chat = ?1 AND message = ?2"
                " UNION ALL SELECT 1 FROM replies WHERE chat = ?1 AND question = ?3 AND question <> 0 LIMIT 1",
                (chat, message, question),
            )
        )
        return row is not None

    async def replies_to(self, chat: int, question: int) -> list[Reply]:
        """The messages that answer a message of somebody's at last, by slot; none for one that was never answered."""
        rows = await self._read(
            lambda database: every(
                database,
                f'{_REPLIES} WHERE "update" = (SELECT "update" FROM replies WHERE chat = ? AND question = ?'
                " ORDER BY created DESC, rowid DESC LIMIT 1) ORDER BY slot",
                (chat, question),
            )
        )
        return [_reply(row) for row in rows]

    async def reply_stands(self, chat: int, message: int) -> bool:
        """Whether a message of ours is known as a reply."""
        row = await self._read(
            lambda database: first(database, "SELECT 1 FROM replies WHERE chat = ? AND message = ?", (chat, message))
        )
        return row is not None

    async def _set_reply(self, update: int, slot: int, change: str, values: list[int]) -> None:
        def work(database: Database) -> None:
            cursor = database.execute(
                f'UPDATE replies SET {change} WHERE "update" = ? AND slot = ?', (*values, update, slot)
            )
            if cursor.rowcount == 0:
                raise UnknownRecord(f"Reply {slot} to update {update} was not begun: call begin_reply first.")

        await self._write(work)

    def _store(self, database: Database, rows: Sequence[Row]) -> list[bool]:
        known = _json(database, f"SELECT json_group_array(id) FROM inbox WHERE id IN {_IDS}", [row[0] for row in rows])
        fresh = {row[0]: row for row in reversed(rows)}  # of two with one id, the first
        for update in known:
            fresh.pop(update, None)
        # One statement for all: each statement gives Python's lock away, and a busy event loop returns it late.
        database.execute(
            "INSERT INTO inbox(id, lane, payload, received) SELECT json_extract(value, '$[0]'),"
            " json_extract(value, '$[1]'), json_extract(value, '$[2]'), ? FROM json_each(?)",
            (self._now(), json.dumps(list(fresh.values()))),
        )
        return [fresh.pop(row[0], None) is not None for row in rows]

    def _finish(self, database: Database, ends: Sequence[tuple[int, str]]) -> list[Exception | None]:
        updates = [update for update, _ in ends]
        cursor = database.execute(
            "UPDATE inbox SET state = 'done', payload = '', finished = ?, error = json_extract(value, '$[1]')"
            " FROM json_each(?) WHERE inbox.id = json_extract(value, '$[0]')",
            (self._now(), json.dumps(ends)),
        )
        database.execute(
            f'DELETE FROM replies WHERE "update" IN (SELECT id FROM inbox WHERE id IN {_IDS} AND lane = ?)',
            (json.dumps(updates), NOBODYS_LANE),
        )
        database.execute(  # their words are in the file until the log is emptied again
            "INSERT INTO removals(kind, name) SELECT ?, '' FROM inbox"
            f" WHERE id IN {_IDS} AND lane = ? LIMIT 1 ON CONFLICT DO NOTHING",
            (Kind.LOG, json.dumps(updates), NOBODYS_LANE),
        )
        if cursor.rowcount == len(set(updates)):
            return [None] * len(updates)
        known = set(_json(database, f"SELECT json_group_array(id) FROM inbox WHERE id IN {_IDS}", updates))
        return [None if update in known else _unknown(update) for update in updates]


def refuse_closed(database: Database, update: int | None) -> None:
    """Raise `UnknownRecord` for an update that is done: what is still at work on it has nothing to keep any more. None
    is none.
    """
    if first(database, "SELECT 1 FROM inbox WHERE id = ? AND state = 'done'", [update]) is not None:
        raise UnknownRecord(f"Update {update} is closed: its sender has had everything deleted.")


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
        return IllegalTransition(f"Update {update} is finished already: there is nothing left to handle.")
    return attempts


def _json(database: Database, sql: str, values: Sequence[int]) -> list[Any]:
    """The list that a query yields as JSON text, for the integers that it is given as JSON text."""
    found: list[Any] = json.loads(database.execute(sql, [json.dumps(values)]).fetchone()[0])
    return found


def _storable(payload: str) -> str:
    """`payload` itself. Raises `StorageError` for half a surrogate pair, which UTF-8 cannot hold."""
    try:
        payload.encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"An update's payload is not valid Unicode ({error}): escape it as JSON does.") from error
    return payload


def _unknown(update: int) -> UnknownRecord:
    return UnknownRecord(f"The inbox has no update {update}: store it first.")


def _reply(row: sqlite3.Row) -> Reply:
    return Reply(row["update"], row["slot"], row["chat"], row["message"], bool(row["final"]), row["question"])
