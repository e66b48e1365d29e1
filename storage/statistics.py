"""Queries that count what happened on which day, for who looks after the bot."""

from __future__ import annotations

from storage.queries import Queries, every
from storage.records import Day

_DAYS = """
SELECT date(exchanges.created, 'unixepoch') AS day, exchanges.model AS model,
       count(DISTINCT exchanges.id) AS answers,
       coalesce(sum(ratings.value > 0), 0) AS ups,
       coalesce(sum(ratings.value < 0), 0) AS downs
  FROM exchanges LEFT JOIN ratings ON ratings.exchange = exchanges.id
 WHERE exchanges.created >= ?
 GROUP BY day, model ORDER BY day, min(exchanges.id)
"""


class Statistics(Queries):
    """Counts over time."""

    async def days(self, since: float) -> list[Day]:
        """What each model answered on each day (UTC) from `since` on (UTC seconds), and what became of that: the
        latest vote of each rater, whenever it was cast. Days without answers are left out.
        """
        rows = await self._read(lambda database: every(database, _DAYS, [since]))
        return [Day(**row) for row in rows]
