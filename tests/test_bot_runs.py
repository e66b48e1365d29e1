"""How runs end: written, told and followed up, whatever comes in between. The trainer is a fake, all else is real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from bot import operations as module
from bot.operations import INTERRUPTED, Operations
from storage.records import Run
from storage.states import RunState
from tests.children import until
from tests.ledgers import full_disk
from tests.operating import Admins, NoEngine, operations
from tests.pipelines import Room


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "MAILBOX_SECONDS", 0.02)
    yield


@pytest_asyncio.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """A filled room whose trainer waits in the training."""
    made = Room(tmp_path)
    await made.fill()
    made.trainer.hangs = "train"
    yield made
    await made.ledger.close()


@pytest.fixture
def admins() -> Admins:
    return Admins()


@pytest_asyncio.fixture
async def work(room: Room, admins: Admins) -> AsyncIterator[Operations]:
    """Operations over the room, started."""
    made = operations(room.ledger, room.pipeline(), admins=admins)
    await made.start()
    yield made
    await made.stop()


async def ended(room: Room, admins: Admins) -> Run:
    """The newest run, once the admins know its end."""
    (run,) = await room.ledger.runs(1)
    await until(lambda: any(told.id == run.id for told, _ in admins.told))
    return await room.ledger.run(run.id)


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_an_end_that_cannot_be_written_is_written_later(
    room: Room, work: Operations, admins: Admins, how: str
) -> None:
    """A full disk leaves no run under way for ever: with room again its end is written and told, and another begins."""
    await work.retrain(1)
    await room.trainer.hanging.wait()
    assert work._work is not None
    _, task = work._work
    with full_disk(room.ledger):
        if how == "fails":
            room.trainer.fails = "train"
            room.trainer.over.set()
        else:
            task.cancel()
        await asyncio.wait((task,))
        (run,) = await room.ledger.runs()
        assert (run.state, admins.told) == (RunState.TRAINING, [])
    run = await ended(room, admins)
    failed = (RunState.FAILED, "it rained")
    assert (run.state, run.reason) == (failed if how == "fails" else (RunState.CANCELLED, "cancelled"))
    room.trainer.hangs = room.trainer.fails = ""
    await work.retrain(1)
    assert (await ended(room, admins)).state is RunState.DONE
    assert [told.id for told, _ in admins.told] == [1, 2], "each once"


async def test_a_run_that_cannot_begin_is_tried_once(room: Room, admins: Admins) -> None:
    """A run that was due on a full disk fails; it is not begun again and again, which would pause the engine."""
    await room.ledger.start_run("command")
    begun: list[int] = []

    class Counted(NoEngine):
        @asynccontextmanager
        async def engine_away(self, run: int) -> AsyncIterator[None]:
            begun.append(run)
            yield

    looks: list[object] = []
    work = operations(room.ledger, room.pipeline(), Counted(room.ledger), admins)
    due_run = room.ledger.due_run

    async def counted() -> Run | None:
        looks.append(None)
        return await due_run()

    room.ledger.due_run = counted  # type: ignore[method-assign]
    with full_disk(room.ledger):
        await work.start()
        await until(lambda: begun and work._work and work._work[1].done())
        seen = len(looks)
        await until(lambda: len(looks) > seen + 2)
    run = await ended(room, admins)
    assert (run.state, run.reason) == (RunState.FAILED, "the disk is full")
    assert begun == [run.id]
    await work.stop()


async def test_the_bot_starts_on_a_full_disk(room: Room, admins: Admins) -> None:
    """A run that the last process left under way is ended, and told, as soon as that can be written."""
    left = await room.ledger.start_run("admin")
    await room.ledger.move_run(left.id, RunState.TRAINING)
    work = operations(room.ledger, room.pipeline(), admins=admins)
    with full_disk(room.ledger):
        await work.start()
        assert admins.told == []
    run = await ended(room, admins)
    assert (run.state, run.reason) == (RunState.FAILED, INTERRUPTED)
    await work.stop()
