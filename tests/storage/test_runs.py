"""How the ledger stores runs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.errors import IllegalTransition, RunBusy, StorageError, UnknownRecord
from storage.ledger import FILE_NAME, Ledger
from storage.state_machines import RUN_TRANSITIONS, RunState
from tests.support.ledgers import exchange

WAYS: dict[RunState, list[RunState]] = {
    RunState.DUE: [],
    RunState.TRAINING: [RunState.TRAINING],
    RunState.MERGING: [RunState.TRAINING, RunState.MERGING],
    RunState.EVALUATING: [RunState.TRAINING, RunState.MERGING, RunState.EVALUATING],
    RunState.DONE: [RunState.TRAINING, RunState.MERGING, RunState.EVALUATING, RunState.DONE],
    RunState.FAILED: [RunState.FAILED],
    RunState.CANCELLED: [RunState.CANCELLED],
}


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger.open(tmp_path) as ledger:
        yield ledger


@pytest.mark.parametrize("start", RunState)
@pytest.mark.parametrize("end", RunState)
async def test_transitions(ledger: Ledger, start: RunState, end: RunState) -> None:
    """A run can enter exactly the states that RUN_TRANSITIONS lists for its current state."""
    run = await ledger.runs.start("admin", 1)
    for state in WAYS[start]:
        await ledger.runs.move(run.id, state)
    if end in RUN_TRANSITIONS[start]:
        assert (await ledger.runs.move(run.id, end, reason="because")).state is end
        assert (await ledger.runs.get(run.id)).reason == "because"
    else:
        with pytest.raises(IllegalTransition, match=f"is {start} and cannot become {end}"):
            await ledger.runs.move(run.id, end, reason="because")
        assert ((await ledger.runs.get(run.id)).state, (await ledger.runs.get(run.id)).reason) == (start, "")


async def test_one_run_at_a_time(ledger: Ledger, tmp_path: Path) -> None:
    """Many concurrent requests, even from two processes, start only one run.

    The next run can start only after that run has ended.
    """
    async with Ledger.open(tmp_path) as other:
        asked = [each.runs.start("command") for each in (ledger, other) * 4]
        results = await asyncio.gather(*asked, return_exceptions=True)
    (run,) = [result for result in results if not isinstance(result, BaseException)]
    assert all(isinstance(result, RunBusy) for result in results if result is not run)
    assert await ledger.runs.due() == await ledger.runs.active() == run
    await ledger.runs.move(run.id, RunState.TRAINING)
    with pytest.raises(RunBusy, match=f"Run {run.id} is training"):
        await ledger.runs.start("schedule")
    assert await ledger.runs.due() is None
    await ledger.runs.move(run.id, RunState.CANCELLED)
    assert await ledger.runs.active() is None
    following = await ledger.runs.start("schedule")
    assert [each.id for each in await ledger.runs.latest()] == [following.id, run.id]
    assert [each.id for each in await ledger.runs.latest(1)] == [following.id]


async def test_fields_of_a_run(ledger: Ledger) -> None:
    """A state change can set fields of the run; an unknown field or an unknown run is an error."""
    run = await ledger.runs.start("admin", 5)
    moved = await ledger.runs.move(run.id, RunState.TRAINING, raters=2, directory="/runs/1")
    assert (moved.raters, moved.directory, moved.requested_by, moved.trigger) == (2, "/runs/1", 5, "admin")
    assert await ledger.runs.get(run.id) == moved
    with pytest.raises(StorageError, match="Cannot set samples"):
        await ledger.runs.move(run.id, RunState.MERGING, samples=3)
    with pytest.raises(UnknownRecord, match="no run 99"):
        await ledger.runs.move(99, RunState.TRAINING)
    with pytest.raises(UnknownRecord, match="no run 99"):
        await ledger.runs.get(99)


async def test_progress(ledger: Ledger) -> None:
    """Progress is recorded until the run ends, and a report without a loss keeps the previous loss."""
    run = await ledger.runs.start("admin")
    await ledger.runs.progress(run.id, 1, 10, 2.5)
    await ledger.runs.progress(run.id, 2, 10, None, 7.5)
    noted = await ledger.runs.get(run.id)
    assert (noted.step, noted.loss, noted.seconds_left) == (2, 2.5, 7.5)
    assert (await ledger.runs.move(run.id, RunState.TRAINING)).seconds_left is None
    await ledger.runs.move(run.id, RunState.FAILED)
    await ledger.runs.progress(run.id, 9, 10, 0.1)
    assert ((await ledger.runs.get(run.id)).step, (await ledger.runs.get(run.id)).loss) == (2, 2.5)


async def test_cancelling(ledger: Ledger) -> None:
    """A cancellation request is visible to the process that executes the run, and is refused once the run ends."""
    run = await ledger.runs.start("admin")
    assert not await ledger.runs.cancel_requested(run.id)
    await ledger.runs.request_cancel(run.id)
    assert await ledger.runs.cancel_requested(run.id)
    await ledger.runs.move(run.id, RunState.CANCELLED)
    with pytest.raises(IllegalTransition, match="nothing to cancel"):
        await ledger.runs.request_cancel(run.id)
    with pytest.raises(UnknownRecord):
        await ledger.runs.cancel_requested(99)


async def test_a_selection_is_frozen(ledger: Ledger, tmp_path: Path) -> None:
    """A run's selection is stored only once, in order and with its size, and never partially.

    The database itself refuses changes to a stored selection.
    """
    session = await ledger.sessions.open(1, 1)
    ids = [(await ledger.exchanges.record(exchange(session, update))).id for update in range(3)]
    run = await ledger.runs.start("admin")
    with pytest.raises(StorageError, match="select again"):
        await ledger.run_selections.freeze(run.id, [(ids[0], "train"), (999, "train")])
    assert (await ledger.run_selections.of(run.id), (await ledger.runs.get(run.id)).samples) == ([], 0)
    rows = [(ids[2], "train"), (ids[0], "held_out"), (ids[1], "train")]
    await ledger.run_selections.freeze(run.id, rows)
    assert await ledger.run_selections.of(run.id) == rows
    frozen = await ledger.runs.get(run.id)
    assert (frozen.samples, frozen.held_out) == (2, 1)
    with pytest.raises(StorageError, match="already"):
        await ledger.run_selections.freeze(run.id, [(ids[0], "train")])
    with pytest.raises(UnknownRecord):
        await ledger.run_selections.freeze(99, rows)
    database = sqlite3.connect(tmp_path / FILE_NAME)
    try:
        with pytest.raises(sqlite3.IntegrityError, match="frozen"):
            database.execute("UPDATE run_selections SET split = 'train'")
    finally:
        database.close()


async def test_the_last_verdict_has_the_fingerprint_of_its_run(ledger: Ledger) -> None:
    """`last_verdict` returns the newest run that ended with a model, together with the run's fingerprint."""
    assert await ledger.runs.last_verdict() is None
    for mark, end in (("a", RunState.DONE), ("b", RunState.DONE), ("c", RunState.FAILED)):
        run = await ledger.runs.start("admin")
        await ledger.run_selections.freeze(run.id, [], mark)
        for state in (RunState.TRAINING, RunState.MERGING, RunState.EVALUATING, end):
            await ledger.runs.move(run.id, state)
    last = await ledger.runs.last_verdict()
    assert last is not None
    assert (last[0].id, last[1]) == (2, "b")


async def test_an_empty_selection_is_kept_as_empty(ledger: Ledger) -> None:
    """A run that found nothing to learn from has an empty selection."""
    run = await ledger.runs.start("admin")
    await ledger.run_selections.freeze(run.id, [])
    assert await ledger.run_selections.of(run.id) == []
