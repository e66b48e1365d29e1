"""Scheduled jobs, run by APScheduler with a persistent store.

The retrain job adds a run with the state "due" to the ledger, as `thumbtune retrain` does; `RunManager`
carries the run out. Once a day, old updates and stray files are removed and, if a retention time is set,
so are old answers without votes. A job that was due while the bot was down runs once when the bot starts
again.

The store pickles a job as a reference to its function, such as `bot.admin.schedule:request_run`, so the
functions must keep their names. A stored job acts on the schedule of the current process, because the
data folder may have moved since the job was stored.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.job import Job
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy import URL

from bot.admin.erasure import Erasure, ManyStrays
from bot.admin.notifications import Notifications
from bot.i18n import later
from storage.errors import RunBusy
from storage.ledger import Ledger
from training.run_plan import RunPlanner

RETRAIN = "retrain"
TIDY = "tidy"
EXPIRE = "expire"
STORE = "schedule.sqlite"
HANDLED_KEPT = timedelta(days=30)
DEATHS_KEPT = timedelta(days=30)

STRAYS = later(
    "{count} of {total} picture files aren't in the database, so I won't delete any of them. If the database was lost "
    'or comes from an old backup, stop me and restore the latest backup (see "Deploy it" in the README). If you don\'t '
    'need those files, run "thumbtune sweep".'
)

log = structlog.get_logger()


_present: Schedule | None = None
"""The schedule of this process, for the stored jobs."""


class _JobStore(SQLAlchemyJobStore):  # type: ignore[misc]
    """A job store that can also read jobs stored when this module was still called `bot.schedule`."""

    def _reconstitute_job(self, job_state: bytes) -> Job:
        values = pickle.loads(job_state)
        values["func"] = values["func"].replace("bot.schedule:", f"{__name__}:")
        return super()._reconstitute_job(pickle.dumps(values))


@dataclass(eq=False)
class Schedule:
    """The scheduled jobs, which run on the current event loop. A process has only one schedule.

    If `cron` is empty, runs start only on request. Exchanges without votes are deleted after
    `retention_days` days, or kept if `retention_days` is 0.
    """

    ledger: Ledger
    erasure: Erasure
    notices: Notifications
    planner: RunPlanner
    cron: str
    retention_days: int = 0

    def __post_init__(self) -> None:
        store = _JobStore(url=URL.create("sqlite", database=str(self.ledger.path.with_name(STORE))))
        self._scheduler = AsyncIOScheduler(
            jobstores={"default": store},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=UTC,
        )

    def start(self) -> None:
        """Start the scheduler.

        Every job is stored again, so that no job from an earlier version or another data folder remains.
        """
        global _present
        _present = self
        self._scheduler.start(paused=True)
        self.reschedule(self.cron)
        self._store(TIDY, tidy, IntervalTrigger(days=1, timezone=UTC), TIDY)
        daily = IntervalTrigger(days=1, timezone=UTC) if self.retention_days else None
        self._store(EXPIRE, expire, daily, f"{EXPIRE} after {self.retention_days} days", first=_now())
        self._scheduler.resume()

    def reschedule(self, cron: str) -> None:
        """Change the schedule of runs; if `cron` is empty, runs start only on request."""
        self.cron = cron
        trigger = CronTrigger.from_crontab(cron, timezone=UTC) if cron else None
        self._store(RETRAIN, request_run, trigger, cron)

    def _store(
        self,
        identity: str,
        job: Callable[..., Awaitable[None]],
        trigger: BaseTrigger | None,
        name: str,
        first: datetime | None = None,
    ) -> None:
        """Store a job, or remove the stored job if `trigger` is None.

        A stored job with the same `name` keeps its next run time, even a missed one, so the name must change
        whenever the trigger does. A new or renamed job first runs at `first` or, if `first` is None, when its
        trigger is due.
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
        """Return the time of the next run (UTC), or None if there is no schedule."""
        job: Job | None = self._scheduler.get_job(RETRAIN)
        return job.next_run_time if job else None

    async def request_run(self) -> None:
        """Add a due run to the ledger, unless another run is active or there is nothing new to learn from."""
        if same := await self.planner.unchanged_since():
            log.info("retraining is due, but there is nothing new", since=same.id)
            return
        try:
            run = await self.ledger.runs.start("schedule", None)
            log.info("retraining is due", run=run.id)
        except RunBusy:
            log.info("retraining is due, but another run is active")

    async def tidy(self) -> None:
        """Delete stray picture files, old records of decoder crashes, and handled updates too old to be resent."""
        await self.ledger.inbox.prune((_now() - HANDLED_KEPT).timestamp())
        await self.ledger.pictures.prune_decoder_deaths((_now() - DEATHS_KEPT).timestamp())
        try:
            await self.erasure.sweep()
        except ManyStrays as many:
            log.error("picture files are unknown to the ledger; none were deleted", count=many.count, total=many.total)
            await self.notices.alert("strays", STRAYS, count=many.count, total=many.total)

    async def expire(self) -> None:
        """Delete unrated exchanges older than the retention time, with their files."""
        gone = await self.ledger.personal_data.expire((_now() - timedelta(days=self.retention_days)).timestamp())
        await self.erasure.settle()
        log.info("unrated answers were deleted", days=self.retention_days, exchanges=gone)

    async def stop(self) -> None:
        """Stop the scheduler; its jobs stay in the store."""
        global _present
        self._scheduler.shutdown(wait=False)
        await asyncio.sleep(0)  # AsyncIOScheduler schedules its shutdown on the loop
        if _present is self:
            _present = None


async def request_run(*_: object) -> None:
    """Call `Schedule.request_run` on this process's schedule, if there is one.

    The arguments are ignored: jobs stored by earlier versions pass a folder.
    """
    if _present:
        await _present.request_run()


async def tidy(*_: object) -> None:
    """Call `Schedule.tidy` on this process's schedule, if there is one. Any arguments are ignored."""
    if _present:
        await _present.tidy()


async def expire(*_: object) -> None:
    """Call `Schedule.expire` on this process's schedule, if there is one. Any arguments are ignored."""
    if _present:
        await _present.expire()


def _now() -> datetime:
    return datetime.now(UTC)
