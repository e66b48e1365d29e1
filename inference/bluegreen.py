"""Which model is live, and how another takes its place: two slots, one flip.

Knows the live supervisor, the one that warms up beside it and those that still drain. Starting, swapping, resting
and ending exclude one another; each begins when the processes of the one before are gone. Who is answered, and what
an answer does when its worker goes, is deployment.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from inference.engines import Command
from inference.messages import EngineUnavailable
from inference.settings import InferenceSettings
from inference.supervisor import State, Supervisor
from inference.worker import Launch, Worker

_log = structlog.get_logger(__name__)

_SLOTS: Final = ("blue", "green")
STOPPED: Final = "The bot is shutting down: ask again when it is back."


class BlueGreen:
    """The live model's engine and its successor's.

    `command` is None for an external server. `resting` is True while the engine was put to rest on purpose.
    """

    def __init__(
        self, settings: InferenceSettings, model_id: str, model_dir: Path, *, command: Command | None, logs: Path
    ) -> None:
        self.resting = False
        self._settings = settings
        self._command = command
        self._logs = logs
        self._slot = 0
        self.live = self._supervisor(model_id, model_dir, self._slot)
        self._started = False
        self._ended = False
        self._moves = asyncio.Lock()
        self._change = asyncio.Event()
        self._green: Supervisor | None = None
        self._warming: asyncio.Task[None] | None = None
        self._retiring: dict[asyncio.Task[bool], Supervisor] = {}
        self._past_crashes = 0

    @property
    def pids(self) -> tuple[int, ...]:
        """All child processes, a starting or draining one included."""
        everybody = (self.live, self._green, *self._retiring.values())
        return tuple(sorted({each.pid for each in everybody if each is not None and each.pid is not None}))

    @property
    def swapping_to(self) -> str | None:
        """The model that warms up beside the live one."""
        return self._green.model_id if self._green is not None and self._green is not self.live else None

    @property
    def crashes(self) -> int:
        """How many engines have gone by themselves so far."""
        return self._past_crashes + self.live.crashes

    async def start(self, wait: bool) -> None:
        """Start the live model's engine; with `wait` until it is ready. Raises EngineUnavailable; nothing runs then."""
        if self._started:
            raise RuntimeError("A deployment is started once.")
        self._started = True
        if not wait:
            self.live.run()
            return
        try:
            async with self._move():
                await self._warm(self.live)
        except BaseException:
            await self.end()
            raise

    async def worker(self) -> Worker:
        """The live worker as soon as there is one. Raises EngineUnavailable when waiting does not help or lasts."""
        deadline: float | None = None
        while True:
            change = self._change
            if self._ended or not self._started:
                raise EngineUnavailable(STOPPED if self._ended else "The engine has not been started yet.")
            if (worker := self.live.worker) is not None:
                return worker
            if self.live.state is State.FAILING:
                raise EngineUnavailable(self.live.sentence())
            if self.resting:
                deadline = None
            elif deadline is None:
                deadline = asyncio.get_running_loop().time() + self._settings.wait_timeout
            try:
                async with asyncio.timeout_at(deadline):
                    await change.wait()
            except TimeoutError:
                raise EngineUnavailable(self.live.sentence()) from None

    async def swap(self, model_id: str, model_dir: Path) -> bool:
        """Warm `model_id` up, flip, drain and end the old one; False if it is live and ready already.

        Raises EngineUnavailable before the flip only; the live model has not been touched then.
        """
        async with self._move():
            if self._ended or not self._started:
                raise EngineUnavailable("The model cannot be swapped: the engine is not running.")
            blue = self.live
            same = (model_id, model_dir) == (blue.model_id, blue.launch.model_dir)
            if same and (blue.worker is not None or self.resting):
                return False
            if not await asyncio.to_thread(model_dir.is_dir):
                raise EngineUnavailable(f"{model_id} cannot go live: there is no directory {model_dir}.")
            slot = 1 - self._slot
            green = self._supervisor(model_id, model_dir, slot)
            await self._warm(green)
            self.live, self._slot = green, slot
            self._notify()
            _log.info("model swapped", old=blue.model_id, new=model_id, pid=green.pid)
            await self._retire(blue, self._settings.drain_timeout)
            return True

    async def rest(self) -> None:
        """End the engine's process at once, until `wake`. Answers under way break off and may wait for that."""
        async with self._move():
            self.resting = True
            await self._retire(self.live, 0)

    async def wake(self) -> None:
        """Start the engine again if it does not run; returns at once."""
        async with self._move():
            self.resting = False
            if self._started and not self._ended and self.live.state is State.STOPPED:
                self.live.run()
            self._notify()

    def refuse(self) -> None:
        """Give nobody a worker any more and end a swap that is warming up. The first step of `end`."""
        self._ended = True
        if self._warming is not None:
            self._warming.cancel()
        self._notify()

    async def end(self) -> None:
        """End every process. Safe to call again, and in the middle of anything."""
        self.refuse()
        for retiring in self._retiring.values():
            retiring.cut()
        async with self._move():
            await self._retire(self.live, 0)

    def _supervisor(self, model_id: str, model_dir: Path, slot: int) -> Supervisor:
        log = self._logs / f"engine-{_SLOTS[slot]}.log"
        return Supervisor(Launch(model_id, model_dir, self._command, log, self._settings), self._notify)

    @asynccontextmanager
    async def _move(self) -> AsyncIterator[None]:
        async with self._moves:
            if self._retiring:
                await asyncio.wait(self._retiring)
            yield

    async def _warm(self, green: Supervisor) -> None:
        """Start `green` in a task of its own, which `refuse` can end."""
        self._green = green
        self._warming = asyncio.create_task(green.start())
        try:
            await asyncio.wait((self._warming,))
        finally:
            warming, self._warming, self._green = self._warming, None, None
            if not warming.done():
                warming.cancel()
                await asyncio.wait((warming,))
        if self._ended:
            await self._retire(green, 0)
        if self._ended or warming.cancelled():
            raise EngineUnavailable("The deployment was stopped while the engine was starting.")
        warming.result()

    async def _retire(self, supervisor: Supervisor, drain: float) -> None:
        """Retire in a task of its own, so that a process ends even if whoever waits here is cancelled."""
        retiring = asyncio.create_task(supervisor.retire(drain))
        self._retiring[retiring] = supervisor
        retiring.add_done_callback(self._retired)
        await asyncio.shield(retiring)

    def _retired(self, task: asyncio.Task[bool]) -> None:
        supervisor = self._retiring.pop(task)
        self._past_crashes += supervisor.crashes
        supervisor.crashes = 0

    def _notify(self) -> None:
        """Wake whoever waits for a change; each looks for itself whether it concerns it."""
        self._change.set()
        self._change = asyncio.Event()
