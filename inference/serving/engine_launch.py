"""Launch an engine: a child process with its port and client, or the client of an external server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inference.chat_format.context_window import Window, window_of
from inference.engines.access_key import KEY_VARIABLE, new_key
from inference.engines.commands import Command
from inference.engines.http_client import HttpEngine
from inference.messages import EngineUnavailable
from inference.process.child import Child
from inference.serving.readiness import NotReady, answers_a_picture
from inference.settings import InferenceSettings


@dataclass(frozen=True, slots=True)
class Launch:
    """The parameters for starting the engine of one model.

    `command` is None for an external server, which is at `endpoint`. `environment` is added to the child's environment.
    """

    model_id: str
    model_dir: Path
    command: Command | None
    log: Path
    settings: InferenceSettings
    endpoint: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launched:
    """An engine that is starting. `child` is None for an external server."""

    launch: Launch
    client: HttpEngine
    child: Child | None

    async def ready(self) -> tuple[Window | None, int | None]:
        """Wait for its first answer about a picture; return its context window and the size of its KV cache in tokens.

        Raises EngineUnavailable, with the last lines of its log, if it ends or is not ready within `start_timeout`
        seconds.
        """
        return await (self._answers() if self.child is None else self._answers_before_its_end(self.child))

    async def _answers_before_its_end(self, child: Child) -> tuple[Window | None, int | None]:
        """Wait for the first answer or the child's end, so that a crash at start does not cost the whole timeout."""
        ready = asyncio.ensure_future(self._answers())
        ended = asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise EngineUnavailable(self._failed(f"ended with {child.how_it_ended()} before it was ready"))
            return await ready
        finally:
            ready.cancel()
            ended.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    async def _answers(self) -> tuple[Window | None, int | None]:
        launch, ours = self.launch, self.child is not None
        patience = launch.settings.start_timeout
        # A host that vanishes during a request never closes the connection, so each request has its own timeout.
        longest = patience if ours else launch.settings.token_timeout
        try:
            sizes = await answers_a_picture(self.client, patience=patience, longest=longest)
        except NotReady as error:
            raise EngineUnavailable(self._failed(str(error))) from error
        window = await asyncio.to_thread(window_of, launch.model_dir, launch.settings, ours=ours, longest=sizes.window)
        return window, sizes.cache

    def _failed(self, what: str) -> str:
        if self.child is None:
            return f"The server at {self.launch.endpoint} {what}. Is it running, at this address?"
        tail = self.child.tail()
        wrote = f"its last lines:\n{tail}" if tail else "it wrote nothing."
        return f"The engine of {self.launch.model_id} {what}.\nLog: {self.child.log_path}; {wrote}"


async def begin(launch: Launch) -> Launched:
    """Start the child process with a new API key, or connect to the external server. It is not ready yet.

    Raises EngineUnavailable.
    """
    settings = launch.settings
    if launch.command is None:
        client = HttpEngine(
            launch.endpoint,
            launch.model_id,
            name=settings.endpoint_model,
            token_timeout=settings.token_timeout,
            tiles=settings.tiles,
            api_key=settings.api_key.get_secret_value(),
            local=False,
        )
        return Launched(launch, client, None)
    port, key = free_port(), new_key()
    line = launch.command(launch.model_id, launch.model_dir, port, settings)
    try:
        child = await Child.start(
            line,
            log=launch.log,
            log_bytes=int(settings.log_megabytes * 1e6),
            log_files=settings.log_files,
            environment={**launch.environment, KEY_VARIABLE: key},
        )
    except OSError as error:
        raise EngineUnavailable(
            f"The engine of {launch.model_id} could not be started ({error}): check inference.python."
        ) from error
    client = HttpEngine(
        f"http://127.0.0.1:{port}",
        launch.model_id,
        token_timeout=settings.token_timeout,
        tiles=settings.tiles,
        api_key=key,
    )
    return Launched(launch, client, child)


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
