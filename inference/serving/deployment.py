"""The front of the serving package: one `Engine` over changing processes and servers.

Every token of an answer comes from one worker. If that worker fails, the text so far is discarded
(`Delta(restarted=True)`) and the answer restarts on the next replica of the chat's preference order.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final
from weakref import WeakSet

import structlog

from inference.engines import commands
from inference.engines.commands import Command, Kind
from inference.messages import Delta, EngineCrashed, EngineHung, EngineUnavailable, InferenceError, Prompt
from inference.serving.admission_queue import Admission, Ticket
from inference.serving.deployment_status import Counters, Status, Tally, canary_status, status_of
from inference.serving.engine_process import Worker
from inference.serving.moves import Moves
from inference.serving.nodes import nodes_for
from inference.serving.pressure import FirstWords
from inference.serving.rolling import Rolling
from inference.serving.routing import STOPPED, CanaryRoute, Router
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

_VERDICT_SECONDS: Final = 1.0
"""The seconds that an interrupted answer waits for the engine's health check if another replica could answer."""


class Deployment:
    """An `Engine` that outlives its processes.

    Answers carry `model_id` as their model. `model_dir` is the checkpoint; for an external server only `swap_command`
    uses it. Log files go to `logs`. `command` replaces the engine's own command line, for tests. Raises
    EngineUnavailable for a kind of engine that cannot be started.
    """

    def __init__(
        self, settings: InferenceSettings, model_id: str, model_dir: Path, *, logs: Path, command: Command | None = None
    ) -> None:
        self.settings = settings
        self.kind = commands.resolve(settings)
        if command is None and self.kind is not Kind.EXTERNAL:
            command = commands.command(self.kind)
        self._ours = command is not None
        self._nodes = nodes_for(
            settings, self.kind, model_id, model_dir, command=command, logs=logs, changed=self._changed
        )
        self._router = Router(self._nodes, settings.wait_timeout)
        self._moves = Moves(self._nodes, self._router, settings, self._changed)
        self._rolling = Rolling(self._nodes, self._moves)
        self._admission = Admission(self._slots, self._router.lane)
        self._pausing = asyncio.Lock()
        self._suspicions: set[asyncio.Task[None]] = set()
        self._forgotten: WeakSet[Ticket] = WeakSet()
        self._counters = Counters()
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self._first_words = FirstWords(logs / "first-words")

    @property
    def first_words(self) -> Path:
        """A file of one byte, 1 while an answer's first token is awaited; see `pressure`."""
        return self._first_words.file

    @property
    def model(self) -> str:
        """Id of the model that most replicas in service answer with."""
        return self.status().model

    @property
    def can_try(self) -> bool:
        """Whether a canary can run beside the live model: not on external servers, and not with `swap = "cold"`."""
        return self._ours and not any(node.slots.cold for node in self._nodes)

    async def start(self, *, wait: bool = True) -> None:
        """Start the engines. Without `wait`, chats queue at once and failed starts are retried.

        With `wait`, return when each replica has answered a question about a picture or failed; failed ones are retried
        while others answer. Raises EngineUnavailable, with the last lines of the engine's log, if none answers; the
        deployment is stopped then.
        """
        self._router.open()
        self._moves.start()
        if not wait:
            for node in self._nodes:
                node.slots.run()
            return
        try:
            ended = await asyncio.gather(*(node.slots.start() for node in self._nodes), return_exceptions=True)
            errors = [error for error in ended if error is not None]
            if len(errors) == len(self._nodes):
                raise errors[0]
        except BaseException:
            await self.stop()
            raise
        for node, error in zip(self._nodes, ended, strict=True):
            if error is not None:
                _log.warning("node does not answer", node=node.name, error=str(error))
                node.slots.run()

    async def stop(self, drain: float = 0) -> None:
        """Reject new and queued questions, let answers finish for `drain` seconds, then end every process.

        Interrupted answers raise EngineUnavailable. Safe to call again and during a start or swap.
        """
        self._admission.close(STOPPED)
        self._router.close()
        for node in self._nodes:
            node.slots.refuse()
        await self._emptied(drain)
        await self._moves.end()
        await asyncio.gather(*(node.slots.end() for node in self._nodes))
        for suspicion in self._suspicions:
            suspicion.cancel()

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Queue the question, then stream its answer (`Engine.answer`).

        A chat's questions are answered in order. The model is the one that the prompt names; if it names none, the
        conversation decides between the live model and the canary. Closing the iterator at any moment releases the slot
        and aborts the engine's work; the slot is held until the answer has been read. Raises what `HttpEngine.answer`
        raises, but EngineCrashed only after `answer_attempts`, and EngineUnavailable if no engine is available.
        """
        last: Delta | None = None
        try:
            with self._admission.ticket(prompt.chat) as ticket:
                async with aclosing(self._answered(prompt, ticket)) as deltas:
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
        self._counters = self._counters.plus(answered=1)
        # The slot is already released: a reader that has the whole answer may stop here.
        yield last

    async def _answered(self, prompt: Prompt, ticket: Ticket) -> AsyncGenerator[Delta, None]:
        avoid: Worker | None = None
        for attempt in count(1):
            while True:
                async with aclosing(ticket.turn()) as turn:
                    async for before, paused in turn:
                        yield Delta(waiting=before, paused=paused)
                async with aclosing(self._router.until_open(prompt)) as pauses:
                    async for _ in pauses:
                        yield Delta(waiting=0, paused=True)
                if ticket.begin():
                    break
            found = self._router.engine_for(prompt, avoid=avoid)
            assert found is not None, "nothing happens between until_open and here"
            node, worker = found
            ticket.move(node.name)
            try:
                with node.lease(worker), self._first_words.awaited() as heard:
                    async with aclosing(worker.answer(prompt)) as deltas:
                        async for delta in deltas:
                            if delta.text:
                                heard()
                            if delta.answer is not None:
                                if ticket not in self._forgotten:
                                    self._moves.answered(prompt, worker)
                                node.sight.note(delta.answer)
                                tally = self._tallies[worker.model_id]
                                self._tallies[worker.model_id] = tally.plus(delta.answer)
                            yield delta
                return
            except EngineCrashed as error:
                engine = {"node": node.name, "model": worker.model_id, "pid": worker.pid}
                _log.warning("answer broke off", **engine, attempt=attempt, why=str(error))
                # All answers of a hung engine break off; only the first counts as a hang.
                hung = isinstance(error, EngineHung) and not worker.broken
                avoid = await self._judged(worker, error, prompt)
                self._counters = self._counters.plus(hangs=int(hung and worker.broken))
                if attempt >= self.settings.answer_attempts:
                    raise EngineCrashed(
                        f"The engine broke off {attempt} times over this question: ask it in another way."
                    ) from error
            self._counters = self._counters.plus(begun_anew=1)
            yield Delta(restarted=True)

    def _slots(self, lane: str) -> int:
        """Return the number of answers that the replica named `lane` may have in flight."""
        held = next((node.slots.live.cache_tokens for node in self._nodes if node.name == lane), None)
        return commands.concurrency(self.kind, self.settings, held)

    async def _judged(self, worker: Worker, error: EngineCrashed, prompt: Prompt) -> Worker | None:
        """Check the worker's health. Return the worker, to be avoided, if that takes long and another could answer."""
        suspicion = asyncio.create_task(worker.suspect(error))
        self._suspicions.add(suspicion)
        suspicion.add_done_callback(self._suspicions.discard)
        found = self._router.engine_for(prompt, avoid=worker)
        others = found is not None and found[1] is not worker
        await asyncio.wait((suspicion,), timeout=_VERDICT_SECONDS if others else None)
        return None if suspicion.done() else worker

    async def swap(self, model_id: str, model_dir: Path) -> None:
        """Replace the live model without interrupting chats, one replica after the other.

        The new engine starts beside the live one, answers a question about a picture and is warmed before it takes
        over; the old one finishes its answers within `drain_timeout` seconds (the rest restart on the new one) and
        ends. With `swap = "cold"`, and for external servers, which `swap_command` changes, the old engine ends first;
        its chats move to other replicas or wait. Returns when the old processes are gone. A cancellation after the
        switch, or during a cold swap, does not stop it. A second call waits for the first; swapping to the live model
        does nothing. The canary takes over if it is that model; another one ends. Raises EngineUnavailable if the new
        engine does not start; the live one is untouched then or started again.
        """
        if not self._ours and not self.settings.swap_command:
            raise EngineUnavailable(
                f"The external server at {', '.join(self.settings.endpoints)} is not ours to swap: load {model_dir} "
                "there yourself, set inference.swap_command to what does, or inference.engine to an engine that the "
                "bot starts."
            )
        try:
            swapped = await self._rolling.swap(model_id, model_dir)
        except InferenceError:
            self._counters = self._counters.plus(failed_swaps=1)
            raise
        self._counters = self._counters.plus(swaps=int(swapped))
        if swapped:
            self._router.canary = None

    async def start_canary(self, model_id: str, model_dir: Path, share: float) -> None:
        """Let a canary answer a share of the conversations (0 to 1) beside the live model.

        Returns when its engine has answered a question about a picture and is warmed. Raises EngineUnavailable if it
        does not start; the live model is untouched then.
        """
        self._router.canary = CanaryRoute(model_id, share)
        try:
            await self._rolling.start_canary(model_id, model_dir)
        except BaseException:
            self._router.canary = None
            raise

    def run_canary(self, model_id: str, model_dir: Path, share: float) -> None:
        """Let a canary answer again, for example after a restart. Its engine starts in the background.

        It gets the same conversations as before. Replicas on which it is already running are left alone.
        """
        self._router.canary = CanaryRoute(model_id, share)
        for node in self._nodes:
            if not node.drained:
                node.slots.run_canary(model_id, model_dir)

    async def stop_canary(self) -> None:
        """End the canary, if any. Its answers finish as in a swap, and its conversations go to the live model."""
        await self._rolling.stop_canary()
        self._router.canary = None

    async def drain(self, node: str) -> None:
        """Move a replica's chats to others and take the replica out of service and out of swaps.

        Returns when its last answer has ended. Raises EngineUnavailable for an unknown name and for the last replica
        that answers; see `Moves.drain`.
        """
        await self._moves.drain(node)

    async def undrain(self, node: str) -> None:
        """Return a drained replica to service with the live model; its chats move back.

        Raises EngineUnavailable for an unknown name, and if the replica does not start the model; see
        `Rolling.undrain`.
        """
        await self._rolling.undrain(node)

    def forget(self, chat: str) -> None:
        """Drop the chat's prompts from the warm-up list. What an engine has cached is evicted eventually.

        Answers in flight and queued questions continue, but their prompts are not kept either.
        """
        self._forgotten.update(self._admission.tickets(chat))
        self._moves.forget(chat)

    async def pause(self) -> None:
        """Stop answering until `resume` and end the engine processes to free their memory.

        Answers in flight may finish for `drain_timeout` seconds; the rest restart after `resume`. Queued chats get
        `Delta(paused=True)`. Call `resume` in a `finally`.
        """
        async with self._pausing:
            self._admission.pause()
            await self._emptied(self.settings.drain_timeout)
            if self._ours:
                await asyncio.gather(*(node.slots.rest() for node in self._nodes))

    async def resume(self) -> None:
        """Start the engines if they are not running and admit chats again."""
        async with self._pausing:
            if self._ours:
                await asyncio.gather(*(node.slots.wake() for node in self._nodes))
            self._admission.resume()

    def status(self) -> Status:
        """Return the current status."""
        status = status_of(
            self.kind,
            self._nodes,
            self._moves.chats(),
            self._counters.plus(warmed=self._moves.warmed),
            paused=self._admission.paused,
            in_flight=self._admission.active,
            waiting=self._admission.waiting_by_lane(),
        )
        return replace(status, canary=canary_status(self._nodes, self._router.canary), tallies=dict(self._tallies))

    async def engine_numbers(self) -> dict[str, dict[str, float]]:
        """Return the metrics of the engines that respond within a second, by replica."""
        workers = {node.name: node.slots.live.worker for node in self._nodes}
        asked = {name: worker.numbers() for name, worker in workers.items() if worker is not None and worker.open}
        found = await asyncio.gather(*asked.values())
        return dict(zip(asked, found, strict=True))

    def _changed(self) -> None:
        """React to a change of any replica."""
        self._moves.look()
        self._router.changed()
        self._admission.hold(self._router.away)

    async def _emptied(self, patience: float) -> None:
        """Wait until no answer is in flight, but at most `patience` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._admission.empty()
