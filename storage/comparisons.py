"""Blind comparisons: two models' answers to one question, of which an operator chooses the better one.

Only the first question about a picture in a conversation is used, and only if it is about that picture alone.
The models answer it without the turns before it. A comparison is deleted along with its exchange. A pair of
models is stored in the order of their IDs.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from storage.base import Queries, find, known, transaction
from storage.blocklist import BLOCKED
from storage.database import Database
from storage.guests import UNLEARNED
from storage.learning_records import EQUAL_TRUST, Trust
from storage.translatable_reason import Reason

_SELECT = "SELECT id, exchange, first, second, first_answer, second_answer, swapped, choice FROM comparisons"
_PAIR = "first = :first AND second = :second"
_NEW_QUESTIONS = f"""
SELECT exchange, question, sha256 FROM (
    SELECT max(exchanges.id) AS exchange, exchanges.question AS question, pictures.sha256 AS sha256
      FROM exchanges JOIN exchange_pictures ON exchange_pictures.exchange = exchanges.id
      JOIN pictures ON pictures.sha256 = exchange_pictures.sha256 AND pictures.state = 'clean'
     WHERE NOT EXISTS (SELECT 1 FROM exchanges AS before
                        JOIN exchange_pictures AS shown ON shown.exchange = before.id
                        WHERE before.session = exchanges.session AND before.id < exchanges.id
                          AND shown.sha256 = pictures.sha256)
       AND (SELECT count(*) FROM exchange_pictures WHERE exchange = exchanges.id) = 1
       AND exchanges.asker NOT IN (SELECT id FROM users WHERE opted_out)
       AND exchanges.id NOT IN ({UNLEARNED})
       AND exchanges.asker NOT IN (SELECT value FROM json_each(:blocked) UNION {BLOCKED})
       AND exchanges.chat NOT IN (SELECT value FROM json_each(:blocked))
     GROUP BY pictures.sha256)
 WHERE exchange NOT IN (SELECT exchange FROM comparisons WHERE {_PAIR})
 ORDER BY exchange DESC LIMIT :limit
"""
"""With max(), SQLite takes the other columns from the row with the maximum: https://www.sqlite.org/quirks.html"""


@dataclass(frozen=True, slots=True)
class PictureQuestion:
    """A question about a picture: the exchange, the question and the SHA-256 of the picture."""

    exchange: int
    question: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to the question of an exchange.

    Attributes:
        first: The model ID that sorts first.
        second: The other model ID.
        swapped: Whether the answer of `second` is shown first.
        choice: 1 if the answer of `first` is better, 2 if that of `second` is, 0 if they are equally good, or
            None before the choice.
    """

    id: int
    exchange: int
    first: str
    second: str
    first_answer: str
    second_answer: str
    swapped: bool
    choice: int | None = None

    @property
    def shown(self) -> tuple[str, str]:
        """The two answers in the order in which they are shown."""
        answers = (self.first_answer, self.second_answer)
        return (answers[1], answers[0]) if self.swapped else answers


@dataclass(frozen=True, slots=True)
class Score:
    """The score of two models.

    Attributes:
        first: The number of comparisons won by the model whose ID sorts first.
        second: The number of comparisons won by the other model.
        same: The number of comparisons in which both answers were equally good.
        open: The number of comparisons without a choice.
    """

    first: int = 0
    second: int = 0
    same: int = 0
    open: int = 0


class Comparisons(Queries):
    """The blind comparisons in the ledger."""

    async def new_questions(
        self, first: str, second: str, limit: int, trust: Trust = EQUAL_TRUST
    ) -> list[PictureQuestion]:
        """Return the newest questions that two models have not been compared on, at most one for each picture.

        Questions of people who opted out or are blocked, and those of blocked groups, are left out.
        """
        values = {**_pair(first, second), "limit": limit, "blocked": json.dumps(sorted(trust.blocked))}
        return await self._list(lambda row: PictureQuestion(**row), _NEW_QUESTIONS, values)

    @transaction
    def add(self, database: Database, comparisons: Sequence[Comparison]) -> None:
        """Add comparisons, ignoring their IDs and skipping those whose exchange was erased in the meantime."""
        now = self._clock()
        for each in comparisons:
            values = asdict(each) | {"now": now}
            database.execute(
                "INSERT INTO comparisons(exchange, first, second, first_answer, second_answer, swapped, choice,"
                " created) SELECT :exchange, :first, :second, :first_answer, :second_answer, :swapped, :choice,"
                " :now WHERE EXISTS (SELECT 1 FROM exchanges WHERE id = :exchange) ON CONFLICT DO NOTHING",
                values,
            )

    async def undecided(self, first: str, second: str) -> Comparison | None:
        """Return the oldest comparison of two models without a choice, or None if there is none."""
        sql = f"{_SELECT} WHERE {_PAIR} AND choice IS NULL ORDER BY id LIMIT 1"
        return await self._find(_comparison, sql, _pair(first, second))

    @transaction
    def choose(self, database: Database, comparison: int, shown: int, reviewer: str) -> Comparison:
        """Record which of the answers, as shown, is better (1 or 2), or neither (0); only the first choice counts.

        Raises:
            UnknownRecord: There is no such comparison.
        """
        found = _get(database, comparison)
        if found.choice is None:
            choice = 3 - shown if found.swapped and shown else shown
            values = {"choice": choice, "reviewer": reviewer}
            database.table("comparisons").update(comparison, values)
        return _get(database, comparison)

    async def score(self, first: str, second: str) -> Score:
        """Return the score of two models, given in either order."""
        (row,) = await self._every(
            "SELECT coalesce(sum(choice = 1), 0) AS first, coalesce(sum(choice = 2), 0) AS second,"
            f" coalesce(sum(choice = 0), 0) AS same, count(*) - count(choice) AS open FROM comparisons WHERE {_PAIR}",
            _pair(first, second),
        )
        return Score(**row)

    async def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of models that have been compared, latest first."""
        rows = await self._every("SELECT first, second FROM comparisons GROUP BY first, second ORDER BY max(id) DESC")
        return [(row["first"], row["second"]) for row in rows]


def _pair(first: str, second: str) -> dict[str, object]:
    return {"first": min(first, second), "second": max(first, second)}


def _get(database: Database, comparison: int) -> Comparison:
    found = find(_comparison, database, f"{_SELECT} WHERE id = ?", [comparison])
    return known(found, Reason("There is no comparison {number}: it may have been deleted.", number=comparison))


def _comparison(row: sqlite3.Row) -> Comparison:
    values = dict(row)
    return Comparison(**values | {"swapped": bool(values["swapped"])})
