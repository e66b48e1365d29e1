"""What follows the end of a run: it is recorded, admins are notified and the model goes live, even after failures.

The trainer is a fake.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from bot.admin import periodic
from bot.admin.run_manager import INTERRUPTED, RunManager
from inference.messages import EngineUnavailable
from storage.learning_records import Actor, Model, Run
from storage.state_machines import ModelState, RunState
from tests.support.children import until
from tests.support.ledgers import full_disk
from tests.support.operating import Admins, NoEngine, serving
from tests.support.pipelines import Room
from training.pipeline import WITHDRAWN


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(periodic, "PAUSE_SECONDS", 0.02)
    yield


@pytest_asyncio.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """Yield a `Room` that has liked answers and a fake trainer that hangs during training."""
    made = Room(tmp_path)
    await made.fill()
    made.trainer.hangs = "train"
    yield made
    await made.ledger.close()


@pytest.fixture
def admins() -> Admins:
    return Admins()


@pytest_asyncio.fixture
async def work(room: Room, admins: Admins) -> AsyncIterator[RunManager]:
    """The `RunManager` service with its background loops running."""
    async with serving(room.ledger, room.pipeline(), admins=admins) as made:
        yield made


async def ended(room: Room, admins: Admins) -> Run:
    """Wait until the admins are notified of the end of the newest run, and return that run."""
    (run,) = await room.ledger.runs.latest(1)
    await until(lambda: any(told.id == run.id for told, _ in admins.told))
    return await room.ledger.runs.get(run.id)


async def idle(work: RunManager) -> None:
    """Wait until no run is active and the last run's follow-up is complete."""
    await until(lambda: work._work is None)


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_an_end_that_cannot_be_written_is_written_later(
    room: Room, work: RunManager, admins: Admins, how: str
) -> None:
    """If the disk is full when a run ends, the end is recorded and reported once the disk has room.

    After that, another run can start.
    """
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
        (run,) = await room.ledger.runs.latest()
        assert (run.state, admins.told) == (RunState.TRAINING, [])
    run = await ended(room, admins)
    failed = (RunState.FAILED, "it rained")
    assert (run.state, run.reason) == (failed if how == "fails" else (RunState.CANCELLED, "cancelled"))
    room.trainer.hangs = room.trainer.fails = ""
    await work.retrain(1)
    assert (await ended(room, admins)).state is RunState.DONE
    assert [told.id for told, _ in admins.told] == [1, 2], "each once"


async def test_a_run_that_cannot_begin_is_tried_once(room: Room, admins: Admins) -> None:
    """A run due while the disk is full fails; it is not retried, since each attempt would pause the engine."""
    await room.ledger.runs.start("command")
    begun: list[int] = []

    class Counted(NoEngine):
        @asynccontextmanager
        async def engine_away(self, run: int) -> AsyncIterator[None]:
            begun.append(run)
            yield

    looks: list[object] = []
    due_run = room.ledger.runs.due

    async def counted() -> Run | None:
        looks.append(None)
        return await due_run()

    room.ledger.runs.due = counted  # type: ignore[method-assign]
    async with AsyncExitStack() as stack:
        with full_disk(room.ledger):
            work = await stack.enter_async_context(serving(room.ledger, room.pipeline(), Counted(room.ledger), admins))
            await until(lambda: begun and work._over)
            seen = len(looks)
            await until(lambda: len(looks) > seen + 2)
        run = await ended(room, admins)
        assert (run.state, run.reason) == (RunState.FAILED, "the disk is full")
        assert begun == [run.id]


async def test_the_bot_starts_on_a_full_disk(room: Room, admins: Admins) -> None:
    """The bot starts even if the disk is full.

    An interrupted run is ended and reported once its end can be recorded.
    """
    left = await room.ledger.runs.start("admin")
    await room.ledger.runs.move(left.id, RunState.TRAINING)
    async with AsyncExitStack() as stack:
        with full_disk(room.ledger):
            await stack.enter_async_context(serving(room.ledger, room.pipeline(), admins=admins))
            assert admins.told == []
        run = await ended(room, admins)
        assert (run.state, run.reason) == (RunState.FAILED, INTERRUPTED)


@pytest.mark.parametrize("why", ["/cancel", "everybody leaves"])
async def test_a_cancellation_while_the_model_is_published_is_too_late(
    room: Room, work: RunManager, admins: Admins, why: str
) -> None:
    """A run that is cancelled while its model is being published completes, and the model goes live.

    If users delete the data that the run used, the model does not go live and another run starts without
    the data.
    """
    publishing, go_on = asyncio.Event(), threading.Event()
    loop, publish = asyncio.get_running_loop(), room.models.publish

    def slowly(built: Path, name: str) -> tuple[Path, str]:
        loop.call_soon_threadsafe(publishing.set)
        go_on.wait()
        return publish(built, name)

    room.models.publish = slowly  # type: ignore[method-assign]
    room.trainer.hangs = ""
    first = await work.retrain(1)
    await publishing.wait()
    assert work._work is not None
    _, task = work._work
    cancel, cancelled = task.cancel, asyncio.Event()

    def noted(msg: Any | None = None) -> bool:
        cancelled.set()
        return cancel(msg)

    task.cancel = noted  # type: ignore[method-assign]
    await (work.cancel(1) if why == "/cancel" else room.ledger.personal_data.erase(1))
    await cancelled.wait()
    go_on.set()
    await until(lambda: admins.told)
    ((run, model), *_) = admins.told
    assert model is not None
    assert (run.id, run.state) == (first.id, RunState.DONE)
    if why == "/cancel":
        assert model.state is ModelState.LIVE
    else:
        assert (model.state, model.reason) == (ModelState.REJECTED, WITHDRAWN)
        await until(lambda: len(admins.told) == 2)
        (again, _) = admins.told[1]
        assert "Not enough yet: 0 liked answers" in again.reason


