"""Duels: two answers to one question, one by each model in a trial. The user may choose the better one.

One of the answers, the current answer, is recorded as an exchange. The other one, its rival, is stored only
in the duel's row. If the rival is chosen, the two answers change places, so that the conversation continues
with the better one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from storage.base import Queries, first, known, query, transaction
from storage.chat_records import Exchange
from storage.database import Database
from storage.exchanges import exchange_with, record_exchange
from storage.learning_records import EQUAL_TRUST, Trial, Trust
from storage.people import ensure_user

_WON = """
SELECT exchanges.model = :model AS canary
  FROM duels JOIN exchanges ON exchanges.id = duels.exchange
 WHERE duels.better = 1 AND exchanges.id > :after
   AND exchanges.model IN (:model, :live) AND duels.rival_model IN (:model, :live)
   AND duels.chooser NOT IN (SELECT id FROM users WHERE opted_out)
   AND duels.chooser NOT IN (SELECT value FROM json_each(:blocked) UNION SELECT person FROM blocks)
   AND exchanges.chat NOT IN (SELECT value FROM json_each(:blocked))
 ORDER BY duels.id
"""


@dataclass(frozen=True, slots=True)
class Duel:
    """A duel between two answers to one question.

    Attributes:
        exchange: The current answer, which is part of the conversation.
        rival: The other answer.
        better: 1 if one of the answers was chosen (and is now the current answer), 0 if neither was, or
            None before the choice.
    """

    id: int
    exchange: Exchange
    rival: Exchange
    better: int | None = None


class Duels(Queries):
    """The duels in the ledger."""

    @transaction
    def start(self, database: Database, exchange: Exchange, rival: Exchange) -> Duel:
        """Add and return a duel between the recorded answer `exchange` and the answer `rival`."""
        database.execute(
            "INSERT INTO duels(exchange, rival, rival_model, created) VALUES (?, ?, ?, ?)"
            " ON CONFLICT(exchange) DO NOTHING",
            (exchange.id, json.dumps(asdict(rival)), rival.model, self._clock()),
        )
        return _get(database, "exchange", exchange.id)

    @query
    def open(self, database: Database, exchange: int) -> Duel | None:
        """Return the undecided duel whose current answer is `exchange`, or None if there is none."""
        row = first(database, "SELECT id FROM duels WHERE exchange = ? AND better IS NULL", [exchange])
        return None if row is None else _get(database, "id", row["id"])

    async def get(self, duel: int) -> Duel:
        """Return the duel with the ID `duel`.

        Raises:
            UnknownRecord: There is no such duel.
        """
        return await self._read(lambda database: _get(database, "id", duel))

    @transaction
    def choose(self, database: Database, duel: int, chooser: int, choice: int, update: int) -> Duel:
        """Record the choice of the current answer (1), its rival (2) or neither (0); only the first choice counts.

        The chosen answer gets the chooser's 👍. If the rival is chosen, it is recorded as an exchange and takes
        over the messages of the former answer.

        Raises:
            UnknownRecord: The duel, its conversation or the user who asked was deleted.
        """
        now = self._clock()
        found = _get(database, "id", duel)
        if found.better is not None:
            return found
        ensure_user(database, chooser, now)
        standing, rival = found.exchange, found.rival
        if choice == 2:
            standing = record_exchange(database, replace(found.rival, update=update, created=now))
            rival = found.exchange
            database.execute('UPDATE replies SET "update" = ? WHERE "update" = ?', (update, rival.update))
        database.execute(
            "UPDATE duels SET exchange = ?, rival = ?, rival_model = ?, chooser = ?, better = ? WHERE id = ?",
            (standing.id, json.dumps(asdict(rival)), rival.model, chooser, int(choice > 0), duel),
        )
        if choice:
            database.execute(
                'INSERT INTO feedback(exchange, rater, value, "update", created) VALUES (?, ?, 1, ?, ?)',
                (standing.id, chooser, update, now),
            )
        return _get(database, "id", duel)

    async def won(self, trial: Trial, trust: Trust = EQUAL_TRUST) -> list[bool]:
        """Return whether the canary's answer won, for each of a trial's duels that had a winner.

        Duels decided by users who opted out or are blocked, and duels in blocked groups, are left out.
        """
        values = {"after": trial.after, "model": trial.model, "live": trial.live,
                  "blocked": json.dumps(sorted(trust.blocked))}  # fmt: skip
        return await self._list(lambda row: bool(row["canary"]), _WON, values)


def _get(database: Database, column: str, value: int) -> Duel:
    sql = f"SELECT id, exchange, rival, better FROM duels WHERE {column} = ?"
    row = known(first(database, sql, [value]), f"There is no duel {value}: it may have been deleted.")
    rival = json.loads(row["rival"])
    rival |= {name: tuple(rival[name]) for name in ("pictures", "former_pictures")}
    return Duel(row["id"], exchange_with(database, row["exchange"]), Exchange(**rival), row["better"])
