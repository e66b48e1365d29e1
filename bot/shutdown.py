"""The end of a process: one step after the other, none longer than it may take, and a last resort for all of them.

Everything that was acknowledged is in the ledger before, so an end that is cut short loses nothing: the next start
replays it. Knows time and names of steps, nothing of what is closed.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import structlog

SLOW_SECONDS: Final = 1.0
"""A step that takes longer is named in the log while it goes on."""

ANSWER_SECONDS: Final = 3.0
"""So long answers under way may be finished; the questions of the others are asked again at the next start."""

STEP_SECONDS: Final = 1.5
ENGINE_SECONDS: Final = 2.5
"""Told at `inference.stop_timeout` in config.toml: a longer one cannot take effect here."""

PROCESS_SECONDS: Final = 7.5
THREAD_SECONDS: Final = 2.5
"""Once all is closed: how long Python may wait for threads and tasks that nobody needs any more. Together with
PROCESS_SECONDS, in which all is closed, these are the 10 s that `docker stop` waits before it kills."""

_LAST_SECONDS: Final = 0.5

log = structlog.get_logger()


async def closed(step: str, close: Callable[[], Awaitable[None]], seconds: float = STEP_SECONDS) -> None:
    """Await `close()`; after `seconds` cancel it, leave it to itself and return. Raises what `close` raises."""
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
    """End this process, whatever hangs, at the latest in `seconds`; a later call sets another time.

    A thread cannot be cancelled, Python waits for every one, and a cancelled task may go on. Where the process is cut
    short it says on standard error where each thread stood, and exits with 1. Child processes go with it
    (inference/process/parent_watch.py).
    """
    faulthandler.dump_traceback_later(seconds, exit=True)


def end_process() -> NoReturn:
    """End this process with 0, now that all is closed and no thread is left that anybody waits for.

    Python would take everything apart before it ends, modules of a hundred thousand objects: on a machine with much to
    do that lasts for seconds and can only be cut short as a failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
