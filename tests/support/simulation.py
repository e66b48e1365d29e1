"""A deterministic simulation of the bot: virtual time, a scripted Telegram, and crashes at chosen steps.

The method is that of FoundationDB and TigerBeetle. Everything runs in one thread, on one event loop
whose clock advances only when nothing is left to do, and every external effect (a call to Telegram or a
commit to the ledger) is a numbered step. A `Plan` says what goes wrong at which step, so a failure can
be replayed from its plan. The inbox, dispatcher, handlers, replies, rate limiter, ledger and the
emulator's state are real. The socket to Telegram, the threads (their work runs on the loop) and the
engine are replaced.

A crash ends the process at its step: the process changes nothing more in Telegram or the ledger. Earlier
commits stay on disk, and the next process opens them.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aiogram import Bot
from aiogram.client.session.base import BaseSession
from aiogram.exceptions import TelegramNetworkError
from aiogram.methods import TelegramMethod
from aiogram.types import InputFile
from aiohttp import ClientConnectorError, ClientOSError
from aiohttp.client_reqrep import ConnectionKey

from storage.connection import BUSY_SECONDS, connect
from storage.errors import StorageError
from storage.writer import Writer, _deliver_all, _Job
from telegram_emulator.api_errors import BotApiError
from telegram_emulator.methods import METHODS
from telegram_emulator.parameters import Parameters, Upload
from telegram_emulator.world import World
from tests.support.virtual_time import VirtualLoop

EPOCH = 1_790_000_000.0
"""The wall-clock time at which a simulation begins, in UTC seconds."""


class Fault(StrEnum):
    """A fault that can occur at a step of a simulation; a commit is affected only by crashes."""

    CUT_BEFORE = "cut before"  # the connection breaks before the request is sent
    CUT_AFTER = "cut after"  # Telegram carries out the call, but the response is lost
    DELAY = "delay"  # the response comes too late
    REPEAT = "repeat"  # Telegram delivers the same updates again; affects only getUpdates
    CRASH_BEFORE = "crash before"  # the process ends; the step has no effect
    CRASH_AFTER = "crash after"  # the process ends; the step has had its effect


Plan = Mapping[int, Fault]
"""The faults to inject, by step number."""

DELAY_SECONDS = 35.0
"""A delay that is longer than the bot waits for a response."""

PATIENCE_SECONDS = 3600.0


@dataclass(frozen=True)
class Act:
    """An action of a simulated user, performed in virtual time as soon as `ready` returns True."""

    name: str
    do: Callable[[], object]
    ready: Callable[[], bool] = lambda: True


@dataclass
class Simulation:
    """A simulated Telegram, and the bot processes that serve it one after another.

    Attributes:
        plan: The fault to inject, by step number.
        steps: A description of each numbered step so far, to help explain a failure.
        crashes: The number of processes that a fault has ended.
        dead: Whether the current process has ended, so that its actions no longer have any effect.
    """

    world: World
    plan: Plan
    seed: int = 0
    steps: list[str] = field(default_factory=list)
    crashes: int = 0
    dead: bool = False
    loop: VirtualLoop = field(default_factory=VirtualLoop)

    def run(self, acts: Sequence[Act], process: Process) -> None:
        """Perform `acts` in order while `process` runs, restarting it after every crash, until everything settles.

        Raises:
            AssertionError: The simulation does not settle within `PATIENCE_SECONDS` of virtual time.
        """
        random.seed(self.seed)
        waiting = deque(acts)
        with self._replaced():
            over = False
            while not over:
                self.dead = False
                over = self.loop.run_until_complete(self._live(waiting, process))
                now = self.loop.now
                self.loop.close()
                self.loop = VirtualLoop(now)

    async def _live(self, waiting: deque[Act], process: Process) -> bool:
        """Run one process; return False if it crashes, or True once everything has settled."""
        self._crashed = asyncio.Event()
        settled = asyncio.Event()
        serving = asyncio.create_task(process(self, settled))
        acting = asyncio.create_task(self._act(waiting, settled))
        crashed = asyncio.create_task(self._crashed.wait())
        await asyncio.wait((acting, crashed, serving), return_when=asyncio.FIRST_COMPLETED)
        if not self.dead:
            for task in (serving, acting):
                if task.done():
                    task.result()
        over, self.dead = not self.dead, True
        mine = asyncio.current_task()
        while rest := [task for task in asyncio.all_tasks() if task is not mine]:
            for task in rest:
                task.cancel()
            await asyncio.wait(rest, timeout=1)
        return over

    async def _act(self, waiting: deque[Act], settled: asyncio.Event) -> None:
        deadline = self.loop.now + PATIENCE_SECONDS
        while waiting or not settled.is_set():
            if waiting and waiting[0].ready():
                waiting.popleft().do()
                settled.clear()
            assert self.loop.now < deadline, f"waits for ever: {waiting[0].name if waiting else 'the bot to settle'}"
            await asyncio.sleep(0.25)

    async def step(self, what: str, effect: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[Any, Fault | None]:
        """Carry out `effect` as a numbered step, with the fault planned for the step, if any.

        Returns:
            The result of `effect`, and the fault.
        """
        if self.dead:
            raise asyncio.CancelledError
        fault = self.plan.get(len(self.steps))
        self.steps.append(what)
        if fault is Fault.CRASH_BEFORE:
            await self._crash()
        result = None if fault is Fault.CUT_BEFORE else await effect()
        if fault is Fault.CRASH_AFTER:
            await self._crash()
        return result, fault

    def crash_at_commit(self, what: str, commit: Callable[[], None]) -> bool:
        """Carry out `commit` as a numbered step; return False if the process has crashed, otherwise True.

        After a crash, the callers waiting for the commit must not be resumed.
        """
        if self.dead:
            return False
        fault = self.plan.get(len(self.steps))
        self.steps.append(what)
        if fault is not Fault.CRASH_BEFORE:
            commit()
        if fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            self._die()
            return False
        return True

    async def _crash(self) -> None:
        self._die()
        await asyncio.get_running_loop().create_future()

    def _die(self) -> None:
        self.dead = True
        self.crashes += 1
        self._crashed.set()

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """Replace the clocks, the ledger's writer and the Telegram session with simulated ones.

        The real ones are restored when the context ends.
        """
        with (
            patch("time.monotonic", lambda: self.loop.now),
            patch("time.time", lambda: EPOCH + self.loop.now),
            patch("storage.ledger.Writer", lambda path: InlineWriter(path, self)),
            patch("bot.telegram.client.AiohttpSession", lambda **options: ScriptedSession(self, **options)),
        ):
            yield


Process = Callable[[Simulation, asyncio.Event], Coroutine[Any, Any, None]]
"""A function that serves until cancelled, and sets the event whenever everything received has been handled."""


class InlineWriter(Writer):
    """The ledger's writer without its thread: changes queued in one iteration of the loop share a commit."""

    def __init__(self, path: Path, simulation: Simulation) -> None:
        self._path = path
        self._database = connect(path, busy_seconds=BUSY_SECONDS)
        self._database.conn.execute("PRAGMA synchronous = OFF")  # the process crashes here, never the machine
        self._closed = False
        self._simulation = simulation
        self._batch: list[_Job] = []
        self.trouble = ""

    async def do_batched(self, together: Any, argument: Any) -> Any:
        """Do the work of `Writer.do_batched` on the event loop instead of in a thread."""
        if self._closed:
            raise StorageError(f"The database at {self._path} is closed: open it again.")
        if self._simulation.dead:
            raise asyncio.CancelledError
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._batch.append(_Job(together, argument, future))
        if len(self._batch) == 1:
            loop.call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if self._simulation.crash_at_commit("commit", lambda: self._commit(batch)):
            _deliver_all(batch)

    async def close(self) -> None:
        """Close the connection to the database."""
        if not self._closed:
            self._closed = True
            self._database.close()


