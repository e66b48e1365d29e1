"""The schedule: persistent, one run at a time, a missed time caught up once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from bot.schedule import RETRAIN, STORE, Schedule, request_run, tidy
from storage.ledger import Ledger
from storage.states import RunState

YEARLY = "0 0 1 1 *"
DAILY = "30 3 * * *"


async def _let_it_be_missed(folder: Path) -> None:
    """Set the stored next time of the retrain job back by three days, as if the bot had been down since."""
    store = SQLAlchemyJobStore(url=f"sqlite:///{folder / STORE}")
    scheduler = AsyncIOScheduler(jobstores={"default": store})
    scheduler.start(paused=True)
    scheduler.modify_job(RETRAIN, next_run_time=datetime.now(UTC) - timedelta(days=3))
    scheduler.shutdown()
    await asyncio.sleep(0)


async def _runs(folder: Path) -> int:
    async with Ledger.open(folder) as ledger:
        return len(await ledger.runs(100))


async def _until_runs(folder: Path, number: int) -> None:
    async with asyncio.timeout(20):
        while await _runs(folder) < number:
            await asyncio.sleep(0.05)


async def test_the_job_survives_a_restart(tmp_path: Path) -> None:
    """A second process finds the job of the first, at the same time, whatever the folder is called."""
    folder = tmp_path / "what? #1 50%25"
    folder.mkdir()
    first = Schedule(folder, DAILY)
    first.start()
    planned = first.next_time()
    await first.stop()
    assert [each.name for each in folder.iterdir()] == [STORE]
    second = Schedule(folder, DAILY)
    second.start()
    assert planned is not None
    assert second.next_time() == planned
    await second.stop()


async def test_missed_times_are_caught_up_once(tmp_path: Path) -> None:
    """After three days down, a daily job fires once at the start and then keeps to its hour."""
    before = Schedule(tmp_path, DAILY)
    before.start()
    await before.stop()
    await _let_it_be_missed(tmp_path)
    after = Schedule(tmp_path, DAILY)
    after.start()
    await _until_runs(tmp_path, 1)
    next_time = after.next_time()
    await after.stop()
    assert next_time is not None and next_time > datetime.now(UTC)
    async with Ledger.open(tmp_path) as ledger:
        (run,) = await ledger.runs(10)
    assert (run.trigger, run.state) == ("schedule", RunState.DUE)


async def test_no_second_run_while_one_is_under_way(tmp_path: Path) -> None:
    """When the time comes during a run, nothing is queued behind it."""
    await request_run(str(tmp_path))
    await request_run(str(tmp_path))
    assert await _runs(tmp_path) == 1


async def test_another_cron_text_replaces_the_job(tmp_path: Path) -> None:
    """Changing the setting changes the time; taking it away removes the job."""
    first = Schedule(tmp_path, DAILY)
    first.start()
    await first.stop()
    second = Schedule(tmp_path, YEARLY)
    second.start()
    planned = second.next_time()
    await second.stop()
    assert planned is not None and (planned.month, planned.day) == (1, 1)
    third = Schedule(tmp_path, "")
    third.start()
    assert third.next_time() is None
    await third.stop()


async def test_the_inbox_is_tidied(tmp_path: Path) -> None:
    """What was handled long ago is forgotten, what waits is kept however old."""
    long_ago = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    async with Ledger.open(tmp_path, clock=lambda: long_ago) as ledger:
        for update in (1, 2):
            await ledger.store_updates([(update, "lane", "{}")])
        await ledger.begin_update(1)
        await ledger.finish_update(1)
    await tidy(str(tmp_path))
    async with Ledger.open(tmp_path) as ledger:
        assert [each.id for each in await ledger.pending_updates()] == [2]
        assert await ledger.store_updates([(1, "lane", "{}")]) == [True], "forgotten, so it is new again"
