"""Tasks that run beside other work."""

from __future__ import annotations

import asyncio

import pytest

from training.background import task_group


async def stopped(error: type[Exception]) -> None:
    """Raise `error` when cancelled, as a job does whose process cannot be ended."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise error from None


async def test_the_blocks_own_error_is_raised() -> None:
    """If the block fails, its error is raised, and not that of a task that could not be stopped."""
    with pytest.raises(ValueError, match="the first"):
        async with task_group() as tasks:
            tasks.create_task(stopped(OSError))
            await asyncio.sleep(0)
            raise ValueError("the first")


async def test_a_task_that_fails_ends_the_block() -> None:
    """If a task fails, the block is cancelled, and the task's error is raised."""

    async def fails() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        async with task_group() as tasks:
            tasks.create_task(fails())
            await asyncio.Event().wait()


async def test_a_cancellation_takes_precedence() -> None:
    """A block that is cancelled ends with the cancellation, even if a task cannot be stopped without an error."""

    async def work() -> None:
        async with task_group() as tasks:
            tasks.create_task(stopped(OSError))
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
