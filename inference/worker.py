"""One engine from its start to its end: a child process with its port and client, or a server given from outside.

Knows how to tell a dead engine from a busy one, and who still uses it; what proves it ready is readiness.py's. It is
started once and ends once; starting another in its place is supervisor.py's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Final

import structlog

from inference.client import HttpEngine
from inference.engines import Command
from inference.messages import Delta, EngineCrashed, EngineHung, EngineUnavailable, InferenceError, Prompt
from inference.process import Child
from inference.readiness import NotReady, answers_a_picture, sample_picture
from inference.rotation import rotate
from inference.settings import InferenceSettings
from inference.window import Window, window_of

_log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 60.0
"""How often the log of a server that `swap_command` started is looked at."""

_BUSY: Final = 0.9
"""An engine that has spoken to somebody within this share of `token_timeout` is busy, not hung."""


@dataclass(frozen=True, slots=True)
class Launch:
    """All that starting one model's engine takes.

    `command` is None where the engine is a given `endpoint`. `environment` is added to the child's.
    """

    model_id: str
    model_dir: Path
    command: Command | None
    log: Path
    settings: InferenceSettings
    endpoint: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


class Worker:
    """One engine process (or endpoint) for one model.

    `open` is True from the moment chats may be sent to it, `broken` from the moment they must not be any more;
    whoever opens it may warm it before. `served` counts finished answers.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.open = False
        self.broken = False
        self.served = 0
        self.in_flight = 0
        self.ready_since: float | None = None
        self._child: Child | None = None
        self._engine: HttpEngine | None = None
        self._window: Window | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._given_up = asyncio.Event()
        self._why = ""
        self._suspicion = asyncio.Lock()
        self._spoke = float("-inf")

    @property
    def model_id(self) -> str:
        return self.launch.model_id

    @property
    def pid(self) -> int | None:
        """The child's process id; None for a given endpoint and before the start."""
        return self._child.pid if self._child else None

    @property
    def base_url(self) -> str:
        """Where the engine listens, with `/v1`; empty before the start."""
        return self._engine.base_url if self._engine else ""

    async def start(self) -> None:
        """Start the engine and wait until it has answered a picture.

        Raises EngineUnavailable, with the last lines of its log, when it ends before or is not ready within
        `start_timeout` seconds. Whatever is raised, a cancellation included, no process is left behind.
        """
        try:
            await self._start()
        except BaseException:
            self.broken = True
            if self._child is not None:
                self._child.kill()
            await self.stop()
            raise

    async def _start(self) -> None:
        settings = self.launch.settings
        if self.launch.command is None:
            self._engine = HttpEngine(
                self.launch.endpoint,
                self.model_id,
                name=settings.endpoint_model,
                token_timeout=settings.token_timeout,
                tiles=settings.tiles,
                api_key=settings.api_key.get_secret_value(),
                local=False,
            )
            await self._ready(self._engine)
        else:
            port = free_port()
            line = self.launch.command(self.model_id, self.launch.model_dir, port, settings)
            try:
                self._child = await Child.start(
                    line,
                    log=self.launch.log,
                    log_bytes=int(settings.log_megabytes * 1e6),
                    log_files=settings.log_files,
                    environment=self.launch.environment,
                )
            except OSError as error:
                raise EngineUnavailable(
                    f"The engine of {self.model_id} could not be started ({error}): check inference.python."
                ) from error
            self._engine = HttpEngine(
                f"http://127.0.0.1:{port}",
                self.model_id,
                token_timeout=settings.token_timeout,
                tiles=settings.tiles,
            )
            await self._ready_before_its_end(self._child, self._engine)
        self.ready_since = monotonic()

    async def _ready_before_its_end(self, child: Child, engine: HttpEngine) -> None:
        """Race the first answer against the child's end: a crash at start must not cost the whole timeout."""
        ready = asyncio.ensure_future(self._ready(engine))
        ended = asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise EngineUnavailable(self._failed_start(f"ended with {child.how_it_ended()} before it was ready"))
            await ready
        finally:
            ready.cancel()
            ended.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    async def _ready(self, engine: HttpEngine) -> None:
        """Wait until it is, and learn what window it has. Raises EngineUnavailable."""
        launch, ours = self.launch, self._child is not None
        patience = launch.settings.start_timeout
        # A host that went away in the middle of a question never says so: the next question may be answered.
        longest = patience if ours else launch.settings.token_timeout
        try:
            held = await answers_a_picture(engine, patience=patience, longest=longest)
        except NotReady as error:
            raise EngineUnavailable(self._failed_start(str(error))) from error
        self._window = await asyncio.to_thread(window_of, launch.model_dir, launch.settings, ours=ours, longest=held)

    def _failed_start(self, what: str) -> str:
        if self._child is None:
            return f"The server at {self.launch.endpoint} {what}. Is it running, at this address?"
        tail = self._child.tail()
        wrote = f"its last lines:\n{tail}" if tail else "it wrote nothing."
        return f"The engine of {self.model_id} {what}.\nLog: {self._child.log_path}; {wrote}"

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Stream one answer of this engine, to what of the prompt fits it. Raises as `HttpEngine.answer`."""
        assert self._engine is not None, "started"
        held = await self._held(prompt)
        async with aclosing(self._engine.answer(held)) as stream:
            async for delta in stream:
                self._spoke = monotonic()
                if delta.answer is not None:
                    self.served += 1
                    if held is not prompt:
                        delta = Delta(answer=replace(delta.answer, cut=held))
                yield delta

    async def compute(self, prompt: Prompt) -> None:
        """Have the prompt computed, so that its prefix is known here. Nobody reads the answer; it does not count."""
        assert self._engine is not None, "started"
        held = await self._held(prompt)
        once = replace(held, sampling=replace(held.sampling, max_new_tokens=1))
        async with aclosing(self._engine.answer(once)) as stream:
            async for _ in stream:
                pass

    async def numbers(self) -> dict[str, float]:
        """What the engine's /metrics tell that answers do not; empty where it has none or is slow to say."""
        assert self._engine is not None, "started"
        return await self._engine.numbers()

    async def _held(self, prompt: Prompt) -> Prompt:
        """What of the prompt fits the engine's window. Raises PromptTooLong, PictureError."""
        if self._window is None or self._window.surely_holds(prompt):
            return prompt
        return await asyncio.to_thread(self._window.fit, prompt)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the worker while an answer is under way; `drained` waits for all to be given back."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    async def suspect(self, error: EngineCrashed) -> None:
        """An answer broke off: find out whether the engine is to blame, and end it if so.

        A hang ends it at once, unless it has spoken to others meanwhile: then it is busy. After a broken connection
        or HTTP 5xx it may prove itself by answering a picture. Many answers break off together; the first one asks
        for all.
        """
        since = monotonic()
        if isinstance(error, EngineHung):
            if since - self._spoke < _BUSY * self.launch.settings.token_timeout:
                return
            self.give_up("it was killed because it said nothing any more")
        async with self._suspicion:
            if self.broken or self._engine is None or self._spoke > since:
                return
            try:
                await self._engine.probe(sample_picture(), self.launch.settings.token_timeout)
            except InferenceError:
                self.give_up("it broke an answer off and did not answer a picture then")
            else:
                self._spoke = monotonic()

    def give_up(self, why: str) -> None:
        """Send nobody here any more; kill the process."""
        self.broken = True
        self._why = self._why or why
        self._given_up.set()
        if self._child is not None:
            self._child.kill()

    async def gone(self) -> str:
        """Wait until this engine is of no more use; returns what happened, for the log and the operator."""
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
        """An external server may write where `swap_command` did, as long as it lives."""
        settings = self.launch.settings
        try:
            rotate(self.launch.log, above=int(settings.log_megabytes * 1e6), files=settings.log_files)
        except OSError as error:
            _log.warning("log not rotated", log=str(self.launch.log), error=str(error))

    async def drained(self, patience: float) -> bool:
        """Wait until nobody uses it, or it is gone, or `patience` seconds are over; True if nobody uses it."""
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
        """End the process, close the connections. Answers still under way break off. Safe to call again."""
        self.broken = True
        self._given_up.set()
        try:
            if self._child is not None:
                await self._child.stop(self.launch.settings.stop_timeout)
        finally:
            if self._engine is not None:
                await self._engine.aclose()


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
