"""Starting and stopping the engines of one replica, one operation at a time.

Each operation waits until the processes stopped by the previous one have exited.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from inference.messages import EngineUnavailable
from inference.serving.engine_process import Worker
from inference.serving.supervisor import Supervisor

_TRIES: Final = 2
"""The maximum number of times that a new engine is started. One that crashes on a warm-up prompt is restarted without
that prompt."""

Welcome = Callable[[Worker], Awaitable[None]]
"""A function that opens a worker to chats, possibly after warming it up."""


class EngineTransitions:
    """Controller that starts and stops engines, and keeps track of those that are starting or draining.

    Attributes:
        starting: The engine that is starting, or None.
        ended: Whether further starts are refused.
    """

    def __init__(self) -> None:
        self.starting: Supervisor | None = None
        self.ended = False
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._retiring: dict[asyncio.Task[bool], Supervisor] = {}

    @property
    def engines(self) -> tuple[Supervisor, ...]:
        """The engines that are starting or draining."""
        return tuple(each for each in (self.starting, *self._retiring.values()) if each is not None)

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold the lock shared by all operations, once the processes stopped by the previous one have exited."""
        async with self._lock:
            if self._retiring:
                await asyncio.wait(self._retiring)
            yield

    async def start(self, supervisor: Supervisor, welcome: Welcome | None = None) -> None:
        """Start an engine and pass its worker to `welcome`, in a task that `refuse` can cancel.

        No process is left running after an error.
        """
        if self.ended:
            raise EngineUnavailable("The deployment was stopped before the engine was started.")
        self.starting = supervisor
        self._task = starting = asyncio.create_task(self._start_and_welcome(supervisor, welcome))
        try:
            await asyncio.wait((starting,))
            if self.ended or starting.cancelled():
                raise EngineUnavailable("The deployment was stopped while the engine was starting.")
            starting.result()
        except BaseException:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self.retire(supervisor, 0)
            raise
        finally:
            self._task = self.starting = None

    async def _start_and_welcome(self, supervisor: Supervisor, welcome: Welcome | None) -> None:
        """Start an engine and call `welcome` with its worker, before the engine is made live."""
        for _ in range(_TRIES):
            worker = await supervisor.start()
            if welcome is None:
                return
            if not worker.broken:
                await welcome(worker)
            if supervisor.worker is worker:
                return
            why = await worker.gone()  # the supervisor may not have noticed yet
            await supervisor.retire(0)
        raise EngineUnavailable(f"The engine of {supervisor.model_id} ended soon after its start: {why}.")

    async def retire(self, supervisor: Supervisor, drain: float) -> None:
        """Retire a supervisor in a separate task, so that its process ends even if the caller is cancelled."""
        retiring = asyncio.create_task(supervisor.retire(drain))
        self._retiring[retiring] = supervisor
        retiring.add_done_callback(self._retiring.pop)
        await asyncio.shield(retiring)

    def refuse(self) -> None:
        """Cancel a start in progress and prevent further starts."""
        # Cancel only once: a second cancellation would interrupt the cleanup after the first.
        if self._task is not None and not self.ended:
            self._task.cancel()
        self.ended = True

    def cut(self) -> None:
        """Interrupt the remaining answers of draining engines."""
        for retiring in self._retiring.values():
            retiring.cut()
