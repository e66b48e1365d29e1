"""The policy over engines: who is answered when and by which process, and how one model takes another's place.

Knows the live model and the flip between two (blue/green), retries, pauses. The queue is admission.py's, restarts
are supervisor.py's, one process is worker.py's.

An answer is leased from one worker and every word of it comes from there. If that worker goes, the text so far is
voided (`Delta(restarted=True)`) and the answer is begun anew by whatever is live then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final

import structlog

from inference import engines
from inference.admission import Admission
from inference.engines import Command, Kind
from inference.messages import Delta, EngineCrashed, EngineHung, EngineUnavailable, InferenceError, Prompt
from inference.settings import InferenceSettings
from inference.status import Counters, Status
from inference.supervisor import State, Supervisor
from inference.worker import Launch, Worker

_log = structlog.get_logger(__name__)

_SLOTS: Final = ("blue", "green")
_STOPPED: Final = "The bot is shutting down: ask again when it is back."


class Deployment:
    """An `Engine` that outlives its processes.

    `model_id` is what answers carry as their model, `model_dir` the checkpoint; with an external server the
    directory plays no part. `logs` gets one log file for each of the two slots. `command` replaces the engine's
    own command line (tests put a fake child there).
    """

    def __init__(
        self,
        settings: InferenceSettings,
        model_id: str,
        model_dir: Path,
        *,
        logs: Path,
        command: Command | None = None,
    ) -> None:
        self.settings = settings
        self.kind = engines.resolve(settings)
        self._logs = logs
        self._command = command
        if command is None and self.kind is not Kind.EXTERNAL:
            self._command = engines.command(self.kind)
        self._slot = 0
        self._live = self._supervisor(model_id, model_dir, slot=0)
        self._admission = Admission(engines.concurrency(self.kind, settings))
        self._moves = asyncio.Lock()
        self._change = asyncio.Event()
        self._started = False
        self._stopped = False
        self._green: Supervisor | None = None
        self._warming: asyncio.Task[None] | None = None
        self._retiring: dict[asyncio.Task[bool], Supervisor] = {}
        self._counters = Counters()

    @property
    def model(self) -> str:
        """The live model's id."""
        return self._live.model_id

    async def start(self, *, wait: bool = True) -> None:
        """Start the engine. Without `wait` chats queue from now on and the start is retried as a restart is.

        With `wait` it returns when a picture has been answered and raises EngineUnavailable, with the last lines
        of the engine's log, when that fails; the deployment is stopped then.
        """
        if self._started:
            raise RuntimeError("A deployment is started once.")
        self._started = True
        if not wait:
            self._live.run()
            return
        try:
            async with self._move():
                await self._warm(self._live)
        except BaseException:
            await self.stop()
            raise

    async def stop(self, drain: float = 0) -> None:
        """Turn new and queued questions away, let answers end for `drain` seconds, then end every process.

        What is cut off raises EngineUnavailable. Safe to call again and in the middle of a start or swap.
        """
        self._stopped = True
        self._admission.close(_STOPPED)
        self._notify()
        if self._warming is not None:
            self._warming.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain):
                await self._admission.empty()
        for retiring in self._retiring.values():
            retiring.cut()
        async with self._move():
            await self._retire(self._live, 0)

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Queue, then stream the answer; an `Engine`.

        One chat's questions are answered one after the other. Closing the iterator gives the place up at any
        moment and aborts the engine's work. Read it promptly: a place is held until the answer has been read.
        Raises what `HttpEngine.answer` raises, EngineCrashed only after `answer_attempts`, and EngineUnavailable
        when no engine can be had.
        """
        last: Delta | None = None
        try:
            with self._admission.ticket(prompt.chat) as ticket:
                async with aclosing(ticket.turn()) as turn:
                    async for before, paused in turn:
                        yield Delta(waiting=before, paused=paused)
                async with aclosing(self._answered(prompt)) as deltas:
                    async for delta in deltas:
                        if delta.answer is not None:
                            last = delta
                            break
                        yield delta
        except InferenceError:
            self._count(failed=1)
            raise
        except (GeneratorExit, asyncio.CancelledError):
            self._count(cancelled=1)
            raise
        assert last is not None and last.answer is not None, "an engine's stream ends with the answer or raises"
        self._counters = self._counters.plus_answer(last.answer)
        # Lease and place are given back by now: who has the whole answer need not read on to the end.
        yield last

    async def _answered(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        for attempt in count(1):
            if self._admission.paused and self._live.worker is None:
                yield Delta(waiting=0, paused=True)
            worker = await self._ready_worker()
            try:
                with worker.lease():
                    async with aclosing(worker.answer(prompt)) as deltas:
                        async for delta in deltas:
                            yield delta
                return
            except EngineCrashed as error:
                _log.warning("answer broke off", model=worker.model_id, pid=worker.pid, attempt=attempt, why=str(error))
                self._count(hangs=isinstance(error, EngineHung) and not worker.broken)
                await worker.suspect(error)
                if attempt >= self.settings.answer_attempts:
                    raise EngineCrashed(
                        f"The engine broke off {attempt} times over this question: ask it in another way."
                    ) from error
            self._count(begun_anew=1)
            yield Delta(restarted=True)

    async def _ready_worker(self) -> Worker:
        """The live worker as soon as there is one. Raises EngineUnavailable when that does not help or lasts."""
        deadline: float | None = None
        while True:
            change = self._change
            if self._stopped or not self._started:
                raise EngineUnavailable(_STOPPED if self._stopped else "The engine has not been started yet.")
            if (worker := self._live.worker) is not None:
                return worker
            if self._live.state is State.FAILING:
                raise EngineUnavailable(self._live.sentence())
            if self._admission.paused:
                deadline = None
            elif deadline is None:
                deadline = asyncio.get_running_loop().time() + self.settings.wait_timeout
            try:
                async with asyncio.timeout_at(deadline):
                    await change.wait()
            except TimeoutError:
                raise EngineUnavailable(
                    f"The engine is still {self._live.state}: ask again in a minute. {self._live.last_error}".strip()
                ) from None

    async def swap(self, model_id: str, model_dir: Path) -> None:
        """Put another model in the live one's place while people keep chatting.

        Starts it beside the live one, lets it answer a picture, flips, lets the old one finish its answers and
        ends it. Returns when the old process is gone; cancelled after the flip, that goes on by itself. A second
        call waits for the first. Naming the model that is live and ready does nothing. Raises EngineUnavailable
        with the reason when the new engine does not come up; the live one has not been touched then.
        """
        if self._command is None:
            raise EngineUnavailable(
                f"The external server at {self.settings.endpoints[0]} is not ours to swap: load {model_dir} there "
                f"yourself, or set inference.engine to an engine that the bot starts."
            )
        async with self._move():
            if self._stopped or not self._started:
                raise EngineUnavailable("The model cannot be swapped: the engine is not running.")
            blue = self._live
            if (model_id, model_dir) == (blue.model_id, blue.launch.model_dir) and (
                blue.worker is not None or self._admission.paused
            ):
                return
            slot = 1 - self._slot
            green = self._supervisor(model_id, model_dir, slot)
            try:
                if not await asyncio.to_thread(model_dir.is_dir):
                    raise EngineUnavailable(f"{model_id} cannot go live: there is no directory {model_dir}.")
                await self._warm(green)
            except InferenceError:
                self._count(failed_swaps=1)
                raise
            self._live, self._slot = green, slot
            self._count(swaps=1)
            self._notify()
            _log.info("model swapped", old=blue.model_id, new=model_id, pid=green.pid)
            await self._retire(blue, self.settings.drain_timeout)

    async def pause(self) -> None:
        """Answer nobody until `resume`, and end the engine's process so that its memory is free.

        Returns when it is; answers under way may finish for `drain_timeout` seconds, the rest is begun anew
        afterwards. Queued chats are told (`Delta.paused`). Pair it with `resume` in a `finally`.
        """
        async with self._move():
            self._admission.pause()
            self._notify()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.settings.drain_timeout):
                    await self._admission.empty()
            if self._command is not None:
                await self._retire(self._live, 0)

    async def resume(self) -> None:
        """Let chats in again and start the engine if it does not run; returns at once, chats wait for it."""
        async with self._move():
            if self._started and not self._stopped and self._live.state is State.STOPPED:
                self._live.run()
            self._admission.resume()
            self._notify()

    def status(self) -> Status:
        """How things stand at this moment."""
        live = self._live
        everybody = (live, self._green, *self._retiring.values())
        return Status(
            engine=self.kind,
            model=live.model_id,
            state=live.state,
            paused=self._admission.paused,
            pid=live.pid,
            pids=tuple(sorted({each.pid for each in everybody if each is not None and each.pid is not None})),
            uptime=live.uptime,
            restarts=live.restarts,
            in_flight=self._admission.active,
            waiting=self._admission.waiting,
            swapping_to=self._green.model_id if self._green is not None and self._green is not live else None,
            last_error=live.last_error,
            counters=self._counters.plus(crashes=live.crashes),
        )

    def _supervisor(self, model_id: str, model_dir: Path, slot: int) -> Supervisor:
        log = self._logs / f"engine-{_SLOTS[slot]}.log"
        return Supervisor(Launch(model_id, model_dir, self._command, log, self.settings), self._notify)

    @asynccontextmanager
    async def _move(self) -> AsyncIterator[None]:
        """One start, swap, pause, resume or stop at a time, each when the processes of the one before are gone."""
        async with self._moves:
            if self._retiring:
                await asyncio.wait(self._retiring)
            yield

    async def _warm(self, green: Supervisor) -> None:
        """Start `green` in a task of its own, which `stop` can end."""
        self._green = green
        self._warming = asyncio.create_task(green.start())
        try:
            await asyncio.wait((self._warming,))
        finally:
            warming, self._warming, self._green = self._warming, None, None
            if not warming.done():
                warming.cancel()
                await asyncio.wait((warming,))
        if self._stopped:
            await self._retire(green, 0)
        if self._stopped or warming.cancelled():
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
        self._count(crashes=supervisor.crashes)
        supervisor.crashes = 0

    def _notify(self) -> None:
        """Wake whoever waits for a change; each waiter looks for itself whether it concerns it."""
        self._change.set()
        self._change = asyncio.Event()

    def _count(self, **more: int) -> None:
        self._counters = self._counters.plus(**more)
