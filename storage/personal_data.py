"""Counting, erasure and expiry of personal data.

Rows are deleted in one transaction, which also records what has to be removed outside the ledger
(`removals`). A user's updates are found by lane: the lane of an update ends in a colon and the sender's
ID.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

from storage.base import Queries, column, first, number, transaction
from storage.database import Database
from storage.inbox import ANONYMOUS_LANE
from storage.pending_removals import Removal, RemovalKind, add_removals, finish_removals
from storage.run_selections import AFFECTED, cancel_learning

_IDS = "(SELECT value FROM json_each(?))"
_SENT = (
    "SELECT sha256 FROM picture_senders WHERE sender = ?1"
    " AND sha256 NOT IN (SELECT sha256 FROM picture_senders WHERE sender <> ?1)"
)
"""Pictures that no one else sent."""

_SHOWING = (
    "SELECT id FROM exchanges WHERE asker = ?1 AND id IN (SELECT exchange FROM exchange_pictures)"
    f" UNION SELECT exchange FROM exchange_pictures WHERE sha256 IN ({_SENT})"
)
_THEIR_EXCHANGES = (
    "SELECT id FROM exchanges WHERE asker = ?1 UNION SELECT later.id FROM exchanges AS later"
    f" JOIN exchanges AS shown ON shown.session = later.session AND shown.id <= later.id WHERE shown.id IN ({_SHOWING})"
    " AND NOT EXISTS (SELECT 1 FROM exchange_pictures JOIN exchanges AS since ON since.id = exchange"
    " WHERE since.session = later.session AND since.id > shown.id AND since.id <= later.id)"
)
"""The user's exchanges, and exchanges of other users in a group that would lose the picture they are about."""
_AFFECTED = f"{AFFECTED} WHERE shown.id IN {_IDS}"

_THEIR_SESSIONS = "SELECT id FROM sessions WHERE user = ?1 UNION SELECT session FROM exchanges WHERE asker = ?1"

_UNREFERENCED = (
    "SELECT value FROM json_each(?) WHERE value NOT IN (SELECT sha256 FROM exchange_pictures)"
    " AND value NOT IN (SELECT sha256 FROM picture_senders)"
)
_OLD = (
    "SELECT id FROM exchanges WHERE created < ?1 AND NOT EXISTS (SELECT 1 FROM exchanges AS later"
    " WHERE later.session = exchanges.session AND later.id >= exchanges.id"
    " AND (later.created >= ?1 OR EXISTS (SELECT 1 FROM feedback WHERE exchange = later.id)"
    " OR EXISTS (SELECT 1 FROM demonstrations WHERE exchange = later.id)"
    " OR EXISTS (SELECT 1 FROM reviews WHERE exchange = later.id AND decision = 'edit' AND id >"
    " (SELECT coalesce(max(id), 0) FROM reviews WHERE exchange = later.id AND decision = 'undo'))))"
)
_UNUSED_PICTURES = (
    "SELECT sha256 FROM pictures WHERE created < ?1 AND sha256 NOT IN (SELECT sha256 FROM exchange_pictures)"
    " AND sha256 NOT IN (SELECT sha256 FROM picture_senders WHERE created >= ?1)"
)


@dataclass(frozen=True, slots=True)
class PersonalDataSummary:
    """The amount of data that is stored about a user.

    Attributes:
        exchanges: The number of questions with their answers.
        pictures: The number of pictures that only this user sent.
        votes: The number of votes ever cast, including superseded ones.
        corrections: The number of corrections.
        rows: The number of rows in the data sets of runs.
    """

    exchanges: int
    pictures: int
    votes: int
    corrections: int
    rows: int

    def __bool__(self) -> bool:
        return any((self.exchanges, self.pictures, self.votes, self.corrections, self.rows))


