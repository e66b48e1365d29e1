"""Coroutines as tasks: one that runs beside other work, and one that a cancellation does not interrupt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, Result]) -> AsyncIterator[asyncio.Task[Result]]:
    """Run `work` as a task during the block, and cancel it if it has not ended by the end of the block."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def uninterrupted(work: Coroutine[Any, Any, Result]) -> Result:
    """Wait until `work` ends even if this task is cancelled, so that it is done fully or not at all."""
    task, caller = asyncio.create_task(work), asyncio.current_task()
    assert caller is not None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            caller.uncancel()
    return task.result()
