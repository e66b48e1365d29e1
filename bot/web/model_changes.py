"""Changes and comparisons of models that an operator requests on the web page, one at a time.

Starting a model may take minutes. A change that takes longer than a moment continues in the background; a
page can show its progress and its outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from bot.admin.progress import ANSWERS, merging
from bot.admin.refusals import REFUSALS, RejectedModel, refused
from bot.i18n import Say
from storage.translatable_reason import Reason
from training.job import Progress

PATIENCE: Final = 1.0
"""How many seconds a request waits for the end of the change that it begins."""

UNEXPECTED: Final = Reason("an unexpected error; the bot's log has the details")

log = structlog.get_logger()

OnProgress = Callable[[Progress], None]
Work = Callable[[OnProgress], Awaitable[Reason]]
"""Carries out a change, reports the progress of a worker, and returns what was done, as a sentence."""


@dataclass(eq=False)
class Change:
    """A change or a comparison of models.

    Attributes:
        about: What is being done.
        path: The path of the form that requested it.
        live: The ID of the model that was live at the time.
        progress: The progress of a worker, if the change needs one.
        done: What was done; empty until the change has succeeded.
        refusal: Why nothing was done.
    """

    about: Reason
    path: str
    live: str
    progress: Progress | None = None
    done: str = ""
    refusal: Exception | None = None

    @property
    def over(self) -> bool:
        """Whether the change has ended."""
        return bool(self.done or self.refusal)

    @property
    def can_be_confirmed(self) -> bool:
        """Whether the change was refused only because the operator has not confirmed it."""
        return isinstance(self.refusal, RejectedModel)

    def text(self, say: Say) -> str:
        """Return what is being done or how the change ended, in words."""
        if self.refusal:
            return say(str(self.refusal)) if self.can_be_confirmed else refused(self.refusal, say)
        if self.done or not self.progress:
            return say(self.done or self.about)
        if self.progress.stage == "merging":
            return merging(self.progress, say)
        return f"{say(self.about)} {say(ANSWERS, done=self.progress.step, total=self.progress.steps)}"

    async def carry_out(self, work: Work) -> None:
        """Do the work and record the outcome."""
        try:
            self.done = await work(lambda progress: setattr(self, "progress", progress))
        except REFUSALS as refusal:
            self.refusal = refusal
        except Exception as error:
            log.exception("a model change failed")
            self.refusal = RuntimeError(UNEXPECTED)
            self.refusal.__cause__ = error


@dataclass(eq=False)
class ModelChanges:
    """Carries out one change at a time. `stop()` must be called at the end."""

    _latest: Change | None = field(default=None, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)

    async def begin(self, change: Change, work: Work) -> Change | None:
        """Begin a change and return None, or return the change that is in progress or was refused within a moment."""
        if self._latest and not self._latest.over:
            return self._latest
        self._latest = change
        self._task = asyncio.create_task(change.carry_out(work))
        await asyncio.wait((self._task,), timeout=PATIENCE)
        if change.refusal is None:
            return None
        if self._latest is change:
            self._latest = None
        return change

    def latest(self) -> Change | None:
        """Return the latest change, or None once its outcome has been returned."""
        change = self._latest
        if change and change.over:
            self._latest = None
        return change

    async def stop(self) -> None:
        """Cancel the change in progress, if there is one; the former live model then stays live."""
        if self._task:
            self._task.cancel()
            await asyncio.wait((self._task,))