class PersonalData(Queries):
    """Erasure and expiry of personal data, and removals outside the ledger."""

    async def count(self, user: int) -> PersonalDataSummary:
        """Return the amount of a user's data that `erase` would delete."""
        return await self._read(lambda database: _summary(database, user))

    @transaction
    def erase(self, database: Database, user: int, *, during: int | None = None) -> PersonalDataSummary:
        """Delete all of a user's data and return how much was deleted.

        The data comprises the user's questions with the answers and all votes on them, the user's own votes, sessions,
        updates and name, and the pictures that no other user sent. Any run that trains on the data is cancelled.
        If the user opted out, the user's ID is kept, so that the opt-out also covers any later data.

        If this method is called while an update is being handled, `during` is the ID of the update, which is
        left for its handler to finish. The user's other waiting updates are closed without being handled.
        """
        now = self._clock()
        gone = _summary(database, user)
        pictures = column(database, _SENT, [user])
        sessions = column(database, _THEIR_SESSIONS, [user])
        add_removals(database, RemovalKind.SESSION, sessions)
        _delete_exchanges(database, column(database, _THEIR_EXCHANGES, [user]))
        withdraw(database, column(database, "SELECT DISTINCT exchange FROM demonstrations WHERE author = ?", [user]))
        named = "UPDATE models SET changed_by = '' WHERE changed_by = (SELECT name FROM users WHERE id = ?)"
        database.execute(named, [user])
        opted_out = first(database, "SELECT 1 FROM users WHERE id = ? AND opted_out", [user]) is not None
        database.execute("DELETE FROM users WHERE id = ?", [user])  # the rest is deleted by cascade
        if opted_out:
            database.execute("INSERT INTO users(id, created, opted_out) VALUES (?, ?, 1)", (user, now))
        database.execute("DELETE FROM chats WHERE id = ? AND kind = 'private'", [user])
        database.execute("DELETE FROM model_buttons WHERE chat = ?", [user])
        database.execute("UPDATE runs SET requested_by = NULL WHERE requested_by = ?", [user])
        database.execute('UPDATE promotions SET "by" = NULL WHERE "by" = ?', [user])
        _delete_pictures(database, pictures)
        _delete_updates(database, user, during, now)
        add_removals(database, RemovalKind.LOG, [""])
        return gone

    @transaction
    def expire(self, database: Database, before: float) -> int:
        """Delete unrated exchanges older than the time `before`, and return the number deleted.

        Old dead letters, and old pictures that nothing else needs, are deleted too. In each conversation, everything
        is kept up to and including the last exchange that is newer than `before` or has a vote, a correction or an
        operator's edit.
        """
        old = column(database, _OLD, [before])
        _delete_exchanges(database, old)
        pictures = column(database, _UNUSED_PICTURES, [before])
        _delete_pictures(database, pictures)
        sql = "DELETE FROM inbox WHERE state = 'aside' AND received < ?"
        dead_letters = database.execute(sql, [before]).rowcount
        if old or pictures or dead_letters:
            add_removals(database, RemovalKind.LOG, [""])
        return len(old)

    async def pending_removals(self) -> list[Removal]:
        """Return the removals outside the ledger that are still due."""
        return await self._list(
            lambda row: Removal(RemovalKind(row["kind"]), row["name"]),
            "SELECT kind, name FROM removals ORDER BY kind, name",
        )

    @transaction
    def remove_picture(self, database: Database, sha256: str, remove: Callable[[], object]) -> bool:
        """Call `remove`, which deletes the picture's file, and mark the removal as done.

        `remove` runs inside the transaction. If another process adds the picture before the transaction, the
        file is therefore kept; if it does so afterwards, it finds that the file is gone. `remove` may be called
        twice.

        Returns:
            False if `remove` was not called because the picture was sent again in the meantime, otherwise True.
        """
        known = first(database, "SELECT 1 FROM pictures WHERE sha256 = ?", [sha256]) is not None
        if not known:
            remove()
        finish_removals(database, [Removal(RemovalKind.PICTURE, sha256)])
        return not known

    @transaction
    def finish_removals(self, database: Database, removals: Collection[Removal]) -> None:
        """Mark removals as done."""
        finish_removals(database, removals)


def _summary(database: Database, user: int) -> PersonalDataSummary:
    exchanges = column(database, _THEIR_EXCHANGES, [user])
    return PersonalDataSummary(
        exchanges=len(exchanges),
        pictures=len(column(database, _SENT, [user])),
        votes=number(database, "SELECT count(*) FROM feedback WHERE rater = ?", [user]),
        corrections=number(database, "SELECT count(*) FROM demonstrations WHERE author = ?", [user]),
        rows=number(
            database,
            f"SELECT count(*) FROM run_selections WHERE exchange IN ({_AFFECTED})"
            " OR exchange IN (SELECT exchange FROM demonstrations WHERE author = ?)",
            [json.dumps(exchanges), user],
        ),
    )


def _delete_exchanges(database: Database, exchanges: list[int]) -> None:
    """Delete exchanges with their votes, and record what must be removed outside the ledger.

    Imported pictures, which no user sent, are deleted too if no other exchange shows them.
    """
    ids = json.dumps(exchanges)
    withdraw(database, column(database, _AFFECTED, [ids]))
    shown = column(database, f"SELECT DISTINCT sha256 FROM exchange_pictures WHERE exchange IN {_IDS}", [ids])
    database.execute(f"DELETE FROM exchanges WHERE id IN {_IDS}", [ids])
    _delete_pictures(database, column(database, _UNREFERENCED, [json.dumps(shown)]))


def withdraw(database: Database, exchanges: list[int]) -> None:
    """Withdraw exchanges from training.

    Any run that uses one of the exchanges is cancelled. The exchanges' rows in the files of runs are
    recorded as due for removal.
    """
    cancel_learning(database, exchanges)
    taught = f"SELECT DISTINCT exchange FROM run_selections WHERE exchange IN {_IDS}"
    add_removals(database, RemovalKind.ROW, column(database, taught, [json.dumps(exchanges)]))
    database.execute(f"DELETE FROM run_selections WHERE exchange IN {_IDS}", [json.dumps(exchanges)])


def _delete_pictures(database: Database, pictures: list[str]) -> None:
    """Delete the rows of pictures that no exchange shows any more, and record that their files must be removed."""
    names = json.dumps(pictures)
    database.execute(f"DELETE FROM pictures WHERE sha256 IN {_IDS}", [names])
    add_removals(database, RemovalKind.PICTURE, pictures)


def _delete_updates(database: Database, user: int, during: int | None, now: float) -> None:
    """Delete a user's handled updates and the replies to them, and close the user's waiting updates.

    A running bot may be handling a waiting update, and must find it closed even after a second erasure. The
    rows of waiting updates are therefore kept, but without the payload or anything else that identifies the
    user. The update `during` is not closed.
    """
    lanes = f"*:{user}"
    over = "SELECT id FROM inbox WHERE lane GLOB ? AND state IN ('done', 'aside')"
    database.execute(f'DELETE FROM replies WHERE "update" IN ({over})', [lanes])
    database.execute(f"DELETE FROM inbox WHERE id IN ({over})", [lanes])
    database.execute('DELETE FROM replies WHERE chat = ? AND "update" NOT IN (SELECT id FROM inbox)', [user])
    database.execute(
        "UPDATE inbox SET state = 'done', payload = '', finished = ?"
        " WHERE lane GLOB ? AND state IN ('stored', 'begun') AND id IS NOT ?",
        (now, lanes, during),
    )
    database.execute("UPDATE inbox SET lane = ? WHERE lane GLOB ?", (ANONYMOUS_LANE, lanes))
