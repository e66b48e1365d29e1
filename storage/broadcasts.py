"""Broadcasts and their delivery to each recipient.

A broadcast is identified by the update that requested it; the update's row in the inbox holds the text.
Each recipient has a row, so that the bot can resume after being killed. The rows are deleted when the
next broadcast begins, or when the recipient's data is erased.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from storage.base import Queries, column, first, transaction
from storage.database import Database
from storage.state_machines import RecipientState

_MOVE = 'UPDATE broadcasts SET state = ? WHERE "update" = ?'


class Broadcasts(Queries):
    """The broadcasts in the ledger and their recipients."""

    @transaction
    def begin(self, database: Database, update: int, chats: Collection[int]) -> None:
        """Store the recipients of the broadcast requested by `update`, oldest chat first.

        If they are already stored, only the recipient to which an earlier process was still sending is marked as
        doubtful.
        """
        wanted = json.dumps(list(chats))
        if first(database, 'SELECT 1 FROM broadcasts WHERE "update" = ?', [update]) is not None:
            database.execute(f"{_MOVE} AND state = 'sending'", (RecipientState.DOUBTFUL, update))
            return
        database.execute(
            "DELETE FROM broadcasts WHERE \"update\" NOT IN (SELECT id FROM inbox WHERE state IN ('stored', 'begun'))"
        )
        database.execute(
            'INSERT INTO broadcasts("update", chat) SELECT ?, id FROM chats'
            " WHERE id IN (SELECT value FROM json_each(?)) ORDER BY created, id",
            (update, wanted),
        )

    @transaction
    def next_recipient(self, database: Database, update: int) -> int | None:
        """Mark the next due recipient as SENDING and return its chat ID, or return None if none is due."""
        sql = (
            f"{_MOVE} AND rowid = (SELECT rowid FROM broadcasts WHERE \"update\" = ? AND state = 'due' ORDER BY rowid"
            " LIMIT 1) RETURNING chat"
        )
        moved = column(database, sql, (RecipientState.SENDING, update, update))
        return moved[0] if moved else None

    async def set_recipient(self, update: int, chat: int, state: RecipientState) -> None:
        """Store the delivery state of a recipient, unless the chat has been erased in the meantime."""
        await self._execute(f"{_MOVE} AND chat = ?", (state, update, chat))

    async def cancel(self, update: int) -> int:
        """Cancel a broadcast and return the number of chats that will therefore not receive it."""
        return await self._execute(f"{_MOVE} AND state = 'due'", (RecipientState.SKIPPED, update))

    async def recipients(self, update: int) -> dict[int, RecipientState]:
        """Return the delivery state of every recipient by chat ID, in the order of sending."""
        rows = await self._every('SELECT chat, state FROM broadcasts WHERE "update" = ? ORDER BY rowid', [update])
        return {row["chat"]: RecipientState(row["state"]) for row in rows}
