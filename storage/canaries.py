"""Canaries: models tried alongside the live model on a share of the conversations.

The ledger also records how each trial ended.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, fields

from storage.base import Queries, find, insert, known, number, transaction
from storage.database import Database
from storage.errors import IllegalTransition
from storage.learning_records import EQUAL_TRUST, Actor, Trial, Trust
from storage.models import get_model, live_model, move_model
from storage.state_machines import ModelState, Verdict
from storage.translatable_reason import Reason, stored, stored_parts

REPLACED = Reason("another model was promoted during its trial")

_SELECT = f"SELECT {', '.join(each.name for each in fields(Trial))}, reason_parts FROM canaries"
_AFTERWARDS = {Verdict.ROLLED_BACK: ModelState.REJECTED, Verdict.STOPPED: ModelState.REJECTED,
               Verdict.VOID: ModelState.CANDIDATE}  # fmt: skip

# With max(), SQLite takes the other columns from the row with the maximum: https://www.sqlite.org/quirks.html
_VOTES = """
SELECT rater, model, value FROM (
    SELECT feedback.rater, exchanges.model, feedback.value, max(feedback.id) AS newest
      FROM exchanges JOIN feedback ON feedback.exchange = exchanges.id
     WHERE exchanges.id > :after AND exchanges.model IN (:model, :live)
       AND exchanges.id NOT IN (SELECT exchange FROM duels WHERE better = 1)
       AND feedback.rater NOT IN (SELECT id FROM users WHERE opted_out)
       AND feedback.rater NOT IN (SELECT value FROM json_each(:blocked) UNION SELECT person FROM blocks)
       AND exchanges.chat NOT IN (SELECT value FROM json_each(:blocked))
     GROUP BY feedback.exchange, feedback.rater)
 WHERE value <> 0 ORDER BY newest
"""


@dataclass(frozen=True, slots=True)
class TrialVote:
    """A vote on an answer that was given after a trial began.

    Attributes:
        canary: Whether the canary, rather than the live model, gave the answer.
        liked: Whether the vote is a thumbs up.
    """

    rater: int
    canary: bool
    liked: bool


class Canaries(Queries):
    """The trials of canaries, of which at most one is running at a time."""

    @transaction
    def start(self, database: Database, model: str, share: float, by: Actor | None = None) -> Trial:
        """Begin a trial of the candidate `model` alongside the live model on `share` (0 to 1) of the conversations.

        `by` is the admin who approved the model, if approval was required.

        Raises:
            UnknownRecord: There is no such model.
            IllegalTransition: Another trial is running, no model is live, or `model` is not a candidate.
        """
        if (other := running_trial(database)) is not None:
            raise IllegalTransition(f"The trial of {other.model} is still running: stop or promote it first.")
        live, candidate = live_model(database), get_model(database, model)
        if live is None:
            raise IllegalTransition(f"There is no live model to compare {model} with.")
        move_model(database, candidate, ModelState.CANARY, "", by)
        after = number(database, "SELECT coalesce(max(id), 0) FROM exchanges")
        row = {"model": model, "live": live.id, "run": candidate.run, "share": share, "started": self._clock()}
        return _get(database, insert(database, "canaries", row | {"after": after}))

    async def running(self) -> Trial | None:
        """Return the running trial, or None if there is none."""
        return await self._read(running_trial)

    async def latest(self, model: str) -> Trial | None:
        """Return the latest trial of a model, or None if it has had none."""
        return await self._find(_trial, f"{_SELECT} WHERE model = ? ORDER BY id DESC LIMIT 1", [model])

    @transaction
    def end(self, database: Database, trial: int, verdict: Verdict, reason: str, by: Actor | None = None) -> Trial:
        """End a trial without a promotion; `by` is the admin who ended it, if any.

        The model becomes a candidate again if `verdict` is VOID; otherwise it is rejected for `reason`.

        Raises:
            IllegalTransition: The trial has already ended, or `verdict` is PROMOTED (use `Promotions.make`
                instead).
        """
        present = _get(database, trial)
        if present.ended is not None or verdict not in _AFTERWARDS:
            raise IllegalTransition(f"The trial of {present.model} cannot end as {verdict}.")
        state = _AFTERWARDS[verdict]
        why = reason if state is ModelState.REJECTED else ""
        move_model(database, get_model(database, present.model), state, why, by)
        _end(database, trial, verdict, reason, self._clock())
        return _get(database, trial)

    async def votes(self, trial: Trial, trust: Trust = EQUAL_TRUST) -> list[TrialVote]:
        """Return each rater's latest vote on each answer given since the trial began, in the order of voting.

        Votes by users who opted out or are blocked, and votes in blocked groups, are left out. Votes on the
        winning answer of a duel are left out too, because `Duels.won` counts the choice itself.
        """
        values = {"after": trial.after, "model": trial.model, "live": trial.live,
                  "blocked": json.dumps(sorted(trust.blocked))}  # fmt: skip
        rows = await self._every(_VOTES, values)
        return [TrialVote(row["rater"], row["model"] == trial.model, row["value"] > 0) for row in rows]


def running_trial(database: Database) -> Trial | None:
    """Return the running trial, or None if there is none."""
    return find(_trial, database, f"{_SELECT} WHERE ended IS NULL")


def end_by_promotion(database: Database, model: str, reason: str, now: float, by: Actor | None) -> None:
    """End the running trial, if any, because `model` is about to become live.

    The trial ends as promoted if `model` is its canary, and otherwise as stopped. The caller sets the state
    of `model`. `by` is the admin who promoted the model, if any.
    """
    trial = running_trial(database)
    if trial is None:
        return
    if trial.model == model:
        _end(database, trial.id, Verdict.PROMOTED, reason, now)
    else:
        move_model(database, get_model(database, trial.model), ModelState.REJECTED, REPLACED, by)
        _end(database, trial.id, Verdict.STOPPED, REPLACED, now)


def _end(database: Database, trial: int, verdict: Verdict, reason: str, now: float) -> None:
    values = {"verdict": verdict, "reason": reason, "reason_parts": stored_parts(reason), "ended": now}
    database.table("canaries").update(trial, values)


def _get(database: Database, trial: int) -> Trial:
    return known(find(_trial, database, f"{_SELECT} WHERE id = ?", [trial]), f"There is no trial {trial}.")


def _trial(row: sqlite3.Row) -> Trial:
    values = dict(row)
    values["verdict"] = Verdict(values["verdict"]) if values["verdict"] else None
    values["reason"] = stored(values["reason"], values.pop("reason_parts"))
    return Trial(**values)
