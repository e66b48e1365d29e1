"""Queries about promotions: which model became live when, and who decided."""

from __future__ import annotations

from sqlite_utils import Database

from storage.base import Queries, first
from storage.errors import IllegalTransition, UnknownRecord
from storage.learning_records import Model, Promotion
from storage.models import add_promotion, get_model, live_model, move_model
from storage.reason import Reason
from storage.states import MODEL_TRANSITIONS, ModelState

_SELECT_PROMOTION = 'SELECT id, model, previous, "by", created, done, error FROM promotions'


class Promotions(Queries):
    """Changes of the live model, done or asked for."""

    async def make(self, model: str, by: int | None = None, *, back: bool = False) -> Promotion:
        """Make a model the live one: the former retires, and a done promotion says who decided, all at once. With
        `back` it is a rollback.

        Raises `IllegalTransition` for the live model itself or one whose files are gone, `UnknownRecord`.
        """
        now = self._now()

        def work(database: Database) -> Promotion:
            previous = _make_live(database, model)
            return _promotion(database, add_promotion(database, model, previous, by, now, now, back))

        return await self._write(work)

    async def request(self, model: str, by: int | None = None, *, back: bool = False) -> Promotion:
        """Ask the running bot to promote a model, with `back` as a rollback. Raises as `promote` does."""
        now = self._now()

        def work(database: Database) -> Promotion:
            live = live_model(database)
            _refuse_promotion(get_model(database, model))
            return _promotion(
                database, add_promotion(database, model, None if live is None else live.id, by, now, None, back)
            )

        return await self._write(work)

    async def pending(self) -> list[Promotion]:
        """Promotions asked for and neither carried out nor failed, the oldest first."""
        rows = await self._every(f"{_SELECT_PROMOTION} WHERE done IS NULL AND error = '' ORDER BY id")
        return [Promotion(**row) for row in rows]

    async def get(self, promotion: int) -> Promotion:
        """The promotion of that id, whatever became of it. Raises `UnknownRecord`."""
        return await self._read(lambda database: _promotion(database, promotion))

    async def latest(self, limit: int = 20) -> list[Promotion]:
        """The latest promotions, the newest first, those that failed included."""
        rows = await self._every(f"{_SELECT_PROMOTION} ORDER BY id DESC LIMIT ?", [limit])
        return [Promotion(**row) for row in rows]

    async def finish(self, promotion: int, error: str = "") -> Promotion:
        """Close a promotion that was asked for. Without `error` its model becomes the live one, as by `promote`
        (unless it is already), at the same moment; with `error` it stays not done.

        Raises `IllegalTransition` for a promotion that is closed already, `UnknownRecord`.
        """
        now = self._now()

        def work(database: Database) -> Promotion:
            asked = _promotion(database, promotion)
            if asked.done is not None or asked.error:
                raise IllegalTransition(f"Promotion {promotion} is closed already: ask for another one.")
            if error:
                database.table("promotions").update(promotion, {"error": error})
                return _promotion(database, promotion)
            values: dict[str, object] = {"done": now}
            if get_model(database, asked.model).state is not ModelState.LIVE:
                values["previous"] = _make_live(database, asked.model)
            database.table("promotions").update(promotion, values)
            return _promotion(database, promotion)

        return await self._write(work)


def _refuse_promotion(model: Model) -> None:
    if ModelState.LIVE not in MODEL_TRANSITIONS[model.state]:
        raise IllegalTransition(f"{model.id} is {model.state} and cannot become {ModelState.LIVE}.")
    if not model.kept:
        raise IllegalTransition(
            Reason("The files of {model} were removed: choose a model that is still kept.", model=model.id)
        )


def _make_live(database: Database, model: str) -> str | None:
    """Retire the live model, make `model` live; return the former's name, None if there was none."""
    candidate, live = get_model(database, model), live_model(database)
    _refuse_promotion(candidate)
    if not candidate.directory:
        raise IllegalTransition(f"{model} was pruned: merge it again before it is promoted.")
    if live is not None:
        move_model(database, live, ModelState.RETIRED, "")
    move_model(database, candidate, ModelState.LIVE, "")
    return None if live is None else live.id


def _promotion(database: Database, promotion: int) -> Promotion:
    row = first(database, f"{_SELECT_PROMOTION} WHERE id = ?", [promotion])
    if row is None:
        raise UnknownRecord(f"There is no promotion {promotion}.")
    return Promotion(**row)
