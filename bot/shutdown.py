"""Shutdown in bounded time, with a limit for each step and one for the whole process.

Every acknowledged update is in the ledger, so nothing is lost if the shutdown is cut short: the next
start replays the unfinished updates.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, NoReturn

import structlog

SLOW_SECONDS: Final = 1.0
"""A step that takes longer than this is logged while it continues."""

ANSWER_SECONDS: Final = 3.0
"""The time for answers in flight to finish; other questions are handled again at the next start."""

STEP_SECONDS: Final = 1.5
ENGINE_SECONDS: Final = 2.5
"""The limit for the engine's step. An `inference.stop_timeout` above this has no effect, as config.toml says."""

PROCESS_SECONDS: Final = 7.5
THREAD_SECONDS: Final = 2.5
"""The time for Python to end threads and tasks after everything is closed. With PROCESS_SECONDS, the time to
close everything, this makes up the 10 s that `docker stop` waits before it kills the process."""

_LAST_SECONDS: Final = 0.5

log = structlog.get_logger()


class ShutdownSteps(AsyncExitStack):
    """The steps of a shutdown, carried out in the reverse order of their registration, each in bounded time."""

    def add(self, step: str, close: Callable[[], Awaitable[None]], seconds: float = STEP_SECONDS) -> None:
        """Register `close` as a step that may take up to `seconds` seconds."""
        self.push_async_callback(closed, step, close, seconds)

    def run_in_background(self, step: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start `work` as a task that is cancelled at shutdown, and return the task."""
        task = asyncio.create_task(work)
        self.add(step, lambda: cancel(task))
        return task


async def cancel(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def closed(step: str, close: Callable[[], Awaitable[None]], seconds: float = STEP_SECONDS) -> None:
    """Await `close()`, but cancel it and return if it takes longer than `seconds`.

    Exceptions raised by `close` are propagated.
    """
    began = time.monotonic()
    task = asyncio.ensure_future(close())
    done, _ = await asyncio.wait((task,), timeout=min(SLOW_SECONDS, seconds))
    if not done:
        log.info("still stopping", step=step, limit=seconds)
        done, _ = await asyncio.wait((task,), timeout=max(seconds - SLOW_SECONDS, 0))
    if not done:
        log.error("not stopped in time", step=step, seconds=round(time.monotonic() - began, 1))
        task.cancel()
        await asyncio.wait((task,), timeout=_LAST_SECONDS)
    elif not task.cancelled():
        task.result()


def end_process_within(seconds: float) -> None:
    """End this process within `seconds` seconds; a later call replaces the limit.

    Without a limit, this could take longer: threads cannot be cancelled, Python waits for all of them, and a
    cancelled task may continue. When the limit is reached, the process writes the stack of each thread to
    standard error and exits with status 1. Its child processes end as well (see
    inference/process/parent_watch.py).
    """
    faulthandler.dump_traceback_later(seconds, exit=True)


def end_process() -> NoReturn:
    """End this process with exit status 0, after everything is closed.

    Python's finalization is skipped: with a hundred thousand objects, it takes seconds on a busy machine,
    and cutting it short would count as a failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
