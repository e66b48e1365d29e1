"""Statistics about the activity of users and models, for the operator."""

from __future__ import annotations

from dataclasses import dataclass

from storage.base import Queries

_TOTALS = """
SELECT (SELECT count(*) FROM users WHERE id > 0) AS users,
       (SELECT count(*) FROM chats) AS chats,
       (SELECT count(*) FROM sessions) AS sessions,
       (SELECT count(*) FROM exchanges) AS exchanges,
       (SELECT count(*) FROM pictures) AS pictures,
       (SELECT count(*) FROM feedback) AS votes,
       (SELECT count(*) FROM ratings WHERE value > 0) AS ups,
       (SELECT count(*) FROM ratings WHERE value < 0) AS downs,
       (SELECT count(*) FROM runs) AS runs,
       (SELECT count(*) FROM runs WHERE state = 'failed') AS runs_failed,
       (SELECT count(*) FROM models) AS models,
       (SELECT count(*) FROM inbox WHERE state IN ('stored', 'begun')) AS updates_pending,
       (SELECT count(*) FROM inbox WHERE state = 'aside') AS updates_set_aside,
       (SELECT coalesce(sum(doubtful), 0) FROM replies WHERE doubtful > 0) AS replies_doubtful
"""

_DAYS = """
SELECT date(exchanges.created, 'unixepoch') AS day, exchanges.model AS model,
       count(DISTINCT exchanges.id) AS answers,
       coalesce(sum(ratings.value > 0), 0) AS ups,
       coalesce(sum(ratings.value < 0), 0) AS downs
  FROM exchanges LEFT JOIN ratings ON ratings.exchange = exchanges.id
 WHERE exchanges.created >= ?
 GROUP BY day, model ORDER BY day, min(exchanges.id)
"""

_APPROVALS = """
SELECT exchanges.model AS model, sum(ratings.value > 0) AS ups, sum(ratings.value < 0) AS downs
  FROM ratings JOIN exchanges ON exchanges.id = ratings.exchange
 WHERE ratings.rater NOT IN (SELECT id FROM users WHERE opted_out)
 GROUP BY exchanges.model
"""

_VOTES_PER_DAY = """
SELECT exchanges.model AS model, date(ratings.created, 'unixepoch') AS day,
       sum(ratings.value > 0) AS ups, sum(ratings.value < 0) AS downs
  FROM ratings JOIN exchanges ON exchanges.id = ratings.exchange
 WHERE ratings.value <> 0 AND ratings.rater NOT IN (SELECT id FROM users WHERE opted_out)
 GROUP BY exchanges.model, day ORDER BY day
"""


@dataclass(frozen=True, slots=True)
class Day:
    """The number of answers that one model gave on one day, and of the votes on these answers.

    Attributes:
        day: The UTC date in ISO format.
    """

    day: str
    model: str
    answers: int
    ups: int
    downs: int


@dataclass(frozen=True, slots=True)
class Approval:
    """Counts of the votes for and against a model's answers.

    Only the latest vote of each rater on each answer counts. Votes by users who opted out of training are
    excluded.
    """

    ups: int = 0
    downs: int = 0

    @property
    def votes(self) -> int:
        """The number of votes."""
        return self.ups + self.downs

    @property
    def share(self) -> float:
        """The share of thumbs up among the votes, from 0 to 1.

        Raises:
            ZeroDivisionError: There are no votes.
        """
        return self.ups / self.votes


class Counts(Queries):
    """Queries for totals and for counts by day and model."""

    async def totals(self) -> dict[str, int]:
        """Return the number of rows of each kind, for status and metrics.

        The entry `votes` counts all votes ever cast; `ups` and `downs` count only each rater's latest vote on
        each answer.
        """
        (row,) = await self._every(_TOTALS)
        return dict(row)

    async def days(self, since: float) -> list[Day]:
        """Return counts of answers and the votes on them for each model and UTC day.

        Answers given before the time `since` (UTC seconds since the epoch) are ignored, and days without answers
        are left out. Each rater's latest vote on an answer counts, whenever it was cast.
        """
        return await self._list(lambda row: Day(**row), _DAYS, [since])

    async def approvals(self) -> dict[str, Approval]:
        """Return the approval of each model by model ID, leaving out models without votes."""
        rows = await self._every(_APPROVALS)
        return {row["model"]: Approval(row["ups"], row["downs"]) for row in rows}

    async def votes_per_day(self) -> dict[str, dict[str, Approval]]:
        """Return the votes on each model's answers by model ID and UTC day (ISO format), in chronological order.

        The day is that of the vote. `approvals` returns the sums over all days.
        """
        found: dict[str, dict[str, Approval]] = {}
        for row in await self._every(_VOTES_PER_DAY):
            found.setdefault(row["model"], {})[row["day"]] = Approval(row["ups"], row["downs"])
        return found
