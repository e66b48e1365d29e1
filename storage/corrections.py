"""Corrections: better answers that users suggest (table `demonstrations`).

Once a correction is confirmed, training uses it instead of the model's answer. The newest confirmed
correction of an exchange counts. The bot decides who may confirm corrections.
"""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, replace

from storage.base import Queries, find, first, insert, known, transaction
from storage.database import Database
from storage.exchanges import exchange_with
from storage.learning_records import Correction
from storage.people import ensure_user

_SELECT = 'SELECT id, exchange, author, text, "update", created, confirmed_by FROM demonstrations'


class Corrections(Queries):
    """The corrections in the ledger."""

    @transaction
    def add(self, database: Database, correction: Correction) -> int:
        """Add an unconfirmed correction and return its ID.

        If the correction's update has already added one, the ID of the existing correction is returned.

        Raises:
            UnknownRecord: The exchange does not exist or was deleted.
        """
        now = correction.created or self._clock()
        row = first(database, f'{_SELECT} WHERE "update" = ?', [correction.update])
        if row is not None:
            return int(row["id"])
        exchange_with(database, correction.exchange)
        ensure_user(database, correction.author, now)
        return insert(database, "demonstrations", asdict(replace(correction, created=now, confirmed_by=None)))

    async def count_since(self, author: int, since: float, exchange: int) -> int:
        """Count the exchanges, other than `exchange`, that the user `author` has corrected since the time `since`."""
        return await self._number(
            "SELECT count(DISTINCT exchange) FROM demonstrations WHERE author = ? AND created >= ? AND exchange <> ?",
            (author, since, exchange),
        )

    async def get(self, correction: int) -> Correction:
        """Return the correction with the ID `correction`.

        Raises:
            UnknownRecord: There is no such correction.
        """
        return await self._read(lambda database: _get(database, correction))

    async def for_message(self, chat: int, message: int) -> Correction | None:
        """Return the correction to which a message belongs, or None if there is none.

        The message is either the user's message that makes the correction or a message from the bot about it.
        """
        return await self._find(
            _correction,
            f'{_SELECT} WHERE "update" IN (SELECT "update" FROM replies WHERE chat = :chat'
            " AND (message = :message OR question = :message)) ORDER BY id DESC LIMIT 1",
            {"chat": chat, "message": message},
        )

    @transaction
    def confirm(self, database: Database, correction: int, by: int | None) -> None:
        """Confirm a correction on behalf of the user `by`, or withdraw its confirmation if `by` is None.

        A withdrawal affects only later runs.

        Raises:
            UnknownRecord: There is no such correction.
        """
        if by is not None:
            ensure_user(database, by, self._clock())
        _get(database, correction)
        database.execute("UPDATE demonstrations SET confirmed_by = ? WHERE id = ?", (by, correction))


def _correction(row: sqlite3.Row) -> Correction:
    return Correction(**row)


def _get(database: Database, correction: int) -> Correction:
    found = find(_correction, database, f"{_SELECT} WHERE id = ?", [correction])
    return known(found, f"The database has no correction {correction}: it may have been deleted.")
