"""One engine from start to end, and the checks that tell a dead engine from a busy one.

It starts once and ends once; `supervisor` starts the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from time import monotonic
from typing import Final

import structlog

from inference.chat_format.context_window import Window
from inference.engines.http_client import HttpEngine
from inference.messages import Delta, EngineCrashed, EngineHung, InferenceError, Prompt
from inference.process.child import Child
from inference.process.log_rotation import rotate
from inference.serving.engine_launch import Launch, Launched, begin
from inference.serving.readiness import sample_picture

_log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 60.0
"""The interval at which the log of a server that `swap_command` started is checked for rotation."""

_BUSY: Final = 0.9
"""An engine that has sent a token within this share of `token_timeout` is busy, not hung."""


class Worker:
    """One engine process (or external server) for one model.

    `open` becomes True when chats may be sent to it, which may be after a warm-up, and `broken` when they may no
    longer be sent. `served` counts finished answers. `expected` means that its end was requested. `cache_tokens` is the
    size of its KV cache, or None if it does not report one.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.open = False
        self.broken = False
        self.expected = False
        self.served = 0
        self.in_flight = 0
        self.ready_since: float | None = None
        self.cache_tokens: int | None = None
        self._launched: Launched | None = None
        self._window: Window | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._given_up = asyncio.Event()
        self._why = ""
        self._suspicion = asyncio.Lock()
        self._spoke = float("-inf")

    @property
    def model_id(self) -> str:
        """Id of the model it serves."""
        return self.launch.model_id

    @property
    def pid(self) -> int | None:
        """Process id of the child, or None for an external server and before the start."""
        return self._child.pid if self._child else None

    @property
    def base_url(self) -> str:
        """URL of the engine including `/v1`, or an empty string before the start."""
        return self._launched.client.base_url if self._launched else ""

    @property
    def _child(self) -> Child | None:
        return self._launched.child if self._launched else None

    @property
    def _client(self) -> HttpEngine:
        assert self._launched is not None, "started"
        return self._launched.client

    async def start(self) -> None:
        """Start the engine and wait until it has answered a question about a picture.

        Raises EngineUnavailable, with the last lines of its log, if it ends or is not ready within `start_timeout`
        seconds. No process is left behind after an error or a cancellation.
        """
        try:
            self._launched = await begin(self.launch)
            self._window, self.cache_tokens = await self._launched.ready()
        except BaseException:
            self.broken = True
            if self._child is not None:
                self._child.kill()
            await self.stop()
            raise
        self.ready_since = monotonic()

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Stream one answer to the part of the prompt that fits the context window.

        Raises what `HttpEngine.answer` raises.
        """
        held = await self._held(prompt)
        async with aclosing(self._client.answer(held)) as stream:
            async for delta in stream:
                self._spoke = monotonic()
                if delta.answer is not None:
                    self.served += 1
                    if held is not prompt:
                        delta = Delta(answer=replace(delta.answer, cut=held))
                yield delta

    async def compute(self, prompt: Prompt) -> None:
        """Compute the prompt to put its prefix into the cache. The answer is discarded and not counted."""
        held = await self._held(prompt)
        once = replace(held, sampling=replace(held.sampling, max_new_tokens=1))
        async with aclosing(self._client.answer(once)) as stream:
            async for _ in stream:
                pass

    async def numbers(self) -> dict[str, float]:
        """Return the metrics that only the engine's /metrics has, or nothing if it has none or is too slow."""
        return await self._client.numbers()

    async def _held(self, prompt: Prompt) -> Prompt:
        """Return the part of the prompt that fits the context window. Raises PromptTooLong, PictureError."""
        if self._window is None or self._window.surely_holds(prompt):
            return prompt
        return await asyncio.to_thread(self._window.fit, prompt)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Mark an answer as in flight; `drained` waits for all of them."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    async def suspect(self, error: EngineCrashed) -> None:
        """Check the engine after an interrupted answer, and end it if it is at fault.

        A hang ends it at once, unless it has sent tokens to other chats meanwhile. After a broken connection or HTTP
        5xx it must answer a question about a picture. If many answers break off together, one check is made for all.
        """
        since = monotonic()
        if isinstance(error, EngineHung):
            if since - self._spoke < _BUSY * self.launch.settings.token_timeout:
                return
            self.give_up("it was killed because it said nothing any more")
        async with self._suspicion:
            if self.broken or self._launched is None or self._spoke > since:
                return
            try:
                await self._client.probe(sample_picture(), self.launch.settings.token_timeout)
            except InferenceError:
                self.give_up("it broke an answer off and did not answer a picture then")
            else:
                self._spoke = monotonic()

    def give_up(self, why: str, *, expected: bool = False) -> None:
        """Accept no more answers and kill the process. `expected` means that nothing is wrong with it."""
        if not self.broken:
            self.expected = expected
        self.broken = True
        self._why = self._why or why
        self._given_up.set()
        if self._child is not None:
            self._child.kill()

    async def gone(self) -> str:
        """Wait until this engine has ended or been given up. Return what happened, for the log and the operator."""
        if self._child is None:
            while not self._given_up.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._given_up.wait()
                await asyncio.to_thread(self._rotate_log)
            return self._why
        await self._child.wait()
        self.broken = True
        how = f"it ended with {self._child.how_it_ended()}"
        return f"{self._why}; {how}" if self._why else how

    def _rotate_log(self) -> None:
        """Rotate the log of `swap_command`, to which the server that it started may go on writing."""
        settings = self.launch.settings
        try:
            rotate(self.launch.log, above=int(settings.log_megabytes * 1e6), files=settings.log_files)
        except OSError as error:
            _log.warning("log not rotated", log=str(self.launch.log), error=str(error))

    async def drained(self, patience: float) -> bool:
        """Wait for the answers in flight, the engine's end or `patience` seconds. Return whether none is in flight."""
        idle = asyncio.ensure_future(self._idle.wait())
        gone = asyncio.ensure_future(self.gone())
        try:
            await asyncio.wait((idle, gone), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
            gone.cancel()
            await asyncio.gather(idle, gone, return_exceptions=True)
        return self.in_flight == 0

    async def stop(self) -> None:
        """End the process and close its connections, interrupting answers in flight. Safe to call again."""
        self.broken = True
        self._given_up.set()
        try:
            if self._child is not None:
                await self._child.stop(self.launch.settings.stop_timeout)
        finally:
            if self._launched is not None:
                await self._launched.client.aclose()
