"""The entry point of the serving package: a single `Engine` in front of changing processes and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import structlog

from inference.engines.commands import COMMANDS, Command, resolve
from inference.messages import Delta, EngineUnavailable, InferenceError, Prompt
from inference.serving.answering import Answering
from inference.serving.chat_handover import ChatHandover
from inference.serving.deployment_status import Status, status_of
from inference.serving.engine_process import Worker
from inference.serving.first_token_signal import FirstTokenSignal
from inference.serving.nodes import nodes_for
from inference.serving.rolling import Rolling
from inference.serving.routing import STOPPED, CanaryRoute, Router
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)


class Deployment:
    """An `Engine` that outlives the processes behind it.

    Args:
        settings: The inference settings.
        model_id: The ID of the first live model, reported in its answers.
        model_dir: The model's checkpoint directory; for an external server, it is used only for the context window.
        logs: The directory for log files.
        command: A replacement for the command line of the kind of engine that the settings select.

    Raises:
        EngineUnavailable: The configured kind of engine cannot be started.
    """

    def __init__(
        self, settings: InferenceSettings, model_id: str, model_dir: Path, *, logs: Path, command: Command | None = None
    ) -> None:
        self._settings = settings
        self._kind = resolve(settings)
        command = command or COMMANDS.get(self._kind)
        self._ours = command is not None
        self._nodes = nodes_for(
            settings, self._kind, model_id, model_dir, command=command, logs=logs, changed=self._changed
        )
        self._router = Router(self._nodes, settings.wait_timeout)
        self._handover = ChatHandover(self._nodes, self._router, settings, self._changed)
        self._rolling = Rolling(self._nodes, self._handover)
        self._pausing = asyncio.Lock()
        self.first_words = logs / "first-words"
        """A one-byte file, whose byte is 1 while an answer's first token is awaited; see `first_token_signal`."""
        self._answering = Answering(
            self._kind, settings, self._nodes, self._router, self._handover, FirstTokenSignal(self.first_words)
        )
        self.first_token = self._answering.first_token
        """A histogram of the engines' times to the first token in seconds, by replica."""

    @property
    def can_try(self) -> bool:
        """Whether a canary can run alongside the live model.

        External servers and `swap = "cold"` do not allow a canary.
        """
        return self._ours and not any(node.slots.cold for node in self._nodes)

    async def start(self, *, wait: bool = True) -> None:
        """Start the engines.

        With `wait`, the call returns when each replica has either answered a question about a picture or failed;
        failed replicas are retried while others answer. Without `wait`, chats queue immediately and failed starts
        are retried.

        Raises:
            EngineUnavailable: With `wait`, no replica answers. The message includes the last lines of the
                engine's log, and the deployment is stopped.
        """
        self._router.open()
        self._handover.start()
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
        """Reject new and queued questions, give answers up to `drain` seconds to finish, and stop every process.

        Interrupted answers raise EngineUnavailable. It is safe to call `stop` more than once and during a start or
        swap.
        """
        self._answering.admission.close(STOPPED)
        self._router.close()
        for node in self._nodes:
            node.slots.refuse()
        await self._answering.admission.empty(drain)
        await self._handover.end()
        await asyncio.gather(*(node.slots.end() for node in self._nodes))
        self._answering.end()

    def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Queue the question in `prompt`, then stream its answer; see `Answering.answer`."""
        return self._answering.answer(prompt)

    async def swap(self, model_id: str, model_dir: Path) -> None:
        """Replace the live model without interrupting chats, one replica after the other.

        On each replica, the new engine starts alongside the live one, answers a question about a picture and is
        warmed up before it takes over. The old engine gets up to `drain_timeout` seconds to finish its answers,
        then ends; unfinished answers restart on the new engine. With `swap = "cold"`, the old engine ends first,
        and its chats move to other replicas or wait. If the canary already runs the new model, it takes over; any
        other canary is stopped.

        The call returns when the old processes are gone. Cancelling the call stops neither a cold swap of a
        replica nor a swap whose new engine has taken over. A second call waits for the first, and a swap to the
        live model does nothing.

        Raises:
            EngineUnavailable: The new engine did not start. The live engine is unaffected or is restarted.
        """
        if not self._ours:
            raise EngineUnavailable(
                f"The bot cannot swap the model of the external server at {self._settings.endpoint}: load {model_dir} "
                "there yourself, or set inference.engine to an engine that the bot starts, or to ray."
            )
        try:
            swapped = await self._rolling.swap(model_id, model_dir)
        except InferenceError:
            self._answering.counted["failed_swaps"] += 1
            raise
        self._answering.counted["swaps"] += swapped
        if swapped:
            self._router.canary = None

    async def start_canary(self, model_id: str, model_dir: Path, share: float) -> None:
        """Start a canary that answers a `share` (0 to 1) of the conversations alongside the live model.

        If the canary already runs, only its share changes. The call returns when the canary's engines have answered
        a question about a picture and are warmed up.

        Raises:
            EngineUnavailable: An engine of the canary did not start. The live model is unaffected.
        """
        self._router.canary = CanaryRoute(model_id, share)
        try:
            await self._rolling.start_canary(model_id, model_dir)
        except BaseException:
            self._router.canary = None
            raise

    def run_canary(self, model_id: str, model_dir: Path, share: float) -> None:
        """Restart a canary in the background, for example after a restart of the bot.

        The canary answers the same conversations as before. Replicas on which it is already running are not
        affected.
        """
        self._router.canary = CanaryRoute(model_id, share)
        for node in self._nodes:
            node.slots.run_canary(model_id, model_dir)

    async def stop_canary(self) -> None:
        """Stop the canary, if any, and return its conversations to the live model.

        Answers in progress get up to `drain_timeout` seconds to finish; unfinished ones restart on the live
        model.
        """
        await self._rolling.stop_canary()
        self._router.canary = None

    @property
    def canary_is_idle(self) -> bool:
        """Whether there is a canary whose share of the conversations is 0."""
        return self._router.canary is not None and not self._router.canary.share

    def workers_of(self, model_id: str) -> list[Worker]:
        """Return the open engines that the bot started for a model, at most one for each replica."""
        return [
            worker
            for node in self._nodes
            for worker in (node.worker, node.canary)
            if self._ours and worker is not None and worker.model_id == model_id
        ]

    def forget(self, chat: str) -> None:
        """Drop the chat's prompts from the warm-up list; see `Answering.forget`."""
        self._answering.forget(chat)

    async def pause(self) -> None:
        """Pause answering until `resume` is called, and stop the engine processes to free their memory.

        Answers in flight get up to `drain_timeout` seconds to finish; unfinished ones restart after `resume`.
        Queued chats receive `Delta(paused=True)`. Call `resume` in a `finally` block.
        """
        async with self._pausing:
            self._answering.admission.pause()
            await self._answering.admission.empty(self._settings.drain_timeout)
            if self._ours:
                await asyncio.gather(*(node.slots.rest() for node in self._nodes))

    async def resume(self) -> None:
        """Start the engines if they are not running and resume admitting chats."""
        async with self._pausing:
            if self._ours:
                await asyncio.gather(*(node.slots.wake() for node in self._nodes))
            self._answering.admission.resume()

    def status(self) -> Status:
        """Return the current status."""
        return status_of(self._kind, self._nodes, self._answering, self._handover, self._router.canary)

    async def engine_numbers(self) -> dict[str, dict[str, float]]:
        """Return the metrics of each open engine, by replica name.

        The metrics of an engine that does not respond within a second are empty.
        """
        workers = {node.name: worker for node in self._nodes if (worker := node.slots.live.worker) and worker.open}
        found = await asyncio.gather(*(worker.client.numbers() for worker in workers.values()))
        return dict(zip(workers, found, strict=True))

    def _changed(self) -> None:
        """Update warm-up, routing and the queue after a change in any replica."""
        self._handover.open_ready()
        self._router.changed()
        self._answering.admission.hold(self._router.away)