class ScriptedSession(BaseSession):
    """An aiogram session that calls the emulator's methods directly instead of using a socket."""

    def __init__(self, simulation: Simulation, **options: Any) -> None:
        super().__init__(**options)
        self._simulation = simulation

    async def make_request(self, bot: Bot, method: TelegramMethod[Any], timeout: int | None = None) -> Any:  # noqa: ASYNC109
        """Carry out one Bot API call as a numbered step of the simulation."""
        simulation = self._simulation
        name = method.__api_method__

        async def effect() -> tuple[int, str]:
            files: dict[str, InputFile] = {}
            values = {
                key: value
                for key, raw in method.model_dump(warnings=False).items()
                if (value := self.prepare_value(raw, bot=bot, files=files))
            }
            uploads = {
                key: Upload(file.filename or key, "", b"".join([chunk async for chunk in file.read(bot)]))
                for key, file in files.items()
            }
            try:
                result = await METHODS[name.lower()](simulation.world, Parameters(values, uploads))
            except BotApiError as error:
                return error.code, json.dumps(error.body())
            return 200, json.dumps({"ok": True, "result": result})

        if name == "getUpdates":  # empty polls are not steps, because their number would depend on the clock
            if simulation.dead:
                raise asyncio.CancelledError
            status, content = await effect()
            if simulation.dead:
                raise asyncio.CancelledError
            if json.loads(content).get("result"):
                _, fault = await simulation.step(name, _nothing)
                if fault is Fault.REPEAT:
                    simulation.world.updates.duplicates += 1
                self._suffer(method, fault)
        else:
            answer, fault = await simulation.step(f"{name} {getattr(method, 'text', '') or ''}"[:60], effect)
            self._suffer(method, fault)
            status, content = answer
            if fault is Fault.DELAY:
                await asyncio.sleep(DELAY_SECONDS)
                raise TelegramNetworkError(method=method, message="Request timeout error")
        return self.check_response(bot=bot, method=method, status_code=status, content=content).result

    @staticmethod
    def _suffer(method: TelegramMethod[Any], fault: Fault | None) -> None:
        if fault is Fault.CUT_BEFORE:
            key = ConnectionKey("telegram", 443, True, True, None, None, None)
            cause: Exception = ClientConnectorError(key, OSError("refused"))
        elif fault is Fault.CUT_AFTER:
            cause = ClientOSError("connection reset")
        else:
            return
        raise TelegramNetworkError(method=method, message=f"{type(cause).__name__}: {cause}") from cause

    async def stream_content(self, url: str, *arguments: Any, **options: Any) -> AsyncGenerator[bytes, None]:
        """Yield the content of the emulator's file at `url`."""
        file = self._simulation.world.files.by_path(url.partition("/file/bot")[2].partition("/")[2])
        assert file is not None
        yield file.data

    async def close(self) -> None:
        """Do nothing, since there is no connection to close."""


async def _nothing() -> None:
    return None
