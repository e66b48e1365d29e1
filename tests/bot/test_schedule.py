"""The schedule: jobs persist, runs do not overlap, and a single run makes up for all missed ones.

Jobs work in the current data folder, even if the folder has moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from structlog.testing import capture_logs

from bot.admin.erasure import Erasure
from bot.admin.schedule import EXPIRE, RETRAIN, STORE, TIDY, Schedule, expire, request_run, tidy
from storage.learning_records import Run
from storage.ledger import FILE_NAME, Ledger
from storage.state_machines import RunState
from tests.support.operating import Admins, News

YEARLY = "0 0 1 1 *"
DAILY = "30 3 * * *"


@asynccontextmanager
async def _schedule(folder: Path, cron: str, retention_days: int = 0) -> AsyncIterator[Schedule]:
    """Run a schedule with the ledger in `folder`, and yield the schedule."""
    async with Ledger.open(folder) as ledger:
        schedule = Schedule(
            ledger, Erasure(ledger), cast(Any, Admins()), cast(Any, News()), cron=cron, retention_days=retention_days
        )
        schedule.start()
        try:
            yield schedule
        finally:
            await schedule.stop()


async def _stored_by_an_earlier_version(folder: Path, elsewhere: Path) -> None:
    """Write a job store like that of thumbtune 0.1.0, whose jobs refer to the folder `elsewhere`.

    All the jobs are overdue.
    """
    store = SQLAlchemyJobStore(url=f"sqlite:///{folder / STORE}")
    scheduler = AsyncIOScheduler(jobstores={"default": store}, timezone=UTC)
    scheduler.start(paused=True)
    missed = datetime.now(UTC) - timedelta(days=3)
    for job, identity, name, arguments in (
        (request_run, RETRAIN, DAILY, [str(elsewhere)]),
        (tidy, TIDY, TIDY, [str(elsewhere)]),
        (expire, EXPIRE, EXPIRE, [str(elsewhere), 30]),
    ):
        scheduler.add_job(job, "interval", arguments, days=1, id=identity, name=name, next_run_time=missed)
    scheduler.shutdown()
    await asyncio.sleep(0)


async def _let_it_be_missed(folder: Path) -> None:
    """Make the stored retrain job three days overdue, as if the bot had been down."""
    store = SQLAlchemyJobStore(url=f"sqlite:///{folder / STORE}")
    scheduler = AsyncIOScheduler(jobstores={"default": store})
    scheduler.start(paused=True)
    scheduler.modify_job(RETRAIN, next_run_time=datetime.now(UTC) - timedelta(days=3))
    scheduler.shutdown()
    await asyncio.sleep(0)


async def _runs(folder: Path) -> int:
    async with Ledger.open(folder) as ledger:
        return len(await ledger.runs.latest(100))


async def _until_runs(folder: Path, number: int) -> None:
    async with asyncio.timeout(20):
        while await _runs(folder) < number:
            await asyncio.sleep(0.05)


async def test_the_job_survives_a_restart(tmp_path: Path) -> None:
    """A restart keeps the stored job and its next run time, whatever characters the folder's name contains."""
    folder = tmp_path / "what? #1 50%25"
    async with _schedule(folder, DAILY) as first:
        planned = first.next_time()
    assert sorted(each.name for each in folder.iterdir()) == [FILE_NAME, "pictures", STORE]
    async with _schedule(folder, DAILY) as second:
        assert planned is not None
        assert second.next_time() == planned


async def test_missed_times_are_caught_up_once(tmp_path: Path) -> None:
    """After three days of downtime, a daily job runs once at startup and then keeps to its usual hour."""
    async with _schedule(tmp_path, DAILY):
        pass
    await _let_it_be_missed(tmp_path)
    async with _schedule(tmp_path, DAILY) as after:
        await _until_runs(tmp_path, 1)
        next_time = after.next_time()
    assert next_time is not None and next_time > datetime.now(UTC)
    async with Ledger.open(tmp_path) as ledger:
        (run,) = await ledger.runs.latest(10)
    assert (run.trigger, run.state) == ("schedule", RunState.DUE)


async def test_without_news_no_run_is_requested(tmp_path: Path) -> None:
    """If nothing has changed since the last run, the schedule requests no run and logs the last run's ID."""
    async with _schedule(tmp_path, DAILY) as schedule:
        schedule.planner = cast(Any, News(Run(4, RunState.DONE, "admin", None, 1.0, 1.0)))
        with capture_logs() as events:
            await request_run()
        assert [(each["event"], each["since"]) for each in events] == [
            ("retraining is due, but there is nothing new", 4)
        ]
        assert await _runs(tmp_path) == 0
        schedule.planner = cast(Any, News())
        await request_run()
        assert await _runs(tmp_path) == 1


async def test_jobs_of_a_folder_that_has_moved_work_in_the_new_one(tmp_path: Path) -> None:
    """Jobs that name a former data folder work on the current one and create nothing at the old path."""
    here, before = tmp_path / "here", tmp_path / "before"
    here.mkdir()
    long_ago = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    async with Ledger.open(here, clock=lambda: long_ago) as ledger:
        await ledger.inbox.store([(1, "lane", "{}")])
        await ledger.inbox.begin(1)
        await ledger.inbox.finish(1)
        await ledger.inbox.store([(2, "lane", "{}")])
    await _stored_by_an_earlier_version(here, before)
    async with _schedule(here, DAILY, retention_days=30):
        await _until_runs(here, 1)
        async with Ledger.open(here) as ledger, asyncio.timeout(20):
            while (await ledger.inbox.store([(1, "lane", "{}")])) != [True]:  # tidy has forgotten it: new again
                await asyncio.sleep(0.05)
    assert not before.exists()


async def test_a_job_without_a_running_schedule_does_nothing(tmp_path: Path) -> None:
    """Without a running schedule, a job neither opens nor creates the folder that it names."""
    await request_run(str(tmp_path / "gone"))
    await tidy(str(tmp_path / "gone"))
    await expire(str(tmp_path / "gone"), 30)
    assert list(tmp_path.iterdir()) == []


async def test_no_second_run_while_one_has_not_ended(tmp_path: Path) -> None:
    """The schedule does not queue a second run until the first has ended."""
    async with _schedule(tmp_path, ""):
        await request_run()
        await request_run()
    assert await _runs(tmp_path) == 1


async def test_another_cron_text_replaces_the_job(tmp_path: Path) -> None:
    """Changing the cron setting reschedules the job; clearing the setting removes the job."""
    async with _schedule(tmp_path, DAILY):
        pass
    async with _schedule(tmp_path, YEARLY) as second:
        planned = second.next_time()
    assert planned is not None and (planned.month, planned.day) == (1, 1)
    async with _schedule(tmp_path, "") as third:
        assert third.next_time() is None


async def test_the_inbox_is_tidied(tmp_path: Path) -> None:
    """The daily cleanup deletes updates handled long ago and keeps pending ones regardless of age."""
    long_ago = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    async with Ledger.open(tmp_path, clock=lambda: long_ago) as ledger:
        for update in (1, 2):
            await ledger.inbox.store([(update, "lane", "{}")])
        await ledger.inbox.begin(1)
        await ledger.inbox.finish(1)
        await Schedule(ledger, Erasure(ledger), cast(Any, Admins()), cast(Any, News()), cron="").tidy()
        assert [each.id for each in await ledger.inbox.pending()] == [2]
        assert await ledger.inbox.store([(1, "lane", "{}")]) == [True], "forgotten, so it is new again"
