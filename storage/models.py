"""Queries about models and promotions: which model is live, which was, which could be, and who decided."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, fields

from sqlite_utils import Database

from storage.base import Queries, every, first, number
from storage.errors import IllegalTransition, StorageError, UnknownRecord
from storage.records import Model, Promotion, Taught, Version
from storage.states import MODEL_TRANSITIONS, ModelState

_SELECT = f"SELECT {', '.join(each.name for each in fields(Model))} FROM models"
_SELECT_PROMOTION = 'SELECT id, model, previous, "by", created, done, error FROM promotions'

_NUMBER = """
SELECT count(DISTINCT model) FROM promotions WHERE done IS NOT NULL AND id <= (
    SELECT min(id) FROM promotions WHERE model = ? AND done IS NOT NULL)
"""

_TAUGHT = """
SELECT (SELECT count(*) FROM run_selections WHERE run = :run AND split = 'train') AS answers,
       count(*) AS votes,
       count(DISTINCT rater) AS people
  FROM (SELECT rater, value, max(feedback.id)
          FROM runs
          JOIN run_selections ON run_selections.run = runs.id AND run_selections.split = 'train'
          JOIN feedback ON feedback.exchange = run_selections.exchange AND feedback.created <= runs.created
         WHERE runs.id = :run
         GROUP BY feedback.exchange, feedback.rater)
 WHERE value > 0
"""
"""With max(), SQLite takes the other columns from the row that has it: https://www.sqlite.org/quirks.html"""


class Registry(Queries):
    """Models and promotions."""

    async def add_model(self, model: Model) -> None:
        """Add a model in the state it names; one that is live comes with its promotion, in the same transaction.

        Raises `StorageError` for a name that is taken or a second live model.
        """
        now = self._now()
        row = asdict(model) | {"created": self._now(model.created)}

        def work(database: Database) -> None:
            if first(database, "SELECT 1 FROM models WHERE id = ?", [model.id]) is not None:
                raise StorageError(f"There is a model {model.id} already: give the new one another name.")
            live = _live(database)
            if model.state is ModelState.LIVE and live is not None:
                raise StorageError(f"{live.id} is live: add {model.id} as a candidate and promote it.")
            database.table("models").insert(row, pk="id")
            if model.state is ModelState.LIVE:
                _add_promotion(database, model.id, None, None, now, now, back=False)

        await self._write(work)

    async def model(self, model: str) -> Model:
        """The model of that name. Raises `UnknownRecord`."""
        return await self._read(lambda database: _get(database, model))

    async def models(self) -> list[Model]:
        """All models, the oldest first."""
        rows = await self._read(lambda database: every(database, f"{_SELECT} ORDER BY created, id"))
        return [_model(row) for row in rows]

    async def live_model(self) -> Model | None:
        """The model that answers, None before the first."""
        return await self._read(_live)

    async def previous_model(self) -> Model | None:
        """The model that a rollback leads to: the one that was live before the present one, and can be
        promoted. After a rollback that is the one before that again, never the one that was left. None without one.
        """

        def work(database: Database) -> Model | None:
            for name in reversed(_line(database)[:-1]):
                model = _get(database, name)
                if model.state is not ModelState.LIVE and model.kept:
                    return model
            return None

        return await self._read(work)

    async def version(self, model: str) -> Version:
        """A model that was live, as people count them. Raises `UnknownRecord`."""

        def work(database: Database) -> Version:
            found = _get(database, model)
            return Version(model, number(database, _NUMBER, [model]), _taught(database, found.run), found.created)

        return await self._read(work)

    async def taught(self, run: int) -> Taught:
        """What a run was taught by, the same as `version` has it."""
        return await self._read(lambda database: _taught(database, run))

    async def move_model(self, model: str, state: ModelState, reason: str = "") -> Model:
        """Enter `state`, with the reason for it if there is one (a rejection).

        Raises `IllegalTransition` where MODEL_TRANSITIONS does not allow it, and for LIVE, which `promote` does;
        `UnknownRecord`.
        """

        def work(database: Database) -> Model:
            if state is ModelState.LIVE:
                raise IllegalTransition(f"{model} becomes live by a promotion, which also retires the live model.")
            _move(database, _get(database, model), state, reason)
            return _get(database, model)

        return await self._write(work)

    async def relocate_model(self, model: str, directory: str) -> Model:
        """Note that a model's files lie in `directory` now. Raises `UnknownRecord`."""

        def work(database: Database) -> Model:
            _get(database, model)
            database.execute("UPDATE models SET directory = ?, pruned = 0 WHERE id = ?", [directory, model])
            return _get(database, model)

        return await self._write(work)

    async def drop_model_directory(self, model: str) -> Model:
        """Note that the files of a model were removed: its row stays, with an empty directory.

        Raises `IllegalTransition` for the live model, `UnknownRecord`.
        """

        def work(database: Database) -> Model:
            present = _get(database, model)
            if present.state is ModelState.LIVE:
                raise IllegalTransition(f"{model} is live: promote another model before removing it.")
            database.execute("UPDATE models SET directory = '', pruned = 0 WHERE id = ?", [model])
            return _get(database, model)

        return await self._write(work)

    async def prune_model(self, model: str) -> Model:
        """Note that the files of a model are about to be removed, and that its adapter can make them again.

        Raises `IllegalTransition` for the live model and for one whose promotion is pending, `UnknownRecord`.
        """

        def work(database: Database) -> Model:
            pending = "SELECT 1 FROM promotions WHERE model = ? AND done IS NULL AND error = ''"
            if _get(database, model).state is ModelState.LIVE or first(database, pending, [model]) is not None:
                raise IllegalTransition(f"{model} is live or about to be: its files stay.")
            database.execute("UPDATE models SET directory = '', pruned = 1 WHERE id = ?", [model])
            return _get(database, model)

        return await self._write(work)

    async def promote(self, model: str, by: int | None = None, *, back: bool = False) -> Promotion:
        """Make a model the live one: the former retires, and a done promotion says who decided, all at once. With
        `back` it is a rollback.

        Raises `IllegalTransition` for the live model itself or one whose files are gone, `UnknownRecord`.
        """
        now = self._now()

        def work(database: Database) -> Promotion:
            previous = _make_live(database, model)
            return _promotion(database, _add_promotion(database, model, previous, by, now, now, back))

        return await self._write(work)

    async def request_promotion(self, model: str, by: int | None = None, *, back: bool = False) -> Promotion:
        """Ask the running bot to promote a model, with `back` as a rollback. Raises as `promote` does."""
        now = self._now()

        def work(database: Database) -> Promotion:
            live = _live(database)
            _refuse_promotion(_get(database, model))
            return _promotion(
                database, _add_promotion(database, model, None if live is None else live.id, by, now, None, back)
            )

        return await self._write(work)

    async def pending_promotions(self) -> list[Promotion]:
        """Promotions asked for and neither carried out nor failed, the oldest first."""
        rows = await self._read(
            lambda database: every(database, f"{_SELECT_PROMOTION} WHERE done IS NULL AND error = '' ORDER BY id")
        )
        return [Promotion(**row) for row in rows]

    async def promotion(self, promotion: int) -> Promotion:
        """The promotion of that id, whatever became of it. Raises `UnknownRecord`."""
        return await self._read(lambda database: _promotion(database, promotion))

    async def promotions(self, limit: int = 20) -> list[Promotion]:
        """The latest promotions, the newest first, those that failed included."""
        rows = await self._read(
            lambda database: every(database, f"{_SELECT_PROMOTION} ORDER BY id DESC LIMIT ?", [limit])
        )
        return [Promotion(**row) for row in rows]

    async def finish_promotion(self, promotion: int, error: str = "") -> Promotion:
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
            if _get(database, asked.model).state is not ModelState.LIVE:
                values["previous"] = _make_live(database, asked.model)
            database.table("promotions").update(promotion, values)
            return _promotion(database, promotion)

        return await self._write(work)


