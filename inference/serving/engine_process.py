"""One engine from start to end, and the checks that distinguish a dead engine from a busy one.

An engine is never restarted; `supervisor` starts its replacement.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any, Final

from inference.chat_format.context_window import Window, window_of
from inference.engines.access_key import KEY_VARIABLE, new_key
from inference.engines.commands import Command
from inference.engines.http_client import HttpEngine
from inference.messages import Delta, EngineCrashed, EngineHung, EngineUnavailable, InferenceError, Prompt
from inference.process.child import Child
from inference.serving.engine_launch import Launch, free_port

_PAUSE: Final = 0.1
_PAUSE_MAX: Final = 1.0
"""The first and the longest pause in seconds between questions to an engine that is starting."""

_DELETE_SECONDS: Final = 10.0
"""How long a process may take to delete the application that it deployed."""

_BUSY: Final = 0.9
"""An engine that has sent a token within this share of `token_timeout` is busy, not hung."""


class Worker:
    """One engine process (or external server) for one model, and the client for it.

    Attributes:
        client: The HTTP client that talks to the engine.
        open: Whether the engine is open to chats; it may be warmed up before it opens.
        broken: Whether the engine has ended or been abandoned, so that no chats may be sent to it.
        served: The number of finished answers.
        key: The key of this launch, which an engine started by the bot requires.
        cache_tokens: The size of the engine's KV cache in tokens, or None if the engine does not report it.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.open = False
        self.broken = False
        self.served = 0
        self.in_flight = 0
        self.ready_since: float | None = None
        self.cache_tokens: int | None = None
        settings, ours = launch.settings, launch.command is not None
        self._port, self.key = free_port(), new_key()
        self.client = HttpEngine(
            launch.url(self._port),
            launch.model_id,
            name=None if ours else settings.endpoint_model,
            token_timeout=settings.token_timeout,
            tiles=settings.tiles,
            api_key=self.key if ours else settings.api_key.get_secret_value(),
            local=ours,
        )
        self._child: Child | None = None
        self._window: Window | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._given_up = asyncio.Event()
        self._why = ""
        self._suspicion = asyncio.Lock()
        self._last_token_time = float("-inf")

    @property
    def model_id(self) -> str:
        """ID of the model that the engine serves."""
        return self.launch.model_id

    @property
    def pid(self) -> int | None:
        """Process ID of the child, or None for an external server or before the start."""
        return self._child.pid if self._child else None

    async def start(self) -> None:
        """Start the engine and wait until it has answered a question about a picture.

        No process is left running after an error or a cancellation.

        Raises:
            EngineUnavailable: The engine ended or was not ready within `start_timeout` seconds. The message
                includes the last lines of its log.
        """
        try:
            if self.launch.command is not None:
                self._child = await self._start_child(self.launch.command)
            # Also wait for the process to end, so that a crash at startup does not cost the whole timeout.
            ready, ended = await _either(self._ready(), self.gone())
            if self._child is not None and not ended.cancelled():
                raise self._failed(f"ended with {self._child.how_it_ended()} before it was ready")
            ready.result()
        except BaseException:
            self.broken = True
            self._end_now()
            await self.stop()
            raise
        self.ready_since = monotonic()

    async def _start_child(self, command: Command) -> Child:
        launch, settings = self.launch, self.launch.settings
        try:
            return await Child.start(
                command(launch.model_id, launch.model_dir, self._port, settings),
                log=launch.log,
                log_bytes=int(settings.log_megabytes * 1e6),
                environment={**launch.environment, KEY_VARIABLE: self.key},
            )
        except OSError as error:
            raise EngineUnavailable(
                f"The engine of {launch.model_id} could not be started ({error}): check inference.python."
            ) from error

    async def _ready(self) -> None:
        """Ask about a picture, with backoff, until the engine answers.

        Store the engine's context window and cache size. An open port, a response from /health, or an answer to
        an empty prompt would prove less.
        """
        settings, ours = self.launch.settings, self._child is not None
        deadline = monotonic() + settings.start_timeout
        # A host that disappears during a request never closes the connection, so each request has its own timeout.
        longest = settings.start_timeout if ours else settings.token_timeout
        pause = _PAUSE
        while True:
            try:
                await self.client.probe(max(min(deadline - monotonic(), longest), 0.001))
                sizes = await self.client.sizes()
                break
            except (EngineCrashed, EngineUnavailable) as error:
                if monotonic() + pause >= deadline:
                    raise self._failed(f"was not ready within {settings.start_timeout:g} s: {error}") from error
            except InferenceError as error:
                raise self._failed(f"refused a question about a simple picture: {error}") from error
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, _PAUSE_MAX)
        self.cache_tokens = sizes.cache
        self._window = await asyncio.to_thread(
            window_of, self.launch.model_dir, settings, ours=ours, longest=sizes.window
        )

    def _failed(self, what: str) -> EngineUnavailable:
        if self._child is None:
            return EngineUnavailable(f"The server at {self.launch.endpoint} {what}. Is it running at this address?")
        tail = self._child.tail()
        wrote = f"its last lines:\n{tail}" if tail else "it wrote nothing."
        return EngineUnavailable(f"The engine of {self.model_id} {what}.\nLog: {self._child.log_path}; {wrote}")

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Stream one answer to the part of the prompt that fits into the context window.

        The errors raised are those of `HttpEngine.answer`.
        """
        fitted = await self._fitted(prompt)
        async with aclosing(self.client.answer(fitted)) as stream:
            async for delta in stream:
                self._last_token_time = monotonic()
                if delta.answer is not None:
                    self.served += 1
                    if fitted is not prompt:
                        delta = Delta(answer=replace(delta.answer, cut=fitted))
                yield delta

    async def compute(self, prompt: Prompt) -> None:
        """Have the engine process the prompt and cache it; the answer is discarded and not counted."""
        fitted = await self._fitted(prompt)
        once = replace(fitted, sampling=replace(fitted.sampling, max_new_tokens=1))
        async with aclosing(self.client.answer(once)) as stream:
            async for _ in stream:
                pass

    async def _fitted(self, prompt: Prompt) -> Prompt:
        """Return the part of the prompt that fits into the context window.

        Raises:
            PromptTooLong: There is no room for an answer.
            PictureError: The header of a picture cannot be read.
        """
        if self._window is None or self._window.surely_holds(prompt):
            return prompt
        return await asyncio.to_thread(self._window.fit, prompt)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Mark an answer as in flight during the block; `drained` waits for all answers in flight."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    async def suspect(self, error: EngineCrashed) -> None:
        """Check the engine after an interrupted answer, and kill it if it is at fault.

        A hung engine is killed immediately, unless it has sent tokens to other chats in the meantime or belongs to an
        application on a cluster, which replaces hung engines itself. After a lost connection or an HTTP 5xx
        response, the engine must answer a question about a picture or is killed. If many answers are interrupted
        at the same time, a single check covers all of them.
        """
        since = monotonic()
        if isinstance(error, EngineHung):
            if since - self._last_token_time < _BUSY * self.launch.settings.token_timeout or self.launch.deploys:
                return
            self.give_up("it was killed because it no longer sent any tokens")
        async with self._suspicion:
            if self.broken or self._last_token_time > since:
                return
            try:
                await self.client.probe(self.launch.settings.token_timeout)
            except InferenceError:
                self.give_up("it interrupted an answer, and then failed to answer a test question about a picture")
            else:
                self._last_token_time = monotonic()

    def give_up(self, why: str) -> None:
        """Accept no more questions and kill the process.

        Args:
            why: The reason, for the log and the operator.
        """
        self.broken = True
        self._why = self._why or why
        self._given_up.set()
        self._end_now()

    def _end_now(self) -> None:
        """Kill the process or, if it deployed an application, terminate it so that it can delete the application."""
        if self._child is None:
            return
        if self.launch.deploys:
            self._child.terminate()
        else:
            self._child.kill()

    async def gone(self) -> str:
        """Wait until the engine has ended or been abandoned; return the reason, for the log and the operator."""
        if self._child is None:
            await self._given_up.wait()
            return self._why
        await self._child.wait()
        self.broken = True
        how = f"it ended with {self._child.how_it_ended()}"
        return f"{self._why}; {how}" if self._why else how

    async def drained(self, patience: float) -> bool:
        """Wait until no answer is in flight, the engine ends or `patience` seconds have passed.

        Returns:
            Whether no answer is in flight.
        """
        await _either(self._idle.wait(), self.gone(), patience)
        return self.in_flight == 0

    async def stop(self) -> None:
        """Stop the process and close its connections, interrupting answers in flight.

        It is safe to call `stop` more than once.
        """
        self.broken = True
        self._given_up.set()
        try:
            if self._child is not None:
                settings = self.launch.settings
                await self._child.stop(max(settings.stop_timeout, _DELETE_SECONDS * self.launch.deploys))
        finally:
            await self.client.aclose()


async def _either(
    first: Coroutine[Any, Any, object], second: Coroutine[Any, Any, object], patience: float | None = None
) -> list[asyncio.Task[object]]:
    """Wait until either coroutine ends or `patience` seconds pass.

    Cancel any that are still running, and return both tasks.
    """
    tasks = [asyncio.create_task(each) for each in (first, second)]
    try:
        await asyncio.wait(tasks, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return tasks
