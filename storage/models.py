"""The table of models; `model_store` handles the models' files."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass, fields

from storage.base import Queries, every, find, first, insert, known, number, query, transaction
from storage.database import Database
from storage.errors import IllegalTransition, StorageError
from storage.learning_records import Actor, Model, TrainedOn
from storage.state_machines import ANSWERING, MODEL_TRANSITIONS, ModelState
from storage.translatable_reason import Reason, stored, stored_parts

_SELECT = f"SELECT {', '.join(each.name for each in fields(Model))}, reason_parts FROM models"
_NUMBER = """
SELECT count(DISTINCT model) FROM promotions WHERE done IS NOT NULL AND id <= (
    SELECT min(id) FROM promotions WHERE model = ? AND done IS NOT NULL)
"""

_TRAINED_ON = """
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
"""With max(), SQLite takes the other columns from the row with the maximum: https://www.sqlite.org/quirks.html"""


@dataclass(frozen=True, slots=True)
class Version:
    """A model that is or was live.

    Attributes:
        number: The model's position in the sequence of live models, counted from 1.
        taught: Counts of the answers, thumbs up and users behind the model's training.
        created: When the model was made.
    """

    model: str
    number: int
    taught: TrainedOn
    created: float


class Models(Queries):
    """The models in the ledger and their states."""

    @transaction
    def add(self, database: Database, model: Model) -> None:
        """Add a model; if its state is LIVE, add its promotion in the same transaction.

        Raises:
            StorageError: The name is taken, or the new model is live although there is already a live model.
        """
        now = self._clock()
        row = asdict(model) | {"created": model.created or now, "reason_parts": stored_parts(model.reason)}
        if first(database, "SELECT 1 FROM models WHERE id = ?", [model.id]) is not None:
            raise StorageError(f"Model {model.id} already exists: choose another name for the new one.")
        live = live_model(database)
        if model.state is ModelState.LIVE and live is not None:
            raise StorageError(f"{live.id} is live: add {model.id} as a candidate and promote it.")
        database.table("models").insert(row, pk="id")
        if model.state is ModelState.LIVE:
            insert(database, "promotions", {"model": model.id, "created": now, "done": now, "announced": True})

    async def get(self, model: str) -> Model:
        """Return the model with the name `model`.

        Raises:
            UnknownRecord: There is no such model.
        """
        return await self._read(lambda database: get_model(database, model))

    async def all(self) -> list[Model]:
        """Return all models, oldest first."""
        return await self._list(_model, f"{_SELECT} ORDER BY created, id")

    async def live(self) -> Model | None:
        """Return the live model, or None if there is none."""
        return await self._read(live_model)

    @query
    def previous(self, database: Database) -> Model | None:
        """Return the model that a rollback would make live, or None if there is none.

        This is the last model that was live before the present one and can still be promoted. After a rollback,
        it is a predecessor of the present live model, never the model that was rolled back.
        """
        for name in reversed(_lineage(database)[:-1]):
            model = get_model(database, name)
            if model.state is not ModelState.LIVE and model.kept:
                return model
        return None

    @query
    def version(self, database: Database, model: str) -> Version:
        """Return the version of a model that is or was live.

        Raises:
            UnknownRecord: There is no such model.
        """
        found = get_model(database, model)
        return Version(model, number(database, _NUMBER, [model]), _trained_on(database, found.run), found.created)

    async def trained_on(self, run: int) -> TrainedOn:
        """Return counts of the liked answers, thumbs up and users behind a run's training."""
        return await self._read(lambda database: _trained_on(database, run))

    @transaction
    def move(self, database: Database, model: str, state: ModelState, reason: str = "") -> Model:
        """Set the state of a model, and its reason if `reason` is not empty.

        Raises:
            UnknownRecord: There is no such model.
            IllegalTransition: MODEL_TRANSITIONS does not allow the change, or `state` is LIVE (use
                `Promotions.make` instead).
        """
        if state is ModelState.LIVE:
            raise IllegalTransition(
                f"{model} can only become live through a promotion, which also retires the live model."
            )
        move_model(database, get_model(database, model), state, reason)
        return get_model(database, model)

    @transaction
    def relocate(self, database: Database, model: str, directory: str) -> Model:
        """Set the directory of a model.

        Raises:
            UnknownRecord: There is no such model.
        """
        return _set_directory(database, model, directory)

    @transaction
    def drop_directory(self, database: Database, model: str, by: Actor | None = None) -> Model:
        """Clear the directory of a model whose files were removed; the model's row is kept.

        Raises:
            UnknownRecord: There is no such model.
            IllegalTransition: The model is the live model or the canary.
        """
        state = get_model(database, model).state
        if state in ANSWERING:
            raise IllegalTransition(f"{model} is {state}: promote another model before removing it.")
        return _set_directory(database, model, "", by=by.name if by else "")

    @transaction
    def prune(self, database: Database, model: str) -> Model:
        """Mark a model as pruned: its files are about to be removed and can be merged again from its adapter.

        Raises:
            UnknownRecord: There is no such model.
            IllegalTransition: The model is the live model or the canary, or its promotion is pending.
        """
        pending = "SELECT 1 FROM promotions WHERE model = ? AND done IS NULL AND error = ''"
        if get_model(database, model).state in ANSWERING or first(database, pending, [model]) is not None:
            raise IllegalTransition(f"{model} is live or about to be: its files cannot be removed.")
        return _set_directory(database, model, "", pruned=True)


