"""Alerts to the admins about a crashing engine, a full disk, and a run that reports no progress.

An alert is sent when a problem begins; a crashing engine is reported at most once an hour. Admins are
also notified when the engine has recovered or the run is making progress again. Failed runs are reported
by `RunManager`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from bot.admin.notifications import Notifications
from bot.admin.progress import SILENT, silence
from bot.i18n import later
from inference.serving.deployment_status import Status
from inference.serving.supervisor import State
from storage.ledger import Ledger
from training.launcher import LastProgress

STEADY_LOOKS: Final = 30
"""The number of consecutive checks without a problem after which a crashing engine counts as recovered."""

CRASHED: Final = later("The engine crashed and is restarting. {reason}")
FAILING: Final = later("The engine won't start, so nobody gets answers. I'll keep trying. {reason}")
DISK_LOW: Final = later(
    "Only {free} GB are free on the disk that holds {folder}. Free up space, or I'll soon be unable to save answers "
    "and votes."
)
UNSAVED: Final = later("I can't save anything right now. {reason}")
BACK: Final = later("The engine is back and answering again.")
GOES_ON: Final = later("Run {run} is making progress again.")


def _answers(status: Status) -> bool:
    """Return whether every engine is ready."""
    return all(each.state is State.READY for each in status.nodes)


@dataclass(eq=False)
class AlertWatch:
    """Watches for problems and alerts the admins; call `look()` periodically.

    `last_progress` returns how long ago the running worker last reported progress. The disk checked is the
    one that holds the ledger.
    """

    notices: Notifications
    status: Callable[[], Status]
    last_progress: Callable[[], LastProgress | None]
    ledger: Ledger
    min_free_gigabytes: float

    _crashes: int = field(default=0, init=False)
    _failing: bool = field(default=False, init=False)
    _told: bool = field(default=False, init=False)
    """Whether a crash of the engine has been reported, but not yet its recovery."""
    _steady: int = field(default=0, init=False)
    """The number of consecutive checks without a problem."""
    _low: bool = field(default=False, init=False)
    _silent: str = field(default="", init=False)

    async def look(self) -> None:
        """Check once, and report what has changed since the last check."""
        await self._look_at_engine(self.status())
        if word := self.last_progress():
            await self._look_at_run(word)
        if self.ledger.trouble:
            await self.notices.alert("ledger", UNSAVED, reason=self.ledger.trouble)
        folder = self.ledger.path.parent
        free = shutil.disk_usage(folder).free
        low, self._low = self._low, free < 1e9 * self.min_free_gigabytes
        if self._low and not low:
            await self.notices.alert("disk", DISK_LOW, free=f"{free / 1e9:.1f}", folder=folder)

    async def _look_at_engine(self, status: Status) -> None:
        failing, self._failing = self._failing, status.state is State.FAILING
        crashes, self._crashes = self._crashes, status.counters.crashes
        reason = status.last_error.partition("\n")[0]
        if self._failing and not failing:
            self._told |= await self.notices.alert("engine failing", FAILING, reason=reason)
        elif self._crashes > crashes and not self._failing:
            self._told |= await self.notices.alert("engine crashed", CRASHED, reason=reason)
        self._steady = self._steady + 1 if _answers(status) and self._crashes == crashes else 0
        if self._told and self._steady >= STEADY_LOOKS:
            self._told = False
            await self.notices.notify(BACK)

    async def _look_at_run(self, word: LastProgress) -> None:
        silent, self._silent = self._silent, word.run if word.silent else ""
        if word.silent and silent != word.run:
            await self.notices.alert(f"silent:{word.run}", SILENT, **silence(word))
        elif silent == word.run and not word.silent:
            await self.notices.notify(GOES_ON, run=word.run)
