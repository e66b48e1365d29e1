"""Promotions: which model became live, when, and by whose decision."""

from __future__ import annotations

import sqlite3

from storage.base import Queries, find, insert, known, transaction
from storage.canaries import end_by_promotion
from storage.database import Database
from storage.errors import IllegalTransition
from storage.learning_records import Actor, Model, Promotion
from storage.models import get_model, live_model, move_model
from storage.state_machines import MODEL_TRANSITIONS, ModelState
from storage.translatable_reason import Reason

_SELECT_PROMOTION = 'SELECT id, model, previous, "by", created, done, error, back FROM promotions'


class Promotions(Queries):
    """Completed and requested changes of the live model."""

    @transaction
    def make(
        self, database: Database, model: str, by: Actor | None = None, *, back: bool = False, why: str = ""
    ) -> Promotion:
        """Make a model live, retire the former live model and record the promotion as done.

        This ends the running trial, if there is one.

        Args:
            database: The ledger, which callers leave out.
            model: The model that becomes live.
            by: The admin, or None for the pipeline.
            back: Whether the promotion is a rollback.
            why: If `model` is the canary on trial, the reason why the trial ends. In a rollback, the fault for
                which the former live model is rejected instead of retired.

        Raises:
            UnknownRecord: There is no such model.
            IllegalTransition: The model is already live, or its files are gone.
        """
        now = self._clock()
        previous = _make_live(database, model, now, by=by, why=why, fault=why if back else "")
        row = {"model": model, "previous": previous, "by": by.user if by else None, "created": now, "back": back}
        return _promotion(database, insert(database, "promotions", row | {"done": now, "announced": True}))

    @transaction
    def request(self, database: Database, model: str, *, back: bool = False) -> Promotion:
        """Ask the running bot to promote a model, and to announce it; `back` marks a rollback.

        Raises:
            UnknownRecord: There is no such model.
            IllegalTransition: The model is already live, or its files are gone.
        """
        live = live_model(database)
        _refuse_promotion(get_model(database, model))
        row = {"model": model, "previous": live and live.id, "created": self._clock(), "back": back}
        return _promotion(database, insert(database, "promotions", row | {"announced": False}))

    async def pending(self) -> list[Promotion]:
        """Return the requested promotions that have neither been carried out nor failed, oldest first."""
        return await self._list(_record, f"{_SELECT_PROMOTION} WHERE done IS NULL AND error = '' ORDER BY id")

    async def unannounced(self) -> list[Promotion]:
        """Return the requested promotions that have been carried out but not announced yet, oldest first."""
        return await self._list(_record, f"{_SELECT_PROMOTION} WHERE done IS NOT NULL AND NOT announced ORDER BY id")

    async def announced(self, promotion: int) -> None:
        """Record that the admins were notified of a promotion."""
        await self._execute("UPDATE promotions SET announced = 1 WHERE id = ?", [promotion])

    async def get(self, promotion: int) -> Promotion:
        """Return the promotion with the ID `promotion`.

        Raises:
            UnknownRecord: There is no such promotion.
        """
        return await self._read(lambda database: _promotion(database, promotion))

    async def latest(self, limit: int = 20) -> list[Promotion]:
        """Return the latest `limit` promotions, including failed ones, newest first."""
        return await self._list(_record, f"{_SELECT_PROMOTION} ORDER BY id DESC LIMIT ?", [limit])

    async def newest(self) -> Promotion | None:
        """Return the newest promotion that has been carried out, or None if there is none."""
        return await self._find(
            _record, f"{_SELECT_PROMOTION} WHERE done IS NOT NULL ORDER BY done DESC, id DESC LIMIT 1"
        )

    @transaction
    def finish(self, database: Database, promotion: int, error: str = "") -> Promotion:
        """Close a requested promotion: carry it out, or store `error` if it failed.

        Carrying out the promotion makes its model live as `Promotions.make` does, unless it is live already.

        Raises:
            UnknownRecord: There is no such promotion.
            IllegalTransition: The promotion is already closed.
        """
        now = self._clock()
        asked = _promotion(database, promotion)
        if asked.done is not None or asked.error:
            raise IllegalTransition(f"Promotion {promotion} is already closed: request a new one.")
        values: dict[str, object] = {"error": error} if error else {"done": now}
        if not error and get_model(database, asked.model).state is not ModelState.LIVE:
            values["previous"] = _make_live(database, asked.model, now)
        database.table("promotions").update(promotion, values)
        return _promotion(database, promotion)


def _refuse_promotion(model: Model) -> None:
    if ModelState.LIVE not in MODEL_TRANSITIONS[model.state]:
        raise IllegalTransition(f"{model.id} is {model.state} and cannot become {ModelState.LIVE}.")
    if not model.kept:
        raise IllegalTransition(Reason("The files of {model} were deleted: choose another model.", model=model.id))


def _make_live(
    database: Database, model: str, now: float, *, by: Actor | None = None, why: str = "", fault: str = ""
) -> str | None:
    """Make `model` live and return the ID of the former live model, or None if there was none.

    The former live model is retired, or rejected if a `fault` is given. `by` is the admin who made the
    decision, if any. If `model` is the canary of the running trial, `why` is the reason why the trial ends.
    """
    candidate, live = get_model(database, model), live_model(database)
    _refuse_promotion(candidate)
    if not candidate.directory:
        raise IllegalTransition(f"{model} was pruned: merge it again before promoting it.")
    end_by_promotion(database, model, why, now, by)
    if live is not None:
        move_model(database, live, ModelState.REJECTED if fault else ModelState.RETIRED, fault, by)
    move_model(database, candidate, ModelState.LIVE, "", by)
    return None if live is None else live.id


def _promotion(database: Database, promotion: int) -> Promotion:
    found = find(_record, database, f"{_SELECT_PROMOTION} WHERE id = ?", [promotion])
    return known(found, f"There is no promotion {promotion}.")


def _record(row: sqlite3.Row) -> Promotion:
    values = dict(row)
    return Promotion(**values | {"back": bool(values["back"])})
