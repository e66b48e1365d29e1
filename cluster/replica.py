"""One engine on a node of the cluster: a replica of a model's Ray Serve application.

The replica starts the same worker process that the bot starts when it runs without Ray, waits until the
worker has answered a question about a picture, forwards requests to it, and streams its answers back.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from cluster.model_cache import cache_directory, fetched
from inference.engines.commands import COMMANDS, on_nodes
from inference.messages import EngineCrashed
from inference.serving.engine_launch import Launch
from inference.serving.engine_process import Worker
from inference.settings import InferenceSettings
from storage.model_store import ModelStore

ROUTES: Final = frozenset({("POST", "/v1/chat/completions"), ("GET", "/v1/models")})
"""The routes that the bot uses."""

_LOGS: Final = 50
"""The number of engine log files that a node keeps."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model and the source of its files.

    Attributes:
        id: The model's ID.
        address: The folder or URL with its files.
        hash: The hash of all its files.
    """

    id: str
    address: str
    hash: str


class EngineReplica:
    """An engine that Ray Serve creates on a node, checks, and replaces when it fails."""

    async def __init__(self, model: ServedModel, settings: dict[str, Any], key: str) -> None:  # type: ignore[misc]  # Serve awaits it
        """Start the engine.

        Args:
            model: The model.
            settings: The bot's `[inference]` settings.
            key: The bearer token that requests must carry.

        Raises:
            EngineUnavailable, StorageError, OSError: The engine cannot be started. Ray Serve tries again.
        """
        self._key = key
        self._in_flight = 0
        self._awaited: float | None = None
        """When the engine was first asked or last sent data, or None once all of its answers are complete.

        The time is kept if a client disconnects early.
        """
        node = engine_settings(InferenceSettings.model_validate(settings))
        store = ModelStore(cache_directory() / "models")
        directory = await asyncio.to_thread(fetched, model.address, model.hash, store)
        kind = on_nodes(node)
        log = cache_directory() / "logs" / f"{model.id}-{serve.get_replica_context().replica_id.unique_id}.log"
        await asyncio.to_thread(_remove_old_logs, log.parent)
        self._worker = Worker(Launch(model.id, directory, COMMANDS[kind], log, node))
        await self._worker.start()
        self._gone = asyncio.create_task(self._worker.gone())
        self._silence = node.token_timeout
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._worker.key}"},
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def __call__(self, request: Request) -> Response:
        """Forward a request to the engine."""
        if not hmac.compare_digest(request.headers.get("authorization", ""), f"Bearer {self._key}"):
            return _refusal(401, "This engine needs the key that it was started with, as a bearer token.")
        path = request.scope["path"].removeprefix(request.scope["root_path"])
        if (request.method, path) not in ROUTES:
            return _refusal(404, "This engine has no such route.")
        url = self._worker.client.base_url.removesuffix("/v1") + path
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._counted())
            answer = await stack.enter_async_context(
                self._session.request(
                    request.method, url, data=await request.body(), headers={"Content-Type": "application/json"}
                )
            )
            if answer.content_type != "text/event-stream":
                return Response(await answer.read(), answer.status, media_type=answer.content_type)
            return StreamingResponse(self._passed_on(answer, stack.pop_all()), media_type=answer.content_type)
        raise AssertionError("the block returns")

    async def check_health(self) -> None:
        """Check that the engine's process is running and that it still sends tokens.

        Raises:
            EngineCrashed: The process ended, or it answers neither questions nor a test question.
        """
        if self._awaited is not None and monotonic() - self._awaited > self._silence:
            await self._worker.suspect(EngineCrashed("The engine sent no token."))
            self._awaited = None
        if self._gone.done():
            raise EngineCrashed(f"The engine of {self._worker.model_id} has ended: {self._gone.result()}.")

    async def _passed_on(self, answer: aiohttp.ClientResponse, stack: AsyncExitStack) -> AsyncIterator[bytes]:
        async with stack:
            async for block in answer.content.iter_any():
                self._awaited = monotonic()
                yield block

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._in_flight += 1
        self._awaited = self._awaited or monotonic()
        try:
            yield
            if self._in_flight == 1:
                self._awaited = None
        finally:
            self._in_flight -= 1


def engine_settings(settings: InferenceSettings) -> InferenceSettings:
    """Return the settings of an engine on a node, derived from the bot's settings."""
    cluster = settings.ray
    return settings.model_copy(
        update={
            "python": cluster.python,
            "threads": settings.threads or max(int(cluster.num_cpus), 1),
            # An engine with a GPU to itself need not leave memory for a second engine.
            "swap": "cold" if cluster.num_gpus >= 1 else "blue-green",
        }
    )


def _remove_old_logs(folder: Path) -> None:
    if folder.is_dir():
        for log in sorted(folder.iterdir(), key=lambda log: log.stat().st_mtime, reverse=True)[_LOGS:]:
            log.unlink(missing_ok=True)


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)
