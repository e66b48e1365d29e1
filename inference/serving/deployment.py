"""The front of the inference room: queue, answer, retry, pause; one `Engine` over changing processes and servers.

Knows who is answered when and what an answer does when its worker goes. The queue is admission.py's, the chat's node
routing.py's, nodes are nodes.py's; what happens when they come, go and change is moves.py's and rolling.py's. One
place's live model and its successor are bluegreen.py's, restarts supervisor.py's, one process is worker.py's.

An answer is leased from one worker and every word of it comes from there. If that worker goes, the text so far is
voided (`Delta(restarted=True)`) and the answer is begun anew by the chat's next choice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from itertools import count
from pathlib import Path
from typing import Final
from weakref import WeakSet

import structlog

from inference.engines import commands
from inference.engines.commands import Command, Kind
from inference.messages import Delta, EngineCrashed, EngineHung, EngineUnavailable, InferenceError, Prompt
from inference.serving.admission_queue import Admission, Ticket
from inference.serving.deployment_status import Counters, Status, status_of
from inference.serving.engine_process import Worker
from inference.serving.moves import Moves
from inference.serving.nodes import nodes_for
from inference.serving.pressure import FirstWords
from inference.serving.rolling import Rolling
from inference.serving.routing import STOPPED, Router
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

_VERDICT_SECONDS: Final = 1.0
"""So long an answer that broke off waits to hear whether its engine is well, where another one could answer."""


class Deployment:
    """An `Engine` that outlives its processes.

    `model_id` is what answers carry as their model, `model_dir` the checkpoint; for an external server the directory
    matters only to `swap_command`. `logs` gets the engines' log files. `command` replaces the engine's own command
    line (tests put a fake child there). Raises EngineUnavailable for a kind that cannot be started.
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
        self._admission = Admission(self._places, self._router.lane)
        self._pausing = asyncio.Lock()
        self._suspicions: set[asyncio.Task[None]] = set()
        self._forgotten: WeakSet[Ticket] = WeakSet()
        self._counters = Counters()
        self._first_words = FirstWords(logs / "first-words")

    @property
    def first_words(self) -> Path:
        """A file of one byte, 1 while somebody waits for the first word of an answer; see first_words.py."""
        return self._first_words.file

    @property
    def model(self) -> str:
        """The live model's id: what most nodes in service answer with."""
        return self.status().model

    async def start(self, *, wait: bool = True) -> None:
        """Start the engines. Without `wait` chats queue from now on and a failed start is tried again.

        With `wait` it returns when each node has answered a picture or failed to; those that failed are tried again
        while others answer. Raises EngineUnavailable, with the last lines of the engine's log, when none answers;
        the deployment is stopped then.
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
        """Turn new and queued questions away, let answers end for `drain` seconds, then end every process.

        What is cut off raises EngineUnavailable. Safe to call again and in the middle of a start or swap.
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
        """Queue, then stream the answer; an `Engine`.

        One chat's questions are answered one after the other. Closing the iterator gives the place up at any
        moment and aborts the engine's work. Read it promptly: a place is held until the answer has been read.
        Raises what `HttpEngine.answer` raises, EngineCrashed only after `answer_attempts`, and EngineUnavailable
        when no engine can be had.
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
        # Lease and place are given back by now: who has the whole answer need not read on to the end.
        yield last

    async def _answered(self, prompt: Prompt, ticket: Ticket) -> AsyncGenerator[Delta, None]:
        avoid: Worker | None = None
        for attempt in count(1):
            while True:
                async with aclosing(ticket.turn()) as turn:
                    async for before, paused in turn:
                        yield Delta(waiting=before, paused=paused)
                async with aclosing(self._router.until_open(prompt.chat)) as pauses:
                    async for _ in pauses:
                        yield Delta(waiting=0, paused=True)
                if ticket.begin():
                    break
            found = self._router.choice(prompt.chat, avoid=avoid)
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
                            yield delta
                return
            except EngineCrashed as error:
                _log.warning(
                    "answer broke off",
                    node=node.name,
                    model=worker.model_id,
                    pid=worker.pid,
                    attempt=attempt,
                    why=str(error),
                )
                # Answers hang together; the first one that notices counts.
                hung = isinstance(error, EngineHung) and not worker.broken
                avoid = await self._judged(worker, error, prompt.chat)
                self._counters = self._counters.plus(hangs=int(hung and worker.broken))
                if attempt >= self.settings.answer_attempts:
                    raise EngineCrashed(
                        f"The engine broke off {attempt} times over this question: ask it in another way."
                    ) from error
            self._counters = self._counters.plus(begun_anew=1)
            yield Delta(restarted=True)

    def _places(self, lane: str) -> int:
        """How many answers may be under way at the node called `lane`."""
        held = next((node.slots.live.cache_tokens for node in self._nodes if node.name == lane), None)
        return commands.concurrency(self.kind, self.settings, held)

    async def _judged(self, worker: Worker, error: EngineCrashed, chat: str) -> Worker | None:
        """Find out whether the worker is to blame; the worker itself while that lasts and another could answer."""
        suspicion = asyncio.create_task(worker.suspect(error))
        self._suspicions.add(suspicion)
        suspicion.add_done_callback(self._suspicions.discard)
        found = self._router.choice(chat, avoid=worker)
        others = found is not None and found[1] is not worker
        await asyncio.wait((suspicion,), timeout=_VERDICT_SECONDS if others else None)
        return None if suspicion.done() else worker

    async def swap(self, model_id: str, model_dir: Path) -> None:
        """Put another model in the live one's place while people keep chatting; on several nodes one after the other.

        Starts it beside the live one, lets it answer a picture, warms it, flips, lets the old one finish its answers
        (`drain_timeout` seconds; what is left is begun anew by the new one) and ends it. With `swap = "cold"`, and for
        external servers, which `swap_command` changes, the old one ends first: its chats go to other nodes meanwhile,
        or wait and are told. Returns when the old processes are gone; cancelled after the flip, or in the middle of a
        cold change, that goes on by itself. A second call waits for the first. Naming the model that is live and
        ready does nothing. Raises EngineUnavailable with the reason when the new engine does not come up; the live
        one has not been touched then, or has been started again.
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

    async def drain(self, node: str) -> None:
        """Take a node out of service, its chats moved first. Drained nodes are left out of swaps.

        Returns when its last answer is over. Raises EngineUnavailable for a name that is none, and for the last node
        that answers; see `Moves.drain`.
        """
        await self._moves.drain(node)

    async def undrain(self, node: str) -> None:
        """Take a drained node into service again, with the model that is live; its chats come back.

        Raises EngineUnavailable for a name that is none, and when it does not take the model; see `Rolling.undrain`.
        """
        await self._rolling.undrain(node)

    def forget(self, chat: str) -> None:
        """Keep none of the chat's prompts, so that they are computed nowhere again. What an engine has cached fades.

        Answers under way and waiting go on, and their prompts are not kept afterwards either.
        """
        self._forgotten.update(self._admission.tickets(chat))
        self._moves.forget(chat)

    async def pause(self) -> None:
        """Answer nobody until `resume`, and end the engines' processes so that their memory is free.

        Returns when it is; answers under way may finish for `drain_timeout` seconds, the rest is begun anew
        afterwards. Queued chats are told (`Delta.paused`). Pair it with `resume` in a `finally`.
        """
        async with self._pausing:
            self._admission.pause()
            await self._emptied(self.settings.drain_timeout)
            if self._ours:
                await asyncio.gather(*(node.slots.rest() for node in self._nodes))

    async def resume(self) -> None:
        """Let chats in again and start the engine if it does not run; they wait for it."""
        async with self._pausing:
            if self._ours:
                await asyncio.gather(*(node.slots.wake() for node in self._nodes))
            self._admission.resume()

    def status(self) -> Status:
        """How things stand at this moment."""
        return status_of(
            self.kind,
            self._nodes,
            self._moves.chats(),
            self._counters.plus(warmed=self._moves.warmed),
            paused=self._admission.paused,
            in_flight=self._admission.active,
            waiting=self._admission.waiting_by_lane(),
        )

    async def engine_numbers(self) -> dict[str, dict[str, float]]:
        """What only the engines know, of each node that says it within a second, by the node's name."""
        workers = {node.name: node.slots.live.worker for node in self._nodes}
        asked = {name: worker.numbers() for name, worker in workers.items() if worker is not None and worker.open}
        found = await asyncio.gather(*asked.values())
        return dict(zip(asked, found, strict=True))

    def _changed(self) -> None:
        """Something about a node is different: everybody looks for himself."""
        self._moves.look()
        self._router.changed()
        self._admission.hold(self._router.away)

    async def _emptied(self, patience: float) -> None:
        """Wait until nobody is being answered, for so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._admission.empty()
