"""Retraining runs in the ledger: their states, checked transitions, progress and cancellation (table `runs`)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from storage.base import Queries, column, find, first, insert, known, query, transaction
from storage.database import Database
from storage.errors import CanaryRunning, IllegalTransition, RunBusy, StorageError
from storage.learning_records import Run
from storage.state_machines import RUN_TRANSITIONS, RunState
from storage.translatable_reason import Reason, stored, stored_parts

_SELECT = f"SELECT {', '.join(each.name for each in fields(Run))}, reason_parts FROM runs"
_SETTABLE = frozenset({"step", "steps", "raters", "directory", "reason", "model"})
ACTIVE = "state IN ({})".format(", ".join(f"'{state}'" for state, following in RUN_TRANSITIONS.items() if following))
"""An SQL condition on `runs` that selects the runs that have not ended."""

_REQUESTED = 1
WITHDRAWN = 2
"""Values of `cancel_requested`: an admin cancelled the run, or a selected exchange was withdrawn; 0 means neither."""


class Runs(Queries):
    """Queries for retraining runs."""

    @transaction
    def start(
        self, database: Database, trigger: str, requested_by: int | None = None, *, only: Collection[int] | None = None
    ) -> Run:
        """Add a run in the state DUE and return it.

        Args:
            database: The ledger, which callers leave out.
            trigger: "schedule", "admin", "command" or "web".
            requested_by: The ID of the admin who requested the run, if any.
            only: The IDs of the exchanges that the run may learn from; None for no limit.

        Raises:
            RunBusy: Another run is active, in this or any other process.
            CanaryRunning: A canary trial is in progress. The trial may replace the live model, with which the
                new model would be compared.
        """
        now = self._clock()
        busy = first(database, f"{_SELECT} WHERE {ACTIVE}")
        if busy is not None:
            raise RunBusy(f"Run {busy['id']} is {busy['state']}: wait until it ends, or cancel it.")
        trial = first(database, "SELECT model FROM canaries WHERE ended IS NULL")
        if trial is not None:
            raise CanaryRunning(
                Reason(
                    "{model} is still a canary: wait until its trial ends, or promote or stop it first (/models).",
                    model=trial["model"],
                )
            )
        row = {"trigger": trigger, "requested_by": requested_by, "created": now, "updated": now}
        started = insert(database, "runs", row | {"settled": False, "limited": only is not None})
        database.execute(
            "INSERT INTO run_limits(run, exchange) SELECT ?, id FROM exchanges"
            " WHERE id IN (SELECT value FROM json_each(?))",
            (started, json.dumps(sorted(only or ()))),
        )
        return get_run(database, started)

    async def get(self, run: int) -> Run:
        """Return the run with the ID `run`. Raises `UnknownRecord` if there is none."""
        return await self._read(lambda database: get_run(database, run))

    async def limit(self, run: Run) -> frozenset[int] | None:
        """Return the exchanges that a run may learn from, without erased ones, or None if there is no limit."""
        if not run.limited:
            return None
        return frozenset(await self._column("SELECT exchange FROM run_limits WHERE run = ?", [run.id]))

    async def latest(self, limit: int = 20) -> list[Run]:
        """Return the latest `limit` runs, newest first."""
        return await self._list(_run, f"{_SELECT} ORDER BY id DESC LIMIT ?", [limit])

    async def active(self) -> Run | None:
        """Return the run that has not ended yet, or None if all runs have ended."""
        return await self._find(_run, f"{_SELECT} WHERE {ACTIVE}")

    async def due(self) -> Run | None:
        """Return the run that is waiting to be started, or None if there is none."""
        return await self._find(_run, f"{_SELECT} WHERE state = ?", [RunState.DUE])

    async def unsettled(self) -> Run | None:
        """Return the newest run if it has ended but has not been settled, else None.

        A run remains unsettled if the process died before completing the work that follows the run's end.
        """
        return await self._find(
            _run, f"{_SELECT} WHERE id = (SELECT max(id) FROM runs) AND NOT settled AND NOT {ACTIVE}"
        )

    async def is_settled(self, run: int) -> bool:
        """Return whether the run has ended and the work that follows its end is complete.

        Raises `UnknownRecord` if there is no such run.
        """
        sql = f"SELECT settled AND NOT {ACTIVE} FROM runs WHERE id = ?"
        return known(await self._find(lambda row: bool(row[0]), sql, [run]), _unknown(run))

    async def settle(self, run: int) -> None:
        """Record that the work that follows the end of a run, such as notifying the admins, is complete."""
        await self._execute("UPDATE runs SET settled = 1 WHERE id = ?", [run])

    @transaction
    def move(self, database: Database, /, run: int, state: RunState, **values: Any) -> Run:
        """Set the state of a run, reset its estimated time left, and return the run.

        Args:
            database: The ledger, which callers leave out.
            run: The run's ID.
            state: The new state.
            values: Other fields to set: step, steps, raters, directory, reason and model.

        Raises:
            UnknownRecord: There is no such run.
            IllegalTransition: RUN_TRANSITIONS does not allow the change of state.
        """
        present = get_run(database, run)
        if state not in RUN_TRANSITIONS[present.state]:
            raise IllegalTransition(f"Run {run} is {present.state} and cannot become {state}.")
        changed = {"state": state, "seconds_left": None, "updated": self._clock(), **_settable(values)}
        database.table("runs").update(run, changed)
        return get_run(database, run)

    async def progress(
        self, run: int, step: int, steps: int, loss: float | None, seconds_left: float | None = None
    ) -> None:
        """Store the progress of a run, or do nothing if the run has ended."""
        await self._execute(
            "UPDATE runs SET step = ?, steps = ?, loss = coalesce(?, loss), seconds_left = ?, updated = ?"
            f" WHERE id = ? AND {ACTIVE}",
            (step, steps, loss, seconds_left, self._clock(), run),
        )

    @transaction
    def request_cancel(self, database: Database, run: int) -> None:
        """Request the cancellation of a run; the process that executes the run polls `cancel_requested`.

        Raises `UnknownRecord` if there is no such run, and `IllegalTransition` if the run has ended.
        """
        present = get_run(database, run)
        if not RUN_TRANSITIONS[present.state]:
            raise IllegalTransition(
                Reason(
                    "Run {run} has already ended ({state}), so there's nothing to cancel.",
                    run=run,
                    state=Reason(present.state.value),
                )
            )
        database.execute("UPDATE runs SET cancel_requested = max(cancel_requested, ?) WHERE id = ?", (_REQUESTED, run))

    async def cancel_requested(self, run: int) -> bool:
        """Return whether a run's cancellation was requested and the run has not ended.

        Raises `UnknownRecord` if there is no such run.
        """
        sql = f"SELECT cancel_requested AND {ACTIVE} FROM runs WHERE id = ?"
        return known(await self._find(lambda row: bool(row[0]), sql, [run]), _unknown(run))

    async def attempts(self) -> int:
        """Return how many runs created since the live model last changed have ended with a verdict."""
        return await self._number(
            "SELECT count(*) FROM runs WHERE state = ? AND created > (SELECT coalesce(max(done), 0) FROM promotions)",
            [RunState.DONE],
        )

    @query
    def last_verdict(self, database: Database) -> tuple[Run, str] | None:
        """Return the newest run that produced a model and the fingerprint of its inputs, or None if there is none."""
        run = find(_run, database, f"{_SELECT} WHERE state = ? ORDER BY id DESC", [RunState.DONE])
        if run is None:
            return None
        return run, column(database, "SELECT fingerprint FROM runs WHERE id = ?", [run.id])[0]


def get_run(database: Database, run: int) -> Run:
    """Return the run with the ID `run`. Raises `UnknownRecord` if there is none."""
    return known(find(_run, database, f"{_SELECT} WHERE id = ?", [run]), _unknown(run))


def _settable(values: dict[str, Any]) -> dict[str, Any]:
    strange = values.keys() - _SETTABLE
    if strange:
        raise StorageError(f"Cannot set {', '.join(sorted(strange))} of a run, only {', '.join(sorted(_SETTABLE))}.")
    if "reason" in values:
        return values | {"reason_parts": stored_parts(values["reason"])}
    return values


def _run(row: sqlite3.Row) -> Run:
    values = dict(row)
    values |= {"state": RunState(values["state"]), "limited": bool(values["limited"])}
    values["reason"] = stored(values["reason"], values.pop("reason_parts"))
    return Run(**values)


def _unknown(run: int) -> Reason:
    return Reason("The database has no run {run}: see the list of runs.", run=run)
