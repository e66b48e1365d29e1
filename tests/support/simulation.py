"""A deterministic simulation of the bot in its chats: virtual time, a scripted Telegram, crashes at chosen steps.

The way FoundationDB and TigerBeetle test: one thread, one event loop whose clock moves only when nothing is left to do,
and every outside effect is a numbered step: a call to Telegram or a commit of the ledger. A `Plan` says what goes wrong
at which step, so a failure is replayed by its plan. Inbox, dispatcher, handlers, outbox, rate limiter, ledger and the
emulator's world are the real ones; replaced are the socket to Telegram, threads (their work runs on the loop), and the
engine.

A crash ends the process at its step: from then on nothing reaches Telegram or the ledger. What was committed stays on
the disk, and the next process opens it.
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
"""What the wall clock shows when a simulation begins, in UTC seconds."""


class Fault(StrEnum):
    """What can go wrong at a step. A commit knows only crashes and pauses."""

    CUT_BEFORE = "cut before"  # the connection breaks before the request is out
    CUT_AFTER = "cut after"  # Telegram has carried it out; the answer is lost
    DELAY = "delay"  # the answer comes too late
    REPEAT = "repeat"  # Telegram delivers the same updates again; no fault of other calls
    CRASH_BEFORE = "crash before"  # the process ends; the step has no effect
    CRASH_AFTER = "crash after"  # the process ends; the step has had its effect


Plan = Mapping[int, Fault]
"""Step number → what goes wrong there."""

DELAY_SECONDS = 35.0
"""Longer than the bot waits for an answer."""

PATIENCE_SECONDS = 3600.0


@dataclass(frozen=True)
class Act:
    """Something a person does, once `ready`: a predicate of the world that is polled in virtual time."""

    name: str
    do: Callable[[], object]
    ready: Callable[[], bool] = lambda: True


@dataclass
class Simulation:
    """One world, and the processes that serve it one after the other.

    Attributes:
        plan: What goes wrong at which step.
        steps: What each numbered step was, for reading a failure.
        crashes: How many processes ended by a fault.
        dead: Whether the present process has ended: nothing that it does has an effect any more.
    """

    world: World
    plan: Plan
    seed: int = 0
    steps: list[str] = field(default_factory=list)
    crashes: int = 0
    dead: bool = False
    loop: VirtualLoop = field(default_factory=VirtualLoop)

    def run(self, acts: Sequence[Act], process: Process) -> None:
        """Let people act, in order, beside `process`, which starts again after every crash, until all has settled.

        Raises `AssertionError` where it does not settle within `PATIENCE_SECONDS` of virtual time.
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
        """Run one process until it crashes (False) or everything has settled (True)."""
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
        """Carry out one numbered step with the fault that the plan has for it."""
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
        """Carry out a commit as a numbered step. Returns whether its callers may be woken."""
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
        """Put virtual clocks, the writer without a thread and the scripted session in the place of the real ones."""
        with (
            patch("time.monotonic", lambda: self.loop.now),
            patch("time.time", lambda: EPOCH + self.loop.now),
            patch("storage.ledger.Writer", lambda path: InlineWriter(path, self)),
            patch("bot.telegram.client.AiohttpSession", lambda **options: ScriptedSession(self, **options)),
        ):
            yield


Process = Callable[[Simulation, asyncio.Event], Coroutine[Any, Any, None]]
"""Serve until cancelled; set the event while everything that came in is handled."""


class InlineWriter(Writer):
    """The ledger's writer without its thread: what is queued within one turn of the loop shares a commit."""

    def __init__(self, path: Path, simulation: Simulation) -> None:
        self._path = path
        self._database = connect(path, busy_seconds=BUSY_SECONDS)
        self._database.conn.execute("PRAGMA synchronous = OFF")  # the process crashes here, never the machine
        self._closed = False
        self._simulation = simulation
        self._batch: list[_Job] = []
        self.trouble = ""

    async def do_batched(self, together: Any, argument: Any) -> Any:
        """As `Writer.do_batched`."""
        if self._closed:
            raise StorageError(f"The ledger at {self._path} is closed: open it again.")
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
        """Close the connection."""
        if not self._closed:
            self._closed = True
            self._database.close()


class ScriptedSession(BaseSession):
    """aiogram's session with the emulator's methods behind it instead of a socket."""

    def __init__(self, simulation: Simulation, **options: Any) -> None:
        super().__init__(**options)
        self._simulation = simulation

    async def make_request(self, bot: Bot, method: TelegramMethod[Any], timeout: int | None = None) -> Any:  # noqa: ASYNC109
        """Carry out one call of the bot as a numbered step."""
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

        if name == "getUpdates":  # a poll that brings nothing is no step: their number would depend on the clock
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
        """Hand out a file of the world."""
        file = self._simulation.world.files.by_path(url.partition("/file/bot")[2].partition("/")[2])
        assert file is not None
        yield file.data

    async def close(self) -> None:
        """Nothing is open."""


async def _nothing() -> None:
    return None