async def test_a_run_cancelled_by_an_opt_out_restarts(room: Room, work: RunManager, admins: Admins) -> None:
    """A run cancelled by an opt-out restarts, even if the user has opted in again before the run ends."""
    await work.retrain(1)
    await room.trainer.hanging.wait()
    room.trainer.hangs = ""
    await asyncio.gather(room.ledger.people.set_opted_out(1, True), room.ledger.people.set_opted_out(1, False))
    await until(lambda: len(admins.told) == 2)
    assert [run.state for run, _ in admins.told] == [RunState.CANCELLED, RunState.DONE]


async def test_a_limited_run_restarts_with_its_limit(room: Room, work: RunManager, admins: Admins) -> None:
    """A run on selected answers that restarts without withdrawn ones still learns from selected answers only."""
    await room.like(500, "brown")
    await work.retrain(None, only=frozenset(range(1, 11)))
    await room.trainer.hanging.wait()
    room.trainer.hangs = ""
    await asyncio.gather(room.ledger.people.set_opted_out(1, True), room.ledger.people.set_opted_out(1, False))
    await until(lambda: len(admins.told) == 2)
    for run, _ in admins.told:
        assert (run.trigger, run.limited) == ("web", True)
    assert {each for each, _ in await room.ledger.run_selections.of(2)} == set(range(1, 11))


async def test_what_a_stop_leaves_of_the_end_of_a_run_is_done_by_the_next_start(room: Room, admins: Admins) -> None:
    """If the bot stops during a switch to an accepted model, the next start completes and reports it once."""
    at = asyncio.Event()

    class Slow(NoEngine):
        async def promote(self, model: str, by: Actor | None, *_: Any) -> Model:
            at.set()
            await asyncio.Event().wait()
            raise AssertionError("stopped before")

    room.trainer.hangs = ""
    async with serving(room.ledger, room.pipeline(), Slow(room.ledger), admins) as first:
        await first.retrain(1)
        await at.wait()
    assert admins.told == []
    for _ in range(2):
        async with serving(room.ledger, room.pipeline(), admins=admins) as work:
            await until(lambda: admins.told)
            await idle(work)
            ((run, model),) = admins.told
            assert (run.state, model and model.state) == (RunState.DONE, ModelState.LIVE)


async def test_a_model_that_does_not_come_up_is_not_tried_at_each_start(room: Room, admins: Admins) -> None:
    """A model that fails to start stays a candidate; admins get the reason, and a restart does not retry it."""

    class Broken(NoEngine):
        async def promote(self, model: str, by: Actor | None, *_: Any) -> Model:
            raise EngineUnavailable("these weights are no good")

    room.trainer.hangs = ""
    for _ in range(2):
        async with serving(room.ledger, room.pipeline(), Broken(room.ledger), admins) as work:
            if not admins.told:
                await work.retrain(1)
            await until(lambda: admins.told)
            await idle(work)
    ((_, model),) = admins.told
    assert model is not None and model.state is ModelState.CANDIDATE
    assert admins.alerts == ["swap:run-1"]


async def test_a_change_of_model_from_elsewhere_holds_up_no_run(room: Room, admins: Admins) -> None:
    """While a model switch is in progress, a run can start and be cancelled."""
    changing = asyncio.Event()

    class Slow(NoEngine):
        async def serve(self) -> None:
            changing.set()
            await asyncio.Event().wait()

    async with serving(room.ledger, room.pipeline(), Slow(room.ledger), admins):
        await changing.wait()
        run = await room.ledger.runs.start("command")
        await room.trainer.hanging.wait()
        await room.ledger.runs.request_cancel(run.id)
        assert (await ended(room, admins)).state is RunState.CANCELLED


async def test_an_error_that_stays_is_logged_and_told_once(
    room: Room, admins: Admins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing background step is retried without blocking runs, and its error is reported once.

    The error is reported again only if the step has succeeded in between.
    """
    monkeypatch.setattr(periodic, "BACKOFF_SECONDS", 0.02)
    tries: list[object] = []
    wrong = True

    class Broken(NoEngine):
        async def serve(self) -> None:
            tries.append(None)
            if wrong:
                raise OSError("train.json cannot be read")

    with capture_logs() as logs:
        async with serving(room.ledger, room.pipeline(), Broken(room.ledger), admins) as work:
            await until(lambda: len(tries) > 5)
            await work.retrain(1)
            await room.trainer.hanging.wait()
            wrong = False
            seen = len(tries)
            await until(lambda: len(tries) > seen + 1)
            wrong = True
            seen = len(tries)
            await until(lambda: len(tries) > seen + 2)
    assert [each["duty"] for each in logs if each["event"] == "background loop failed"] == ["promotions", "promotions"]
    assert admins.alerts == ["mailbox:promotions"] * 2, "of which notices send one an hour"


def test_the_pause_grows_with_the_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause between retries grows from one second to thirty."""
    monkeypatch.setattr(periodic, "PAUSE_SECONDS", 1.0)
    assert [periodic.pause_after(failures) for failures in (0, 1, 2, 5, 1_000_000)] == [1, 2, 4, 30, 30]
