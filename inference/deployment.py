"""The front of the inference room: queue, answer, retry, pause; one `Engine` over changing processes.

Knows who is answered when and what an answer does when its process goes. The queue is admission.py's, the live model
and its swap are bluegreen.py's, restarts are supervisor.py's, one process is worker.py's.

An answer is leased from one worker and every word of it comes from there. If that worker goes, the text so far is
voided (`Delta(restarted=True)`) and the answer is begun anew by whatever is live then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from itertools import count
from pathlib import Path

import structlog

from inference import engines
from inference.admission import Admission
from inference.bluegreen import STOPPED, BlueGreen
from inference.engines import Command, Kind
from inference.messages import Delta, EngineCrashed, EngineHung, EngineUnavailable, InferenceError, Prompt
from inference.settings import InferenceSettings
from inference.status import Counters, Status

_log = structlog.get_logger(__name__)


class Deployment:
    """An `Engine` that outlives its processes.

    `model_id` is what answers carry as their model, `model_dir` the checkpoint; with an external server the
    directory plays no part. `logs` gets one log file for each of the two slots. `command` replaces the engine's
    own command line (tests put a fake child there). Raises EngineUnavailable for a kind that cannot be started.
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
        if command is None and self.kind is not Kind.EXTERNAL:
            command = engines.command(self.kind)
        self._ours = command is not None
        self._slots = BlueGreen(settings, model_id, model_dir, command=command, logs=logs)
        self._admission = Admission(engines.concurrency(self.kind, settings))
        self._pausing = asyncio.Lock()
        self._counters = Counters()

    @property
    def model(self) -> str:
        """The live model's id."""
        return self._slots.live.model_id

    async def start(self, *, wait: bool = True) -> None:
        """Start the engine. Without `wait` chats queue from now on and a failed start is tried again.

        With `wait` it returns when a picture has been answered and raises EngineUnavailable, with the last lines
        of the engine's log, when that fails; the deployment is stopped then.
        """
        await self._slots.start(wait)

    async def stop(self, drain: float = 0) -> None:
        """Turn new and queued questions away, let answers end for `drain` seconds, then end every process.

        What is cut off raises EngineUnavailable. Safe to call again and in the middle of a start or swap.
        """
        self._admission.close(STOPPED)
        self._slots.refuse()
        await self._emptied(drain)
        await self._slots.end()

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
            self._counters = self._counters.plus(failed=1)
            raise
        except (GeneratorExit, asyncio.CancelledError):
            self._counters = self._counters.plus(cancelled=1)
            raise
        assert last is not None and last.answer is not None, "an engine's stream ends with the answer or raises"
        self._counters = self._counters.plus_answer(last.answer)
        # Lease and place are given back by now: who has the whole answer need not read on to the end.
        yield last

    async def _answered(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        for attempt in count(1):
            if self._slots.resting:
                yield Delta(waiting=0, paused=True)
            worker = await self._slots.worker()
            try:
                with worker.lease():
                    async with aclosing(worker.answer(prompt)) as deltas:
                        async for delta in deltas:
                            yield delta
                return
            except EngineCrashed as error:
                _log.warning("answer broke off", model=worker.model_id, pid=worker.pid, attempt=attempt, why=str(error))
                # Answers hang together; the first one that notices counts.
                hung = isinstance(error, EngineHung) and not worker.broken
                await worker.suspect(error)
                self._counters = self._counters.plus(hangs=int(hung))
                if attempt >= self.settings.answer_attempts:
                    raise EngineCrashed(
                        f"The engine broke off {attempt} times over this question: ask it in another way."
                    ) from error
            self._counters = self._counters.plus(begun_anew=1)
            yield Delta(restarted=True)

    async def swap(self, model_id: str, model_dir: Path) -> None:
        """Put another model in the live one's place while people keep chatting.

        Starts it beside the live one, lets it answer a picture, flips, lets the old one finish its answers
        (`drain_timeout` seconds; what is left is begun anew by the new one) and ends it. Returns when the old
        process is gone; cancelled after the flip, that goes on by itself. A second call waits for the first.
        Naming the model that is live and ready does nothing. Raises EngineUnavailable with the reason when the new
        engine does not come up; the live one has not been touched then.
        """
        if not self._ours:
            raise EngineUnavailable(
                f"The external server at {self.settings.endpoints[0]} is not ours to swap: load {model_dir} there "
                f"yourself, or set inference.engine to an engine that the bot starts."
            )
        try:
            swapped = await self._slots.swap(model_id, model_dir)
        except InferenceError:
            self._counters = self._counters.plus(failed_swaps=1)
            raise
        self._counters = self._counters.plus(swaps=int(swapped))

    async def pause(self) -> None:
        """Answer nobody until `resume`, and end the engine's process so that its memory is free.

        Returns when it is; answers under way may finish for `drain_timeout` seconds, the rest is begun anew
        afterwards. Queued chats are told (`Delta.paused`). Pair it with `resume` in a `finally`.
        """
        async with self._pausing:
            self._admission.pause()
            await self._emptied(self.settings.drain_timeout)
            if self._ours:
                await self._slots.rest()

    async def resume(self) -> None:
        """Let chats in again and start the engine if it does not run; they wait for it."""
        async with self._pausing:
            if self._ours:
                await self._slots.wake()
            self._admission.resume()

    def status(self) -> Status:
        """How things stand at this moment."""
        live = self._slots.live
        return Status(
            engine=self.kind,
            model=live.model_id,
            state=live.state,
            paused=self._admission.paused,
            pid=live.pid,
            pids=self._slots.pids,
            uptime=live.uptime,
            restarts=live.restarts,
            in_flight=self._admission.active,
            waiting=self._admission.waiting,
            swapping_to=self._slots.swapping_to,
            last_error=live.last_error,
            counters=self._counters.plus(crashes=self._slots.crashes),
        )

    async def _emptied(self, patience: float) -> None:
        """Wait until nobody is being answered, for so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._admission.empty()
