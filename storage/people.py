"""Queries about who talks where: users, chats, and the sessions (conversations) they have.

A session belongs to one user in one chat and one forum topic; /new closes it and opens the next. A group that has one
together is a user itself then, under its own id, which is negative.
"""

from __future__ import annotations

from sqlite_utils import Database

from storage.base import Queries, every
from storage.chat_records import Chat, Person
from storage.inbox import refuse_closed
from storage.personal_data import withdraw
from storage.runs import AFFECTED


def ensure_user(database: Database, user: int, now: float) -> None:
    """Give `user` an empty row unless there is one, so that what they did can refer to it."""
    database.execute("INSERT INTO users(id, created) VALUES (?, ?) ON CONFLICT(id) DO NOTHING", (user, now))


def ensure_chat(database: Database, chat: int, now: float) -> None:
    """Give `chat` an empty row unless there is one."""
    database.execute("INSERT INTO chats(id, created) VALUES (?, ?) ON CONFLICT(id) DO NOTHING", (chat, now))


class People(Queries):
    """Users, chats, sessions."""

    async def save(self, person: Person, chat: Chat, *, update: int | None = None) -> None:
        """Note who wrote and where: new rows, or changed names. A chosen language stays as it is.

        Raises `UnknownRecord` when who sent `update` was forgotten meanwhile.
        """
        now = self._now()

        def work(database: Database) -> None:
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

        await self._write(work)

    async def get(self, user: int) -> Person | None:
        """The user with this Telegram id, None if never seen."""
        row = await self._first("SELECT id, name, client_language, language, opted_out FROM users WHERE id = ?", [user])
        return None if row is None else Person(**{**dict(row), "opted_out": bool(row["opted_out"])})

    async def chat(self, chat: int) -> Chat | None:
        """The chat with this Telegram id, None if never seen."""
        row = await self._first("SELECT id, kind, title FROM chats WHERE id = ?", [chat])
        return None if row is None else Chat(**row)

    async def private_chats(self) -> list[int]:
        """The ids of all private chats, oldest first: where a broadcast goes."""
        return await self._read(
            lambda database: [
                row["id"]
                for row in database.execute("SELECT id FROM chats WHERE kind = 'private' ORDER BY created, id")
            ]
        )

    async def set_language(self, user: int, language: str | None) -> None:
        """Remember what a person chose with /language; None follows their client again."""
        now = self._now()

        def work(database: Database) -> None:
            ensure_user(database, user, now)
            database.execute("UPDATE users SET language = ? WHERE id = ?", (language, user))

        await self._write(work)

    async def set_opted_out(self, user: int, opted_out: bool) -> None:
        """Remember whether a person wants not to be learned from.

        Where they do not, a run that learns from them is to be cancelled, and their rows leave the files of runs.
        """
        now = self._now()

        def work(database: Database) -> None:
            ensure_user(database, user, now)
            database.execute("UPDATE users SET opted_out = ? WHERE id = ?", (int(opted_out), user))
            if opted_out:
                taught = every(
                    database,
                    f"{AFFECTED} WHERE shown.asker = ?1"
                    # One that was taken back may have been confirmed when a run began.
                    " UNION SELECT exchange FROM demonstrations WHERE author = ?1",
                    [user],
                )
                withdraw(database, [row["id"] for row in taught])

        await self._write(work)
