"""What happens by the clock: APScheduler jobs in a store that survives restarts.

Knows the cron text and nothing of training: when the time comes the job puts a run with state "due" into the
ledger, the same mailbox that `thumbtune retrain` uses, and the operations pick it up. A time missed while the bot
was down is caught up once. Once a day the inbox forgets what was handled long ago, and, where there is a retention
time, the ledger what nobody rated.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from apscheduler.job import Job
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import URL

from bot.forgetting import Forgetting
from storage.errors import RunBusy
from storage.ledger import Ledger

RETRAIN = "retrain"
TIDY = "tidy"
EXPIRE = "expire"
STORE = "schedule.sqlite"
HANDLED_KEPT = timedelta(days=30)

log = structlog.get_logger()


class Schedule:
    """The jobs on the running event loop; `cron` empty means to retrain only by command.

    `retention_days` is how long exchanges without votes are kept, 0 for ever.
    """

    def __init__(self, directory: Path, cron: str, retention_days: int = 0) -> None:
        self._directory = directory
        self.cron = cron
        self._retention_days = retention_days
        store = SQLAlchemyJobStore(url=URL.create("sqlite", database=str(directory / STORE)))
        self._scheduler = AsyncIOScheduler(
            jobstores={"default": store},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=UTC,
        )

    def start(self) -> None:
        """Start the scheduler. A job that already has this cron text is left alone: its missed time is still due."""
        self._scheduler.start(paused=True)
        kept: Job | None = self._scheduler.get_job(RETRAIN)
        if not self.cron:
            if kept:
                self._scheduler.remove_job(RETRAIN)
        elif kept is None or kept.name != self.cron:
            trigger = CronTrigger.from_crontab(self.cron, timezone=UTC)
            arguments = [str(self._directory)]
            self._scheduler.add_job(request_run, trigger, arguments, id=RETRAIN, name=self.cron, replace_existing=True)
        if self._scheduler.get_job(TIDY) is None:
            self._scheduler.add_job(tidy, "interval", [str(self._directory)], days=1, id=TIDY)
        self._schedule_expiry()
        self._scheduler.resume()

    def _schedule_expiry(self) -> None:
        """Once a day; a start after more than a day catches up. Another retention time replaces the job."""
        kept: Job | None = self._scheduler.get_job(EXPIRE)
        arguments = [str(self._directory), self._retention_days]
        if not self._retention_days:
            if kept:
                self._scheduler.remove_job(EXPIRE)
        elif kept is None or list(kept.args) != arguments:
            now = _now()
            self._scheduler.add_job(
                expire, "interval", arguments, days=1, id=EXPIRE, replace_existing=True, next_run_time=now
            )

    def next_time(self) -> datetime | None:
        """When the next run is due (UTC), None without a schedule."""
        job: Job | None = self._scheduler.get_job(RETRAIN)
        return job.next_run_time if job else None

    async def stop(self) -> None:
        """Stop the scheduler; its jobs stay in the store."""
        self._scheduler.shutdown(wait=False)
        await asyncio.sleep(0)  # AsyncIOScheduler only asks the loop to shut it down


async def request_run(directory: str) -> None:
    """Put a due run into the ledger in `directory`. A top-level function with plain arguments: the store pickles it."""
    async with Ledger.open(Path(directory)) as ledger:
        try:
            run = await ledger.start_run("schedule", None)
            log.info("retraining is due", run=run.id)
        except RunBusy:
            log.info("retraining is due, but a run is under way already")


async def tidy(directory: str) -> None:
    """Forget handled updates of long ago, which Telegram does not send again, and files that belong to nothing."""
    async with Ledger.open(Path(directory)) as ledger:
        await ledger.prune_updates((_now() - HANDLED_KEPT).timestamp())
        await Forgetting.beside(ledger, Path(directory)).sweep()


async def expire(directory: str, days: int) -> None:
    """Delete exchanges older than `days` that nobody rated, and what has to follow them."""
    folder = Path(directory)
    async with Ledger.open(folder) as ledger:
        gone = await ledger.expire((_now() - timedelta(days=days)).timestamp())
        await Forgetting.beside(ledger, folder).settle()
        log.info("unrated answers were deleted", days=days, exchanges=gone)


def _now() -> datetime:
    return datetime.now(UTC)
