"""Users whose votes helped train the live model and who want to be notified about it once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, islice

from storage.base import Queries, every, query
from storage.chat_records import Exchange
from storage.database import Database
from storage.exchanges import exchange_with
from storage.learning_records import Model

_EXAMPLES = 5

_WAITING = """
SELECT ratings.rater AS person, exchanges.id AS exchange
  FROM run_selections JOIN exchanges ON exchanges.id = run_selections.exchange
       JOIN ratings ON ratings.exchange = exchanges.id AND ratings.value > 0 AND ratings.rater = exchanges.asker
       JOIN users ON users.id = ratings.rater AND users.wants_notes AND NOT users.opted_out
 WHERE run_selections.run = ? AND run_selections.split = 'train' AND exchanges.chat = ratings.rater
   AND ratings.rater NOT IN (SELECT person FROM teacher_notes WHERE model = ?)
 ORDER BY ratings.rater, exchanges.id DESC
"""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A user whose votes helped train a model, with the newest answers they liked in their private chat."""

    person: int
    exchanges: tuple[Exchange, ...]


class Teachers(Queries):
    """Queries for users whose votes helped train a model."""

    @query
    def waiting(self, database: Database, model: Model) -> list[Teacher]:
        """Return the users who helped train `model`, want a note about it, and have not received one."""
        rows = every(database, _WAITING, [model.run, model.id])
        liked = groupby(rows, key=lambda row: int(row["person"]))
        return [
            Teacher(person, tuple(exchange_with(database, row["exchange"]) for row in islice(answers, _EXAMPLES)))
            for person, answers in liked
        ]

    async def note(self, model: Model, person: int) -> None:
        """Record that the user `person` is being sent a note about `model`.

        The user is never sent a second note about the model, even if the first one is not delivered.
        """
        await self._execute(
            "INSERT INTO teacher_notes(model, person, created) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (model.id, person, self._clock()),
        )
