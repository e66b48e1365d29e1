"""Coroutines as tasks: some that run beside other work, and one that a cancellation does not interrupt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Yield a group of tasks that run beside the block; the block ends when all of them have ended.

    If the block or a task fails, the others are cancelled, and the first error is raised (`asyncio.TaskGroup` raises an
    exception group). A cancellation from outside takes precedence over the errors that it causes.
    """
    own: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            try:
                yield group
            except Exception as error:
                own = error
                raise
    except BaseExceptionGroup as errors:
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError from None
        raise (own or errors.exceptions[0]) from None


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
