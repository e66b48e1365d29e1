"""Watch for an engine that crashes, a full disk and a run that reports no progress, and alert the admins.

A problem is reported when it begins; a crashing engine is reported at most once an hour. Admins are also notified when
the engine or the run has recovered. The service reports failed runs.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from bot.admin.notifications import Notifications
from bot.admin.progress import SILENT, silence
from bot.i18n import later
from inference.serving.deployment_status import Status
from inference.serving.supervisor import State
from training.launcher import LastProgress

LOOK_SECONDS: Final = 5.0
STEADY_LOOKS: Final = 6
"""Consecutive checks without a problem after which a crashing engine counts as recovered."""

CRASHED: Final = later("The engine crashed and is restarting. {reason}")
FAILING: Final = later("The engine won't start, so nobody gets answers. I'll keep trying. {reason}")
DISK_LOW: Final = later(
    "Only {free} GB are free on the disk of {folder}. Free up space, or I soon can't save answers and votes."
)
BACK: Final = later("The engine is back and answering again.")
GOES_ON: Final = later("Run {run} is making progress again.")

log = structlog.get_logger()


def _answers(status: Status) -> bool:
    """Return whether every engine that is not drained is ready."""
    states = [each.state for each in status.nodes if not each.drained] or [status.state]
    return all(state is State.READY for state in states)


class AlertWatch:
    """The background task that watches. Call `start()` once and `stop()` at the end."""

    def __init__(
        self,
        notices: Notifications,
        status: Callable[[], Status],
        last_progress: Callable[[], LastProgress | None],
        folder: Path,
        min_free_gigabytes: float,
    ) -> None:
        """`last_progress` returns that of the running worker; `folder` is on the disk to watch."""
        self._notices = notices
        self._status = status
        self._last_word = last_progress
        self._folder = folder
        self._least = min_free_gigabytes * 1e9
        self._crashes = 0
        self._failing = False
        self._told = False  # an alert about the engine was sent, and its recovery was not
        self._steady = 0  # consecutive checks without a problem
        self._low = False
        self._silent = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start watching."""
        self._task = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        """Stop watching."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _keep_looking(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # keep watching for the next problem
                log.exception("watch")
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Report what has changed since the last check."""
        await self._look_at_engine(self._status())
        if word := self._last_word():
            await self._look_at_run(word)
        free = shutil.disk_usage(self._folder).free
        low, self._low = self._low, free < self._least
        if self._low and not low:
            await self._notices.alert("disk", DISK_LOW, free=f"{free / 1e9:.1f}", folder=self._folder)

    async def _look_at_engine(self, status: Status) -> None:
        failing, self._failing = self._failing, status.state is State.FAILING
        crashes, self._crashes = self._crashes, status.counters.crashes
        reason = status.last_error.partition("\n")[0]
        if self._failing and not failing:
            self._told |= await self._notices.alert("engine failing", FAILING, reason=reason)
        elif self._crashes > crashes and not self._failing:
            self._told |= await self._notices.alert("engine crashed", CRASHED, reason=reason)
        self._steady = self._steady + 1 if _answers(status) and self._crashes == crashes else 0
        if self._told and self._steady >= STEADY_LOOKS:
            self._told = False
            await self._notices.notify(BACK)

    async def _look_at_run(self, word: LastProgress) -> None:
        silent, self._silent = self._silent, word.run if word.silent else ""
        if word.silent and silent != word.run:
            await self._notices.alert(f"silent:{word.run}", SILENT, **silence(word))
        elif silent == word.run and not word.silent:
            await self._notices.notify(GOES_ON, run=word.run)
