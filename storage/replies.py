"""Replies: the messages that answer an update.

Replies are stored so that handling an update a second time edits them instead of sending new ones.
"""

from __future__ import annotations

import sqlite3

from storage.base import Queries, first, transaction
from storage.chat_records import StoredReply
from storage.database import Database
from storage.errors import UnknownRecord

_REPLIES = 'SELECT "update", slot, chat, message, final, question, inline, topic FROM replies'
_REPLY = f'{_REPLIES} WHERE "update" = ?'


class Replies(Queries):
    """Replies to updates."""

    @transaction
    def begin(
        self, database: Database, update: int, slot: int, chat: int, *, question: int = 0, topic: int | None = None
    ) -> StoredReply:
        """Record that a reply is about to be sent, or return the stored reply if it was recorded before.

        If the returned reply has a `message` or is `inline`, the reply was sent before and is to be edited. If it has
        neither on a later attempt, an earlier attempt may or may not have sent the reply; such replies are counted as
        doubtful.

        Args:
            database: The ledger, which callers leave out.
            update: The ID of the update.
            slot: The index of the reply among the update's replies, starting at 0.
            chat: The ID of the chat.
            question: The ID of the message that the reply answers, or 0 if there is none.
            topic: The ID of the forum topic, or None if there is none.
        """
        row = first(database, f"{_REPLY} AND slot = ?", (update, slot))
        if row is None:
            database.execute(
                'INSERT INTO replies("update", slot, chat, question, topic, created) VALUES (?, ?, ?, ?, ?, ?)',
                (update, slot, chat, question, topic, self._clock()),
            )
            return StoredReply(update, slot, chat, None, question=question, topic=topic)
        if row["message"] is None and row["inline"] is None:
            database.execute(
                'UPDATE replies SET doubtful = doubtful + 1 WHERE "update" = ? AND slot = ?', (update, slot)
            )
        return _reply(row)

    async def sent(self, update: int, slot: int, message: int | str) -> None:
        """Store the message ID that Telegram assigned to a reply; it is a string if the message is inline.

        Raises:
            UnknownRecord: `begin` was not called for the reply.
        """
        await self._set(update, slot, "inline" if isinstance(message, str) else "message", message)

    async def finish(self, update: int, slot: int) -> None:
        """Mark a reply as showing its final text.

        Raises:
            UnknownRecord: `begin` was not called for the reply.
        """
        await self._set(update, slot, "final", 1)

    async def for_update(self, update: int) -> list[StoredReply]:
        """Return all replies begun for an update, ordered by slot."""
        return await self._list(_reply, f"{_REPLY} ORDER BY slot", [update])

    async def exists(self, chat: int, *, message: int | None = None, question: int | None = None) -> bool:
        """Return whether, in `chat`, `message` is one of the bot's replies or `question` has been replied to."""
        sql = (
            "SELECT EXISTS (SELECT 1 FROM replies WHERE chat = ?1 AND message = ?2)"
            " OR EXISTS (SELECT 1 FROM replies WHERE chat = ?1 AND question = ?3 AND question <> 0)"
        )
        return bool(await self._number(sql, (chat, message, question)))

    async def for_question(self, chat: int, question: int) -> list[StoredReply]:
        """Return the latest replies to a user's message, ordered by slot."""
        return await self._list(
            _reply,
            f'{_REPLIES} WHERE "update" = (SELECT "update" FROM replies WHERE chat = ? AND question = ?'
            " AND message IS NOT NULL ORDER BY created DESC, rowid DESC LIMIT 1) ORDER BY slot",
            (chat, question),
        )

    async def _set(self, update: int, slot: int, field: str, value: int | str) -> None:
        sql = f'UPDATE replies SET {field} = ? WHERE "update" = ? AND slot = ?'
        if not await self._execute(sql, (value, update, slot)):
            raise UnknownRecord(f"Reply {slot} to update {update} was not begun: call `begin` first.")


def _reply(row: sqlite3.Row) -> StoredReply:
    return StoredReply(**{**dict(row), "final": bool(row["final"])})
