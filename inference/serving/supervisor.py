"""Supervision that keeps one model answering by restarting its worker with exponential backoff.

Restarts never stop: after more than `restart_limit` failures in a row, the state is FAILING and the
attempts continue, at most a minute apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from time import monotonic
from typing import Final

import structlog

from inference.serving.engine_launch import Launch
from inference.serving.engine_process import Worker

_log = structlog.get_logger(__name__)

_LONGEST_DELAY: Final = 60.0
"""The longest delay before a restart, in seconds."""


class State(StrEnum):
    """The state of a supervised model."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILING = "failing"
    STOPPED = "stopped"


class Supervisor:
    """One model and its current worker.

    `changed` is called after every change of state, and `crashed` whenever an engine ends unexpectedly.

    Attributes:
        restarts: The number of workers started after the first.
        crashes: The number of times that an engine ended unexpectedly.
        last_error: The reason that the last worker ended or did not start.
        cache_tokens: The size of the newest worker's KV cache, or None if no worker has reported a size.
    """

    def __init__(self, launch: Launch, changed: Callable[[], None], crashed: Callable[[], None]) -> None:
        self.launch = launch
        self.state = State.STOPPED
        self.restarts = 0
        self.crashes = 0
        self.last_error = ""
        self.cache_tokens: int | None = None
        self._changed = changed
        self._crashed = crashed
        self._worker: Worker | None = None
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._next_try = 0.0

    @property
    def model_id(self) -> str:
        """The model's ID."""
        return self.launch.model_id

    @property
    def worker(self) -> Worker | None:
        """The worker, or None if it is not ready."""
        worker = self._worker
        return worker if worker is not None and self.state is State.READY and not worker.broken else None

    @property
    def pid(self) -> int | None:
        """The worker's process ID, or None if there is no process."""
        return self._worker.pid if self._worker else None

    @property
    def uptime(self) -> float:
        """Seconds since the worker became ready, or 0 if no worker is ready."""
        worker = self.worker
        return monotonic() - worker.ready_since if worker is not None and worker.ready_since is not None else 0.0

    def sentence(self) -> str:
        """Return a sentence that explains to users why they are getting no answers.

        The engine's full error message is in `last_error`.
        """
        if self.state is not State.FAILING:
            return f"The engine is still {self.state}: ask again in a minute."
        seconds = max(round(self._next_try - monotonic()), 0)
        return (
            f"The engine failed {self._failures} times in a row; the next attempt follows within {seconds} s. "
            f"Last error: {self.last_error.partition(chr(10))[0]}"
        )

    async def start(self) -> Worker:
        """Start a worker, return it once it is ready, and restart it whenever it ends.

        Raises:
            EngineUnavailable: The worker does not become ready. No process is left running.
        """
        self._set(State.STARTING)
        try:
            worker = await self._begin()
        except BaseException:
            self._set(State.STOPPED)
            raise
        self._task = asyncio.create_task(self._keep_answering(worker))
        return worker

    def run(self) -> None:
        """Start a worker in the background, and restart it whenever it ends."""
        self._set(State.STARTING)
        self._failures = 0
        self._task = asyncio.create_task(self._keep_answering(None))

    def cut(self) -> None:
        """Interrupt all answers in flight, so that `retire` does not have to wait for them."""
        if self._worker is not None:
            self._worker.give_up("it was killed to interrupt its answers")

    async def retire(self, drain: float) -> bool:
        """Stop restarting the worker, drain it for up to `drain` seconds and stop it.

        Returns:
            Whether all answers finished.
        """
        worker = self._worker
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        self._set(State.STOPPED)
        if worker is None:
            return True
        try:
            drained = await worker.drained(drain)
        finally:
            await worker.stop()
        self._worker = None
        return drained

    async def _begin(self) -> Worker:
        """Start a new worker and return it once it is ready; if it fails to start, `last_error` gives the reason."""
        self._worker = worker = Worker(self.launch)
        try:
            await worker.start()
        except BaseException as error:
            self._worker = None
            self.last_error = str(error) or self.last_error
            raise
        _log.info("engine ready", model=self.model_id, pid=worker.pid)
        self.cache_tokens = worker.cache_tokens
        self._set(State.READY)
        return worker

    async def _keep_answering(self, worker: Worker | None) -> None:
        while True:
            try:
                await self._until_gone(worker or await self._begin())
            except Exception as error:  # noqa: BLE001 - after any error, another attempt must follow
                self._failures += 1
                _log.warning("engine did not start", model=self.model_id, failures=self._failures, error=str(error))
            worker = None
            await self._back_off()
            self.restarts += 1

    async def _until_gone(self, worker: Worker) -> None:
        reason = await worker.gone()
        # If the engine has answered since its start, the count of failures starts over.
        self._failures = 1 if worker.served else self._failures + 1
        self.crashes += 1
        self._crashed()
        self.last_error = f"the engine of {self.model_id} (process {worker.pid}): {reason}."
        _log.warning("engine ended", model=self.model_id, pid=worker.pid, reason=reason, failures=self._failures)
        self._set(State.RESTARTING)
        await worker.stop()
        self._worker = None

    async def _back_off(self) -> None:
        settings = self.launch.settings
        delay = 0.0
        if self._failures > 1:
            # The exponent is bounded: 2.0**1024 raises OverflowError.
            delay = min(settings.restart_delay * 2.0 ** min(self._failures - 2, 32), _LONGEST_DELAY)
        self._next_try = monotonic() + delay
        self._set(State.FAILING if self._failures > settings.restart_limit else State.RESTARTING)
        await asyncio.sleep(delay)

    def _set(self, state: State) -> None:
        self.state = state
        self._changed()
