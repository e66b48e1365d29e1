"""The tables of users and chats."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from storage.base import Queries, column, transaction
from storage.blocklist import BLOCKED
from storage.chat_records import Chat, Person
from storage.database import Database
from storage.guests import GUESTS
from storage.inbox import refuse_closed
from storage.personal_data import withdraw
from storage.run_selections import AFFECTED


def ensure_user(database: Database, user: int, now: float) -> None:
    """Add an empty row for `user` unless one exists, so that other rows can refer to it."""
    database.execute("INSERT INTO users(id, created) VALUES (?, ?) ON CONFLICT(id) DO NOTHING", (user, now))


def ensure_chat(database: Database, chat: int, now: float) -> None:
    """Add an empty row for `chat` unless one exists, so that other rows can refer to it."""
    database.execute("INSERT INTO chats(id, created) VALUES (?, ?) ON CONFLICT(id) DO NOTHING", (chat, now))


PERSON: Final = "id, users.name, client_language, language, opted_out, wants_notes, teaches_as_guest"

_LISTED: Final = f"""
SELECT {PERSON}, id IN ({BLOCKED}) AS blocked,
       (SELECT count(*) FROM exchanges WHERE asker = users.id) AS answers,
       (SELECT count(*) FROM ratings WHERE rater = users.id) AS rated,
       max(created,
           (SELECT coalesce(max(created), 0) FROM exchanges WHERE asker = users.id),
           (SELECT coalesce(max(created), 0) FROM feedback WHERE rater = users.id)) AS seen
  FROM users WHERE id > 0
"""
"""Only positive IDs belong to people: a group with a shared conversation is a user with a negative ID."""


def _person(row: sqlite3.Row) -> Person:
    switches = {name: bool(row[name]) for name in ("opted_out", "wants_notes", "teaches_as_guest")}
    return Person(row["id"], row["name"], row["client_language"], language=row["language"], **switches)


@dataclass(frozen=True, slots=True)
class ListedPerson:
    """A user in a list.

    Attributes:
        answers: The number of answers that the user got.
        rated: The number of answers that the user has rated.
        seen: When the user was last seen.
        blocked: Whether an operator has blocked the user on the web page.
    """

    person: Person
    answers: int
    rated: int
    seen: float
    blocked: bool


class People(Queries):
    """The users and chats in the ledger."""

    @transaction
    def save(self, database: Database, person: Person, chat: Chat, *, update: int | None = None) -> None:
        """Add a user and the chat in which the user wrote, or update their names.

        The language that the user has chosen, if any, is kept.

        Raises:
            UnknownRecord: The sender of `update` was erased in the meantime.
        """
        now = self._clock()
        refuse_closed(database, update)
        database.execute(
            "INSERT INTO users(id, name, client_language, created) VALUES (?, ?, ?, ?)"
            " ON CONFLICT(id) DO UPDATE SET name = excluded.name, client_language = excluded.client_language"
            " WHERE name IS NOT excluded.name OR client_language IS NOT excluded.client_language",
            (person.id, person.name, person.client_language, now),
        )
        database.execute(
            "INSERT INTO chats(id, kind, title, created) VALUES (?, ?, ?, ?)"
            " ON CONFLICT(id) DO UPDATE SET kind = excluded.kind, title = excluded.title"
            " WHERE kind IS NOT excluded.kind OR title IS NOT excluded.title",
            (chat.id, chat.kind, chat.title, now),
        )

    async def get(self, user: int) -> Person | None:
        """Return the user with the Telegram ID `user`, or None if the ledger has no such user."""
        return await self._find(_person, f"SELECT {PERSON} FROM users WHERE id = ?", [user])

    async def get_with_block(self, user: int) -> tuple[Person | None, bool]:
        """Return a user as `get` does, and whether an operator has blocked the user on the web page."""
        (row,) = await self._every(
            f"SELECT {PERSON}, blocks.person IS NOT NULL AS blocked FROM (SELECT ? AS sender)"
            " LEFT JOIN users ON users.id = sender LEFT JOIN blocks ON blocks.person = sender",
            [user],
        )
        return None if row["id"] is None else _person(row), bool(row["blocked"])

    async def newest(self, limit: int = -1) -> list[ListedPerson]:
        """Return all users or, if `limit` is not negative, at most `limit` users, newest first."""
        return await self._list(
            lambda row: ListedPerson(_person(row), row["answers"], row["rated"], row["seen"], bool(row["blocked"])),
            f"{_LISTED} ORDER BY created DESC, id LIMIT ?",
            [limit],
        )

    async def chat(self, chat: int) -> Chat | None:
        """Return the chat with the Telegram ID `chat`, or None if the ledger has no such chat."""
        return await self._find(lambda row: Chat(**row), "SELECT id, kind, title FROM chats WHERE id = ?", [chat])

    async def private_chats(self) -> list[int]:
        """Return the IDs of all private chats, oldest first."""
        return await self._column("SELECT id FROM chats WHERE kind = 'private' ORDER BY created, id")

    @transaction
    def set_language(self, database: Database, user: int, language: str | None) -> None:
        """Store the language that a user has chosen with /language, or None to follow the client's language again."""
        self._set(database, user, "language", language)

    @transaction
    def set_wants_notes(self, database: Database, user: int, wanted: bool) -> None:
        """Store whether a user wants a note when a model trained on the user's votes goes live."""
        self._set(database, user, "wants_notes", wanted)

    @transaction
    def set_opted_out(self, database: Database, user: int, opted_out: bool) -> None:
        """Store whether a user opts out of training.

        Opting out also cancels any run that trains on the user's data, and records that the user's rows must be
        removed from the runs' files.
        """
        self._set(database, user, "opted_out", opted_out)
        if opted_out:
            taught = column(
                database,
                f"{AFFECTED} WHERE shown.asker = ?1"
                # A correction that is no longer confirmed may have been confirmed when a run began.
                " UNION SELECT exchange FROM demonstrations WHERE author = ?1",
                [user],
            )
            withdraw(database, taught)

    @transaction
    def set_teaches_as_guest(self, database: Database, user: int, allowed: bool) -> None:
        """Store whether the bot may learn from a user's questions in chats where it is a guest.

        Withdrawing the permission has the same effects on these questions as opting out.
        """
        self._set(database, user, "teaches_as_guest", allowed)
        if not allowed:
            asked = column(database, f"SELECT id FROM exchanges WHERE asker = ? AND chat = {GUESTS}", [user])
            withdraw(database, asked)

    def _set(self, database: Database, user: int, field: str, value: object) -> None:
        ensure_user(database, user, self._clock())
        database.execute(f"UPDATE users SET {field} = ? WHERE id = ?", (value, user))
