"""Exchanges: questions with their answers, and the data that produced the answers."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import fields, replace

from storage.base import Queries, find, first, insert, known, transaction
from storage.chat_records import Exchange
from storage.database import Database
from storage.errors import StorageError, UnknownRecord
from storage.inbox import refuse_closed
from storage.people import ensure_chat, ensure_user

_COLUMNS = [each.name for each in fields(Exchange) if each.name not in ("pictures", "former_pictures")]
SELECT_EXCHANGES = "SELECT {}, {}, {} FROM exchanges".format(
    ", ".join(f'exchanges."{name}"' for name in _COLUMNS),
    "(SELECT json_group_array(sha256) FROM (SELECT sha256 FROM exchange_pictures"
    " WHERE exchange = exchanges.id ORDER BY position)) AS pictures",
    "(SELECT json_group_array(name) FROM (SELECT coalesce(former, sha256) AS name FROM exchange_pictures"
    " WHERE exchange = exchanges.id ORDER BY position)) AS former_pictures",
)
"""The start of every query whose rows are passed to `exchange_of`; WHERE and ORDER BY follow."""

_STANDING = (
    "SELECT max(id) AS id, coalesce(replaces, id) AS place FROM exchanges WHERE session = :session"
    " AND (:before IS NULL OR coalesce(replaces, id) < :before) GROUP BY place"
)
"""The newest exchange at each position of a session."""

_PICTURED = "EXISTS (SELECT 1 FROM exchange_pictures WHERE exchange = {})"


def exchange_of(row: sqlite3.Row) -> Exchange:
    """Return the exchange stored in a row of a `SELECT_EXCHANGES` query."""
    values = dict(row)
    pictures, former_pictures = (tuple(json.loads(values[name])) for name in ("pictures", "former_pictures"))
    values |= {"pictures": pictures, "former_pictures": () if former_pictures == pictures else former_pictures}
    return Exchange(**values)


class Exchanges(Queries):
    """Queries for exchanges and conversation histories."""

    @transaction
    def record(self, database: Database, exchange: Exchange) -> Exchange:
        """Record a question with its answer, and return the exchange with its ID and time.

        If the update already has an exchange, the existing exchange is returned.

        Raises:
            UnknownRecord: The session, the user who asked or the replaced exchange was deleted in the meantime.
            StorageError: A picture is unknown.
        """
        return record_exchange(database, replace(exchange, created=exchange.created or self._clock()))

    async def get(self, exchange: int) -> Exchange:
        """Return the exchange with the ID `exchange`.

        Raises:
            UnknownRecord: There is no such exchange.
        """
        return await self._read(lambda database: exchange_with(database, exchange))

    async def for_update(self, update: int) -> Exchange | None:
        """Return the exchange that answered an update, or None if the update has not been answered."""
        return await self._find(exchange_of, f'{SELECT_EXCHANGES} WHERE "update" = ?', [update])

    async def for_question(self, chat: int, question: int) -> Exchange | None:
        """Return the newest exchange that answers a user's message, or None if there is none."""
        return await self._replied(chat, "question", question)

    async def for_message(self, chat: int, message: int) -> Exchange | None:
        """Return the exchange whose answer is shown in a message from the bot, or None if there is none."""
        return await self._replied(chat, "message", message)

    async def for_correction_prompt(self, chat: int, message: int) -> Exchange | None:
        """Return the exchange for which a message from the bot requests a correction, or None if it requests none."""
        return await self._find(
            exchange_of,
            f'{SELECT_EXCHANGES} WHERE "update" IN (SELECT shown."update" FROM replies AS asks'
            " JOIN replies AS shown ON shown.chat = asks.chat AND shown.message = asks.question"
            ' WHERE asks.chat = ? AND asks.message = ? AND asks."update" NOT IN (SELECT "update" FROM exchanges))'
            " ORDER BY id DESC LIMIT 1",
            (chat, message),
        )

    async def _replied(self, chat: int, column: str, value: int) -> Exchange | None:
        return await self._find(
            exchange_of,
            f'{SELECT_EXCHANGES} WHERE "update" IN (SELECT "update" FROM replies WHERE chat = ? AND {column} = ?)'
            " ORDER BY id DESC LIMIT 1",
            (chat, value),
        )

    async def newest_at(self, place: int) -> int | None:
        """Return the ID of the newest exchange at a position in a conversation, or None if it was deleted.

        The position is given by `place`, the ID of the first exchange there.
        """
        return await self._find(
            lambda row: row["id"], "SELECT max(id) AS id FROM exchanges WHERE id = ?1 OR replaces = ?1", [place]
        )

    async def history(self, session: int, limit: int, before: int | None = None) -> list[Exchange]:
        """Return the last `limit` exchanges of a session, in the order of the conversation.

        Only the newest exchange at each position is included. If `before` is given, the exchanges at that
        position and later ones are left out.
        """
        newest_first = await self._list(
            exchange_of,
            f"{SELECT_EXCHANGES} WHERE id IN (SELECT id FROM ({_STANDING}))"
            " ORDER BY coalesce(replaces, id) DESC LIMIT :limit",
            {"session": session, "limit": limit, "before": before},
        )
        return newest_first[::-1]

    async def history_since(self, session: int, pictures: int, before: int | None = None) -> list[Exchange]:
        """Return a session's history, starting at the `pictures`-th newest exchange that has pictures.

        If fewer exchanges have pictures, the history starts at the oldest of them; if none has any, the history
        is empty. If `before` is given, the exchanges at that position and later ones are left out.
        """
        return await self._list(
            exchange_of,
            f"WITH standing AS MATERIALIZED ({_STANDING}),"
            f" shown AS (SELECT place FROM standing WHERE {_PICTURED.format('standing.id')}"
            " ORDER BY place DESC LIMIT :pictures)"
            f" {SELECT_EXCHANGES} WHERE id IN"
            " (SELECT id FROM standing WHERE place >= (SELECT min(place) FROM shown))"
            " ORDER BY coalesce(replaces, id)",
            {"session": session, "pictures": pictures, "before": before},
        )

    async def has_pictures(self, session: int) -> bool:
        """Return whether any exchange of a session has pictures."""
        sql = f"SELECT EXISTS (SELECT 1 FROM exchanges WHERE session = ? AND {_PICTURED.format('exchanges.id')})"
        return bool(await self._number(sql, [session]))