def _line(database: Database) -> list[str]:
    """The models that led to the live one, which is the last; a rollback has taken off those that it left."""
    line: list[str] = []
    for row in every(database, "SELECT model, back FROM promotions WHERE done IS NOT NULL ORDER BY done, id"):
        if row["back"] and row["model"] in line:
            while line[-1] != row["model"]:
                line.pop()
        elif line[-1:] != [row["model"]]:
            line.append(row["model"])
    return line


def _get(database: Database, model: str) -> Model:
    row = first(database, f"{_SELECT} WHERE id = ?", [model])
    if row is None:
        raise UnknownRecord(f"There is no model {model}: see the list of models.")
    return _model(row)


def _taught(database: Database, run: int | None) -> Taught:
    row = first(database, _TAUGHT, {"run": run})
    assert row is not None
    return Taught(**row)


def _live(database: Database) -> Model | None:
    row = first(database, f"{_SELECT} WHERE state = 'live'")
    return None if row is None else _model(row)


def _move(database: Database, model: Model, state: ModelState, reason: str) -> None:
    if state not in MODEL_TRANSITIONS[model.state]:
        raise IllegalTransition(f"{model.id} is {model.state} and cannot become {state}.")
    database.table("models").update(model.id, {"state": state, "reason": reason or model.reason})


def _refuse_promotion(model: Model) -> None:
    if ModelState.LIVE not in MODEL_TRANSITIONS[model.state]:
        raise IllegalTransition(f"{model.id} is {model.state} and cannot become {ModelState.LIVE}.")
    if not model.kept:
        raise IllegalTransition(f"The files of {model.id} were removed: choose a model that is still kept.")


def _make_live(database: Database, model: str) -> str | None:
    """Retire the live model, make `model` live; return the former's name, None if there was none."""
    candidate, live = _get(database, model), _live(database)
    _refuse_promotion(candidate)
    if not candidate.directory:
        raise IllegalTransition(f"{model} was pruned: merge it again before it is promoted.")
    if live is not None:
        _move(database, live, ModelState.RETIRED, "")
    _move(database, candidate, ModelState.LIVE, "")
    return None if live is None else live.id


def _add_promotion(
    database: Database,
    model: str,
    previous: str | None,
    by: int | None,
    created: float,
    done: float | None,
    back: bool,
) -> int:
    cursor = database.execute(
        'INSERT INTO promotions(model, previous, "by", created, done, back) VALUES (?, ?, ?, ?, ?, ?)',
        (model, previous, by, created, done, back),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _promotion(database: Database, promotion: int) -> Promotion:
    row = first(database, f"{_SELECT_PROMOTION} WHERE id = ?", [promotion])
    if row is None:
        raise UnknownRecord(f"There is no promotion {promotion}.")
    return Promotion(**row)


def _model(row: sqlite3.Row) -> Model:
    values = dict(row)
    values["state"] = ModelState(values["state"])
    values["pruned"] = bool(values["pruned"])
    return Model(**values)