def _lineage(database: Database) -> list[str]:
    """Return the names of the models that led to the live model, in order and ending with the live model.

    A rollback removes the models that came after its target.
    """
    line: list[str] = []
    for row in every(database, "SELECT model, back FROM promotions WHERE done IS NOT NULL ORDER BY done, id"):
        if row["back"] and row["model"] in line:
            while line[-1] != row["model"]:
                line.pop()
        elif line[-1:] != [row["model"]]:
            line.append(row["model"])
    return line


def get_model(database: Database, model: str) -> Model:
    """Return the model with the name `model`.

    Raises:
        UnknownRecord: There is no such model.
    """
    found = find(_model, database, f"{_SELECT} WHERE id = ?", [model])
    return known(found, Reason("There is no model {model}: see the list of models.", model=model))


def _set_directory(
    database: Database, model: str, directory: str, *, pruned: bool = False, by: str | None = None
) -> Model:
    """Set the directory of a model and, unless `by` is None, record who changed it."""
    database.execute(
        "UPDATE models SET directory = ?, pruned = ?, changed_by = coalesce(?, changed_by) WHERE id = ?",
        [directory, pruned, by, model],
    )
    return get_model(database, model)


def _trained_on(database: Database, run: int | None) -> TrainedOn:
    row = first(database, _TRAINED_ON, {"run": run})
    assert row is not None
    return TrainedOn(**row)


def live_model(database: Database) -> Model | None:
    """Return the live model, or None if there is none."""
    return find(_model, database, f"{_SELECT} WHERE state = 'live'")


def move_model(database: Database, model: Model, state: ModelState, reason: str, by: Actor | None = None) -> None:
    """Set the state of a model, record the admin who changed it, and set the reason if `reason` is not empty.

    Raises:
        IllegalTransition: MODEL_TRANSITIONS does not allow the change.
    """
    if state not in MODEL_TRANSITIONS[model.state]:
        raise IllegalTransition(f"{model.id} is {model.state} and cannot become {state}.")
    reason = reason or model.reason
    values = {
        "state": state,
        "reason": reason,
        "reason_parts": stored_parts(reason),
        "changed_by": by.name if by else "",
    }
    database.table("models").update(model.id, values)


def _model(row: sqlite3.Row) -> Model:
    values = dict(row)
    values["state"] = ModelState(values["state"])
    values["pruned"] = bool(values["pruned"])
    values["reason"] = stored(values["reason"], values.pop("reason_parts"))
    return Model(**values)
