"""Which model is live at one place, and how another takes its place there: two slots, one flip.

Knows the live supervisor, the one that comes up beside it and those that still drain. Starting, swapping, resting
and ending exclude one another; each begins when the processes of the one before are gone. Who is answered, and what
an answer does when its worker goes, is deployment.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from inference.messages import EngineUnavailable
from inference.serving.engine_launch import Launch
from inference.serving.engine_process import Worker
from inference.serving.supervisor import State, Supervisor

_log = structlog.get_logger(__name__)

_SLOTS: Final = ("blue", "green")
_TRIES: Final = 2
"""A new engine that a warming prompt brought down gets another chance, without that prompt."""


Welcome = Callable[[Worker], Awaitable[None]]
"""Opens a worker to chats; may warm it before."""

Switch = Callable[[Launch, Launch], Awaitable[None]]
"""(new, old) → the server of both is made to serve the new one."""


class BlueGreen:
    """The live model's engine and its successor's.

    `launch` says where and what is started first; each slot has a log file of its own beside `launch.log`. `changed`
    is called after every change. `switch` gives a place that is not ours to another model. `resting` is True while
    the engine was put to rest on purpose, `cold` says that the old engine must end before the new one starts.
    """

    def __init__(self, launch: Launch, changed: Callable[[], None], switch: Switch | None = None) -> None:
        self.resting = False
        self.cold = switch is not None or launch.settings.swap == "cold"
        self._settings = launch.settings
        self._launch = launch
        self._changed = changed
        self._switch = switch
        self._slot = 0
        self.live = self._supervisor(launch.model_id, launch.model_dir, self._slot)
        self._started = False
        self._ended = False
        self._moves = asyncio.Lock()
        self._next: Supervisor | None = None
        self._starting: asyncio.Task[None] | None = None
        self._retiring: dict[asyncio.Task[bool], Supervisor] = {}
        self._past_crashes = 0

    @property
    def pids(self) -> tuple[int, ...]:
        """All child processes, a starting or draining one included."""
        everybody = (self.live, self._next, *self._retiring.values())
        return tuple(sorted({each.pid for each in everybody if each is not None and each.pid is not None}))

    @property
    def swapping_to(self) -> str | None:
        """The model that comes up beside the live one."""
        return self._next.model_id if self._next is not None and self._next is not self.live else None

    @property
    def crashes(self) -> int:
        """How many engines have gone by themselves so far."""
        return self._past_crashes + self.live.crashes

    def run(self) -> None:
        """Start the live model's engine in the background and keep it answering, however often that fails at first."""
        self._started = True
        self.live.run()

    async def start(self) -> None:
        """Start the live model's engine and wait until it is ready. Raises EngineUnavailable; nothing runs then."""
        self._started = True
        async with self._move():
            await self._come_up(self.live)

    def serves(self, model_id: str, model_dir: Path) -> bool:
        """Whether the model is live, and ready or put to rest."""
        live = self.live
        same = (model_id, model_dir) == (live.model_id, live.launch.model_dir)
        return same and (live.worker is not None or self.resting)

    async def swap(self, model_id: str, model_dir: Path, welcome: Welcome) -> bool:
        """Have `model_id` started, `welcome` it and let it take over; False if it is live and ready already.

        Returns when the old one's process is gone. Raises EngineUnavailable when it does not come up: the live model
        has not been touched then, or, where the old engine has to end first (`cold`), has been started again.
        """
        async with self._move():
            if self._ended or not self._started:
                raise EngineUnavailable("The model cannot be swapped: the engine is not running.")
            if self.serves(model_id, model_dir):
                return False
            green = self._supervisor(model_id, model_dir, 1 - self._slot)
            await (self._replace(green, welcome) if self.cold else self._flip(green, welcome))
            return True

    async def _flip(self, green: Supervisor, welcome: Welcome) -> None:
        await self._come_up(green, welcome)
        blue = self._live_is(green)
        await self._retire(blue, self._settings.drain_timeout)

    async def _replace(self, green: Supervisor, welcome: Welcome) -> None:
        blue = self.live
        await self._retire(blue, self._settings.drain_timeout)
        try:
            await self._come_up(green, welcome, after=blue)
        except EngineUnavailable as error:
            if self._ended:
                raise
            again = await self._back(blue, green, welcome)
            raise EngineUnavailable(f"{error}\n{blue.model_id} {again}") from error
        self._live_is(green)

    async def _back(self, blue: Supervisor, green: Supervisor, welcome: Welcome) -> str:
        """Start the old model again, in the background if it fails at first; says which."""
        try:
            await self._come_up(blue, welcome, after=green)
        except EngineUnavailable as error:
            if not self._ended:
                blue.run()
            return f"did not come up again either, and is tried on and on: {error}"
        return "answers again."

    def _live_is(self, green: Supervisor) -> Supervisor:
        """Flip; returns the one that was live."""
        blue = self.live
        self.live, self._slot = green, 1 - self._slot
        self._count_crashes_of(blue)
        self._changed()
        _log.info("model swapped", old=blue.model_id, new=green.model_id, pid=green.pid)
        return blue

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
            self._changed()

    def refuse(self) -> None:
        """End a start that is under way and begin none any more. The first step of `end`."""
        # Once only: a second cancellation would cut short how the first one ends the process.
        if self._starting is not None and not self._ended:
            self._starting.cancel()
        self._ended = True

    async def end(self) -> None:
        """End every process. Safe to call again, and in the middle of anything."""
        self.refuse()
        for retiring in self._retiring.values():
            retiring.cut()
        async with self._move():
            await self._retire(self.live, 0)

    def _supervisor(self, model_id: str, model_dir: Path, slot: int) -> Supervisor:
        log = self._launch.log.with_stem(f"{self._launch.log.stem}-{_SLOTS[slot]}")
        return Supervisor(replace(self._launch, model_id=model_id, model_dir=model_dir, log=log), self._changed)

    @asynccontextmanager
    async def _move(self) -> AsyncIterator[None]:
        async with self._moves:
            if self._retiring:
                await asyncio.wait(self._retiring)
            yield

    async def _come_up(
        self, supervisor: Supervisor, welcome: Welcome | None = None, *, after: Supervisor | None = None
    ) -> None:
        """Start and welcome in a task of its own, which `refuse` can end. Whatever is raised, nothing runs then."""
        if self._ended:
            raise EngineUnavailable("The deployment was stopped before the engine was started.")
        self._next = supervisor
        self._starting = starting = asyncio.create_task(self._started_up(supervisor, welcome, after))
        try:
            await asyncio.wait((starting,))
            if self._ended or starting.cancelled():
                raise EngineUnavailable("The deployment was stopped while the engine was starting.")
            starting.result()
        except BaseException:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._retire(supervisor, 0)
            raise
        finally:
            self._starting = self._next = None

    async def _started_up(self, supervisor: Supervisor, welcome: Welcome | None, after: Supervisor | None) -> None:
        """All that comes before a flip. `after` is who has the place that a `switch` gives to another."""
        if self._switch is not None and after is not None:
            await self._switch(supervisor.launch, after.launch)
        for _ in range(_TRIES):
            await supervisor.start()
            worker = supervisor.worker
            if welcome is None:
                return
            if worker is not None:
                await welcome(worker)
                if supervisor.worker is worker:
                    return
            await supervisor.retire(0)
        raise EngineUnavailable(f"The engine of {supervisor.model_id} did not last: {supervisor.last_error}")

    async def _retire(self, supervisor: Supervisor, drain: float) -> None:
        """Retire in a task of its own, so that a process ends even if whoever waits here is cancelled."""
        retiring = asyncio.create_task(supervisor.retire(drain))
        self._retiring[retiring] = supervisor
        retiring.add_done_callback(self._retired)
        await asyncio.shield(retiring)

    def _retired(self, task: asyncio.Task[bool]) -> None:
        self._count_crashes_of(self._retiring.pop(task))

    def _count_crashes_of(self, supervisor: Supervisor) -> None:
        """Add them to the past ones, each once: `crashes` must never go back."""
        self._past_crashes += supervisor.crashes
        supervisor.crashes = 0
