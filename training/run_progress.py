"""Record the progress of a run in the ledger, and report it to a callback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final, Self

from storage.errors import StorageError
from storage.learning_records import Run
from storage.ledger import Ledger
from storage.state_machines import RunState
from training.job import Progress

OnChange = Callable[[Run], Awaitable[None]]

_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class RunProgress:
    """The state and the progress of one run.

    Used as a context manager, the object records the newest progress about once a second. Errors raised by
    the callback are logged and do not fail the run.
    """

    def __init__(self, ledger: Ledger, run: int, on_change: OnChange) -> None:
        self._ledger = ledger
        self._run = run
        self._on_change = on_change
        self._newest: Progress | None = None
        self._task: asyncio.Task[None] | None = None
        self._moved = monotonic()

    @property
    def seconds(self) -> float:
        """The number of seconds since the run moved to its current state."""
        return monotonic() - self._moved

    async def move(self, state: RunState, **changes: Any) -> Run:
        """Move the run to another state, report the change, and return the run.

        The errors raised are those of `Ledger.runs.move`.
        """
        run = await self._ledger.runs.move(self._run, state, **changes)
        self._moved = monotonic()
        await self._report(run)
        return run

    def update(self, progress: Progress) -> None:
        """Store the newest progress of a worker, if it has steps. Call this method from the event loop."""
        if progress.steps:
            self._newest = progress

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._record_periodically())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _record_periodically(self) -> None:
        while True:
            await asyncio.sleep(_SECONDS)
            progress, self._newest = self._newest, None
            if progress is not None:
                try:
                    await self._ledger.runs.progress(
                        self._run, progress.step, progress.steps, progress.loss, progress.seconds_left
                    )
                    await self._report(await self._ledger.runs.get(self._run))
                except StorageError as error:
                    log.warning("progress of run %s was not recorded: %s", self._run, error)

    async def _report(self, run: Run) -> None:
        try:
            await self._on_change(run)
        except Exception:
            log.exception("progress of run %s was not reported", run.id)
