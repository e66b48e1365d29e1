"""Answering questions: queueing, streaming from an engine, and restarting if the engine fails.

The router picks the engine. All tokens of an answer come from one worker. If the worker fails, the text
so far is discarded (`Delta(restarted=True)`) and the answer restarts on the next replica in the chat's
order of preference.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Final
from weakref import WeakSet

import structlog
from prometheus_client import Histogram

from inference.engines.commands import Kind, concurrency
from inference.messages import Delta, EngineCrashed, EngineHung, InferenceError, Prompt
from inference.serving.admission_queue import Admission, Ticket
from inference.serving.chat_handover import ChatHandover
from inference.serving.engine_process import Worker
from inference.serving.engine_stats import SECONDS_BUCKETS, Tally
from inference.serving.first_token_signal import FirstTokenSignal
from inference.serving.nodes import Node
from inference.serving.routing import Router
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

_VERDICT_SECONDS: Final = 1.0
"""How long an interrupted answer waits for the engine's health check, in seconds, if another replica could answer."""


@dataclass(eq=False)
class Answering:
    """The part of a deployment that answers questions.

    Attributes:
        admission: The queue of questions.
        counted: The values of the `Counters` fields, by field name.
        tallies: Counts of finished answers, by model.
        first_token: A histogram of the engines' times to the first token in seconds, by replica.
    """

    kind: Kind
    settings: InferenceSettings
    nodes: Sequence[Node]
    router: Router
    handover: ChatHandover
    signal: FirstTokenSignal

    def __post_init__(self) -> None:
        self.admission = Admission(self._slots, self.router.lane)
        self.counted = Counter[str]()
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self.first_token = Histogram(
            "thumbtune_node_first_token_seconds",
            "Seconds from a request to the engine until its first token",
            ["node"],
            buckets=SECONDS_BUCKETS,
            registry=None,
        )
        for node in self.nodes:
            self.first_token.labels(node.name)  # create the series now, so that rate() includes the first answer
        self._suspicions: set[asyncio.Task[None]] = set()
        self._forgotten: WeakSet[Ticket] = WeakSet()

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Queue the question, then stream its answer (see `Engine.answer`).

        A chat's questions are answered in order, by the model that the prompt names. If the prompt names none,
        the conversation determines whether the live model or the canary answers. The question holds its slot
        until the answer has been read; closing the iterator earlier releases the slot and aborts the engine's
        work.

        Raises:
            EngineCrashed: Each of the `answer_attempts` attempts at an answer was interrupted.
            EngineUnavailable: No engine is available.
            InferenceError: `HttpEngine.answer` raised another error.
        """
        last: Delta | None = None
        try:
            with self.admission.ticket(prompt.chat) as ticket:
                async with aclosing(self._answered(prompt, ticket)) as deltas:
                    async for delta in deltas:
                        if delta.answer is not None:
                            last = delta
                            break
                        yield delta
        except InferenceError:
            self.counted["failed"] += 1
            raise
        except (GeneratorExit, asyncio.CancelledError):
            self.counted["cancelled"] += 1
            raise
        assert last is not None and last.answer is not None, "an engine's stream ends with the answer or an exception"
        self.counted["answered"] += 1
        # The slot has already been released, because a reader that has the whole answer may stop here.
        yield last

    async def _answered(self, prompt: Prompt, ticket: Ticket) -> AsyncGenerator[Delta, None]:
        avoid: Worker | None = None
        for attempt in count(1):
            while True:
                async with aclosing(ticket.turn()) as turn:
                    async for before, paused in turn:
                        yield Delta(waiting=before, paused=paused)
                async with aclosing(self.router.until_open(prompt)) as pauses:
                    async for _ in pauses:
                        yield Delta(waiting=0, paused=True)
                if ticket.begin():
                    break
            found = self.router.engine_for(prompt, avoid=avoid)
            assert found is not None, "no other task runs between until_open and here"
            node, worker = found
            ticket.move(node.name)
            try:
                with node.lease(worker), self.signal.awaited() as first_token_arrived:
                    async with aclosing(worker.answer(prompt)) as deltas:
                        async for delta in deltas:
                            if delta.text:
                                first_token_arrived()
                            if delta.answer is not None:
                                if ticket not in self._forgotten:
                                    self.handover.answered(prompt, worker)
                                node.stats.note(delta.answer)
                                self.first_token.labels(node.name).observe(delta.answer.first_token_seconds)
                                tally = self.tallies[worker.model_id]
                                self.tallies[worker.model_id] = tally.plus(delta.answer)
                            yield delta
                return
            except EngineCrashed as error:
                engine = {"node": node.name, "model": worker.model_id, "pid": worker.pid}
                _log.warning("answer interrupted", **engine, attempt=attempt, why=str(error))
                # A hung engine interrupts all its answers; only the first interruption counts as a hang.
                hung = isinstance(error, EngineHung) and not worker.broken
                avoid = await self._check_health(worker, error, prompt)
                self.counted["hangs"] += hung and worker.broken
                if attempt >= self.settings.answer_attempts:
                    raise EngineCrashed(f"The engine failed {attempt} times on this question: rephrase it.") from error
            self.counted["answers_restarted"] += 1
            yield Delta(restarted=True)

    def _slots(self, lane: str) -> int:
        """Return the number of answers that the replica named `lane` may have in flight."""
        held = next((node.slots.live.cache_tokens for node in self.nodes if node.name == lane), None)
        return concurrency(self.kind, self.settings, held)

    async def _check_health(self, worker: Worker, error: EngineCrashed, prompt: Prompt) -> Worker | None:
        """Check the worker's health; return the worker if it should be avoided, otherwise None.

        The worker should be avoided if the check takes a long time and another worker could answer in the meantime.
        """
        suspicion = asyncio.create_task(worker.suspect(error))
        self._suspicions.add(suspicion)
        suspicion.add_done_callback(self._suspicions.discard)
        found = self.router.engine_for(prompt, avoid=worker)
        others = found is not None and found[1] is not worker
        await asyncio.wait((suspicion,), timeout=_VERDICT_SECONDS if others else None)
        return None if suspicion.done() else worker

    def forget(self, chat: str) -> None:
        """Remove the chat's prompts from the warm-up list.

        Data that engines have cached is evicted eventually. Answers in flight and queued questions continue, but
        their prompts are not kept for warm-up.
        """
        self._forgotten.update(self.admission.tickets(chat))
        self.handover.recent.forget(chat)

    def end(self) -> None:
        """Cancel the health checks in progress."""
        for suspicion in self._suspicions:
            suspicion.cancel()
