"""How a run is going, noted in its row of the ledger and told to whoever watches.

Knows how often is enough. What the changes of a run's state are, and when they come, is the pipeline's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from storage.errors import StorageError
from storage.ledger import Ledger
from storage.records import Run
from training.job import Progress

OnChange = Callable[[Run], Awaitable[None]]

_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class Reporter:
    """Takes progress as it comes and passes the newest on, about once a second, to the ledger and whoever watches."""

    def __init__(self, ledger: Ledger, run: int, on_change: OnChange) -> None:
        self._ledger = ledger
        self._run = run
        self._on_change = on_change
        self._newest: Progress | None = None
        self._task: asyncio.Task[None] | None = None

    def __call__(self, progress: Progress) -> None:
        """Note how far a worker is. For the trainer; called in the event loop."""
        self._newest = progress

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._report())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_SECONDS)
            progress, self._newest = self._newest, None
            if progress is not None and progress.steps:
                try:
                    await self._ledger.runs.progress(
                        self._run, progress.step, progress.steps, progress.loss, progress.seconds_left
                    )
                    await told(self._on_change, await self._ledger.runs.get(self._run))
                except StorageError as error:
                    log.warning("progress of run %s was not noted: %s", self._run, error)


async def told(on_change: OnChange, run: Run) -> None:
    """Tell of a change. Whoever listens may fail without failing the run."""
    try:
        await on_change(run)
    except Exception:
        log.exception("nobody could be told about run %s", run.id)
