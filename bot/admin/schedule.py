"""Jobs by the clock: APScheduler, with a store that survives restarts.

When its time comes, the retrain job puts a run with the state "due" into the ledger, as `thumbtune retrain` does; the
operations take it from there. Once a day handled updates and stray files are removed and, with a retention time,
answers without votes. A time missed while the bot was down is caught up once.

The store pickles a job as a reference to its function, such as `bot.admin.schedule:request_run`, so the functions keep
their names. A job works for the schedule that runs in this process: nothing in the store names a data folder, which may
have moved since.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog
from apscheduler.job import Job
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy import URL

from bot.admin.erasure import Forgetting, ManyStrays
from bot.i18n import later
from storage.errors import RunBusy
from storage.ledger import Ledger

RETRAIN = "retrain"
TIDY = "tidy"
EXPIRE = "expire"
STORE = "schedule.sqlite"
HANDLED_KEPT = timedelta(days=30)
DEATHS_KEPT = timedelta(days=30)

STRAYS = later(
    "{count} of {total} picture files aren't in the ledger, so I won't delete any of them. If the ledger was lost "
    "or comes from an old backup, stop me and restore the latest backup (README, Run it for good). If you don't "
    "need those files, run thumbtune sweep."
)

log = structlog.get_logger()


_present: Schedule | None = None
"""The schedule that runs in this process: what a stored reference to a function can reach."""


class Alert(Protocol):
    """Tells the admins of trouble in a sentence of the catalogues (`Notices.alert`)."""

    async def __call__(self, key: str, sentence: str, **values: object) -> object: ...


class _JobStore(SQLAlchemyJobStore):  # type: ignore[misc]
    """A job store that also reads the jobs of releases in which this module was `bot.schedule`."""

    def _reconstitute_job(self, job_state: bytes) -> Job:
        values = pickle.loads(job_state)
        values["func"] = values["func"].replace("bot.schedule:", f"{__name__}:")
        return super()._reconstitute_job(pickle.dumps(values))


class Schedule:
    """The jobs on the running event loop; one schedule a process. `cron` empty means to retrain only by command.

    `retention_days` is how long exchanges without votes are kept, 0 for ever.
    """

    def __init__(
        self,
        directory: Path,
        ledger: Ledger,
        forgetting: Forgetting,
        alert: Alert,
        cron: str,
        retention_days: int = 0,
    ) -> None:
        self._ledger = ledger
        self._forgetting = forgetting
        self._alert = alert
        self.cron = cron
        self._retention_days = retention_days
        store = _JobStore(url=URL.create("sqlite", database=str(directory / STORE)))
        self._scheduler = AsyncIOScheduler(
            jobstores={"default": store},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=UTC,
        )

    def start(self) -> None:
        """Start the scheduler. Every job is stored again, so that none of an earlier version or folder is left."""
        global _present
        _present = self
        self._scheduler.start(paused=True)
        cron = CronTrigger.from_crontab(self.cron, timezone=UTC) if self.cron else None
        self._store(RETRAIN, request_run, cron, self.cron)
        self._store(TIDY, tidy, IntervalTrigger(days=1, timezone=UTC), TIDY)
        daily = IntervalTrigger(days=1, timezone=UTC) if self._retention_days else None
        self._store(EXPIRE, expire, daily, f"{EXPIRE} after {self._retention_days} days", first=_now())
        self._scheduler.resume()

    def _store(
        self,
        identity: str,
        job: Callable[..., Awaitable[None]],
        trigger: BaseTrigger | None,
        name: str,
        first: datetime | None = None,
    ) -> None:
        """Store a job, or remove it where it has no trigger.

        Under the same `name` as before it keeps its next time, also one that was missed; another name says that its
        trigger has changed. A job that is new runs at the time `first`, by default when its trigger says.
        """
        kept: Job | None = self._scheduler.get_job(identity)
        if trigger is None:
            if kept:
                self._scheduler.remove_job(identity)
            return
        when = kept.next_run_time if kept and kept.name == name else first
        due = {"next_run_time": when} if when else {}
        self._scheduler.add_job(job, trigger, id=identity, name=name, replace_existing=True, **due)

    def next_time(self) -> datetime | None:
        """When the next run is due (UTC), None without a schedule."""
        job: Job | None = self._scheduler.get_job(RETRAIN)
        return job.next_run_time if job else None

    async def request_run(self) -> None:
        """Put a due run into the ledger, unless another one has not ended yet."""
        try:
            run = await self._ledger.runs.start("schedule", None)
            log.info("retraining is due", run=run.id)
        except RunBusy:
            log.info("retraining is due, but another run has not ended yet")

    async def tidy(self) -> None:
        """Forget handled updates of long ago, which Telegram does not send again, and files that belong to nothing."""
        await self._ledger.inbox.prune((_now() - HANDLED_KEPT).timestamp())
        await self._ledger.pictures.prune_decoder_deaths((_now() - DEATHS_KEPT).timestamp())
        try:
            await self._forgetting.sweep()
        except ManyStrays as many:
            log.error("picture files are unknown to the ledger; none is deleted", count=many.count, total=many.total)
            await self._alert("strays", STRAYS, count=many.count, total=many.total)

    async def expire(self) -> None:
        """Delete exchanges older than the retention time that nobody rated, and what has to follow them."""
        gone = await self._ledger.personal_data.expire((_now() - timedelta(days=self._retention_days)).timestamp())
        await self._forgetting.settle()
        log.info("unrated answers were deleted", days=self._retention_days, exchanges=gone)

    async def stop(self) -> None:
        """Stop the scheduler; its jobs stay in the store."""
        global _present
        self._scheduler.shutdown(wait=False)
        await asyncio.sleep(0)  # AsyncIOScheduler only asks the loop to shut it down
        if _present is self:
            _present = None


async def request_run(*_: object) -> None:
    """Call `Schedule.request_run`. Jobs stored by earlier versions pass a folder, which is ignored, as below."""
    if _present:
        await _present.request_run()


async def tidy(*_: object) -> None:
    """Call `Schedule.tidy`."""
    if _present:
        await _present.tidy()


async def expire(*_: object) -> None:
    """Call `Schedule.expire`."""
    if _present:
        await _present.expire()


def _now() -> datetime:
    return datetime.now(UTC)
