"""The exchanges selected for each run, and whether they may still be used (table `run_selections`)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence

from storage.base import Queries, first, number, query, transaction
from storage.database import Database
from storage.errors import StorageError
from storage.guests import UNLEARNED
from storage.runs import ACTIVE, WITHDRAWN, get_run
from storage.state_machines import RunState

AFFECTED = (
    "SELECT DISTINCT later.id FROM exchanges AS shown JOIN exchanges AS later ON later.session = shown.session"
    " AND later.id >= shown.id"
)
"""Exchanges (`shown`) and those that follow them in a conversation, because a training example includes the
conversation before its answer."""

_TEACHING = (
    f"SELECT count(*) FROM run_selections WHERE run = ? AND exchange NOT IN ({AFFECTED} WHERE shown.asker IN"
    f" (SELECT id FROM users WHERE opted_out) OR shown.id IN ({UNLEARNED}))"
)


class RunSelections(Queries):
    """Queries for the exchanges selected for runs."""

    @transaction
    def freeze(
        self,
        database: Database,
        run: int,
        rows: Sequence[tuple[int, str]],
        fingerprint: str = "",
        *,
        judged: Collection[int] = (),
        reviews: int = 0,
    ) -> None:
        """Store a run's exchanges with their splits, and count the training and held-out exchanges.

        Args:
            database: The ledger, which callers leave out.
            run: The run's ID.
            rows: The ID and split of each exchange. The split is "train", "held_out" or "worse"; the last is for
                disliked and rejected answers, which are used in training too.
            fingerprint: The hash of all inputs of the run (`training.run_plan`).
            judged: The IDs of the exchanges used to evaluate the run, whether or not they are used in training too.
            reviews: The ID of the newest review that the selection takes into account.

        Raises:
            StorageError: The run already has a selection, or an exchange is repeated, does not exist or was
                deleted.
        """
        judges = frozenset(judged)
        frozen = [
            (run, exchange, position, split, int(exchange in judges)) for position, (exchange, split) in enumerate(rows)
        ]
        held_out = sum(split == "held_out" for *_, split, _ in frozen)
        get_run(database, run)
        if first(database, "SELECT 1 FROM run_selections WHERE run = ?", [run]) is not None:
            raise StorageError(f"Run {run} already has a selection: start a new run for a different one.")
        try:
            database.table("run_selections").insert_all([("run", "exchange", "position", "split", "judged"), *frozen])
        except sqlite3.IntegrityError as error:
            raise StorageError(
                f"The selection for run {run} contains an exchange twice, or one that was just deleted:"
                f" select again ({error})."
            ) from error
        counts = {"samples": len(frozen) - held_out, "held_out": held_out}
        values = {**counts, "fingerprint": fingerprint, "reviews": reviews, "updated": self._clock()}
        database.table("runs").update(run, values)

    async def of(self, run: int) -> list[tuple[int, str]]:
        """Return the run's (exchange, split) pairs in selection order, without exchanges that were erased."""
        rows = await self._every("SELECT exchange, split FROM run_selections WHERE run = ? ORDER BY position", [run])
        return [(row["exchange"], row["split"]) for row in rows]

    async def erased(self) -> dict[int, int]:
        """Return, by run, how many of the exchanges selected for it were erased or withdrawn from training since."""
        rows = await self._every(
            "SELECT id, samples + held_out - (SELECT count(*) FROM run_selections WHERE run = runs.id) AS erased"
            " FROM runs WHERE erased > 0"
        )
        return {row["id"]: row["erased"] for row in rows}

    @query
    def withdrawn(self, database: Database, run: int) -> bool:
        """Return whether any exchange selected for a run may no longer be used.

        An exchange may no longer be used if it was erased, or if one of these users opted out: the one who asked
        the question, anyone who asked an earlier question in the conversation, or the one who corrected the
        answer. Opting in again does not change the result. Raises `UnknownRecord` if there is no such run.
        """
        present = get_run(database, run)
        asked = number(database, "SELECT cancel_requested FROM runs WHERE id = ?", [run])
        return asked == WITHDRAWN or number(database, _TEACHING, [run]) < present.samples + present.held_out


def cancel_learning(database: Database, exchanges: list[int]) -> None:
    """Cancel every run that uses any of `exchanges` and is either in progress or done but not yet settled."""
    database.execute(
        f"UPDATE runs SET cancel_requested = ? WHERE ({ACTIVE} OR state = ? AND NOT settled) AND id IN"
        " (SELECT run FROM run_selections WHERE exchange IN (SELECT value FROM json_each(?)))",
        (WITHDRAWN, RunState.DONE, json.dumps(exchanges)),
    )