def exchange_with(database: Database, exchange: int) -> Exchange:
    """Return the exchange with the ID `exchange`.

    Raises:
        UnknownRecord: There is no such exchange.
    """
    found = find(exchange_of, database, f"{SELECT_EXCHANGES} WHERE id = ?", [exchange])
    return known(found, f"The database has no exchange {exchange}: it may have been deleted.")


def record_exchange(database: Database, made: Exchange) -> Exchange:
    """Record an exchange; see `Exchanges.record` for the result and the errors."""
    recorded = find(exchange_of, database, f'{SELECT_EXCHANGES} WHERE "update" = ?', [made.update])
    if recorded is not None:
        return recorded
    if first(database, "SELECT 1 FROM sessions WHERE id = ?", [made.session]) is None:
        raise UnknownRecord(f"The database has no session {made.session}: it may have been deleted.")
    refuse_closed(database, made.update)
    if made.replaces is not None:
        exchange_with(database, made.replaces)
    ensure_user(database, made.asker, made.created)
    ensure_chat(database, made.chat, made.created)
    try:
        added = insert(database, "exchanges", {name: getattr(made, name) for name in _COLUMNS})
        for position, sha256 in enumerate(made.pictures):
            database.execute(
                "INSERT INTO exchange_pictures(exchange, position, sha256) VALUES (?, ?, ?)", (added, position, sha256)
            )
    except sqlite3.IntegrityError as error:
        raise StorageError(
            f"The exchange for update {made.update} refers to a picture that is not in the database:"
            f" add it first ({error})."
        ) from error
    return replace(made, id=added)
