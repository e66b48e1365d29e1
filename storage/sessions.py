"""Sessions: the conversations of users in chats.

A session belongs to one user in one chat and forum topic; /new closes it and opens a new one. A group
with a shared conversation counts as a user whose ID is the (negative) ID of the group.
"""

from __future__ import annotations

from storage.base import Queries, first, insert, transaction
from storage.database import Database
from storage.inbox import refuse_closed
from storage.people import ensure_chat, ensure_user

_OPEN_SESSION = "SELECT id FROM sessions WHERE chat = ? AND user = ? AND topic = ? AND closed IS NULL"


class Sessions(Queries):
    """Queries for sessions; a user has at most one open session per chat and topic."""

    async def find(self, chat: int, user: int, topic: int = 0) -> int | None:
        """Return the open session of `user` in `chat` and `topic`, or None if there is none.

        Outside forum topics, `topic` is 0.
        """
        return await self._find(lambda row: int(row["id"]), _OPEN_SESSION, (chat, user, topic))

    async def open(self, chat: int, user: int, topic: int = 0, *, update: int | None = None) -> int:
        """Return the open session of `user` in `chat` and `topic`, opening one if necessary.

        Raises `UnknownRecord` if the data of the sender of `update` has been erased in the meantime.
        """
        return await self.find(chat, user, topic) or await self._open(chat, user, topic, update)

    @transaction
    def _open(self, database: Database, chat: int, user: int, topic: int, update: int | None) -> int:
        refuse_closed(database, update)
        return _open_session(database, chat, user, topic, self._clock())

    @transaction
    def restart(self, database: Database, chat: int, user: int, topic: int = 0) -> int:
        """Close the open session, if any, open a new one with an empty history, and return the new ID."""
        now = self._clock()
        database.execute(
            "UPDATE sessions SET closed = ? WHERE chat = ? AND user = ? AND topic = ? AND closed IS NULL",
            (now, chat, user, topic),
        )
        return _open_session(database, chat, user, topic, now)


def _open_session(database: Database, chat: int, user: int, topic: int, now: float) -> int:
    row = first(database, _OPEN_SESSION, (chat, user, topic))
    if row is not None:
        return int(row["id"])
    ensure_user(database, user, now)
    ensure_chat(database, chat, now)
    return insert(database, "sessions", {"chat": chat, "user": user, "topic": topic, "created": now})
