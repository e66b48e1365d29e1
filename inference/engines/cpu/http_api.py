"""The CPU engine's HTTP server, with OpenAI's chat API and a queue for the engine's slots.

The server handles POST /v1/chat/completions (streamed or not, with pictures as data: URLs), and GET
/v1/models, /health and /metrics. Each slot generates one answer at a time; further requests wait in
order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import CONTENT_TYPE_LATEST

from inference.engines.access_key import check_access
from inference.engines.cpu.engine import ChatEngine
from inference.engines.cpu.metrics import EngineMetrics
from inference.engines.cpu.openai_schema import ApiError, ChatRequest, CompletionBuilder, parse
from inference.engines.cpu.preprocessing import GenerationRequest, GenerationResult
from inference.messages import INVALID_PICTURE, PictureError, PromptTooLong

_log: Final = logging.getLogger(__name__)

_BODY_BYTES: Final = 128 * 2**20
_MAX_WAITING: Final = 64
"""The maximum number of requests that wait for a slot; further requests are refused."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Events = AsyncIterator[str | GenerationResult]


class Server:
    """The HTTP server of one engine.

    Attributes:
        app: The aiohttp application. Its clients must send `key` as a bearer token.
        engine: The engine, to be set once it is warm; None until then.
    """

    def __init__(self, name: str, *, slots: int, key: str) -> None:
        self.engine: ChatEngine | None = None
        self._name = name
        self._slots = asyncio.Semaphore(slots)
        self._waiting = 0
        self._metrics = EngineMetrics(name)
        self.app = web.Application(client_max_size=_BODY_BYTES, middlewares=[_errors_as_json, _access_check(key)])
        self.app.add_routes(
            [
                web.post("/v1/chat/completions", self._complete),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/metrics", self._show_metrics),
            ]
        )

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        outcome = "error"
        try:
            engine, chat = self._ready(), await self._read(request)
            async with self._slot():
                prepared = await _prepare(engine, chat)
                async with aclosing(self._generate(engine, prepared, arrived)) as events:
                    respond = self._stream if chat.stream else self._respond
                    response, outcome = await respond(request, chat, events)
            return response
        except (asyncio.CancelledError, ConnectionResetError):
            outcome = "abort"
            raise
        except ApiError as error:
            outcome = "rejected" if error.status < 500 else "error"
            raise
        finally:
            self._metrics.requests.labels(outcome).inc()

    async def _respond(
        self, _request: web.Request, _chat: ChatRequest, events: _Events
    ) -> tuple[web.StreamResponse, str]:
        """Return the whole answer as a JSON response, and how the answer ended."""
        texts: list[str] = []
        async for event in events:
            if isinstance(event, GenerationResult):
                body = CompletionBuilder(self._name).completion("".join(texts), event.finish, event.usage)
                return web.json_response(body), event.finish
            texts.append(event)
        raise AssertionError("the generation ended without a result")

    async def _stream(self, request: web.Request, chat: ChatRequest, events: _Events) -> tuple[web.StreamResponse, str]:
        """Send the answer as server-sent events; return the response and how the answer ended."""
        builder = CompletionBuilder(self._name)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        await _send_event(response, builder.chunk({"role": "assistant", "content": ""}))
        outcome = "error"
        try:
            async for event in events:
                if isinstance(event, str):
                    await _send_event(response, builder.chunk({"content": event}))
                    continue
                outcome = event.finish
                for chunk in builder.last_chunks(event.finish, event.usage, separate_usage=chat.include_usage):
                    await _send_event(response, chunk)
                await response.write(b"data: [DONE]\n\n")
        except ApiError as error:
            # The status line has been sent; OpenAI's clients raise an exception for an error in the stream.
            await _send_event(response, error.body())
        return response, outcome

    async def _generate(
        self, engine: ChatEngine, request: GenerationRequest, arrived: float
    ) -> AsyncGenerator[str | GenerationResult, None]:
        """Yield the pieces of an answer, then its result. Closing the generator aborts the generation.

        Raises:
            ApiError: The engine failed.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | GenerationResult | Exception] = asyncio.Queue()

        def listener(event: str | GenerationResult | Exception) -> None:
            # RuntimeError: the loop is closed, which happens if the server exits in the middle of an answer.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, event)

        engine.submit(request, listener)
        first = True
        try:
            while isinstance(event := await queue.get(), str):
                if first:
                    self._metrics.first_token.observe(time.monotonic() - arrived)
                    first = False
                yield event
            if isinstance(event, Exception):
                _log.error("a generation failed", exc_info=event)
                raise ApiError(f"The engine failed: {event}", status=500, code="engine_failed") from event
            self._metrics.count(event.usage)
            yield event
        finally:
            request.abort()

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for a slot, first come, first served, and hold it until the block ends.

        Raises:
            ApiError: Too many requests are already waiting.
        """
        if self._waiting >= _MAX_WAITING:
            raise ApiError("The engine is overloaded: ask again in a moment.", status=429, code="overloaded")
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            with self._metrics.running.track_inprogress():
                yield
        finally:
            self._slots.release()

    async def _read(self, request: web.Request) -> ChatRequest:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise ApiError(
                f"The request is larger than {_BODY_BYTES // 2**20} MiB: send fewer or smaller pictures.",
                status=error.status,
                code="request_too_large",
            ) from error
        return await asyncio.to_thread(parse, body, self._name, self._ready().preprocessor.family.system)

    def _ready(self) -> ChatEngine:
        if self.engine is None:
            raise ApiError("The model is loading: ask again in a moment.", status=503, code="loading")
        return self.engine

    async def _models(self, _request: web.Request) -> web.Response:
        model: dict[str, Any] = {"id": self._name, "object": "model", "created": 0, "owned_by": "thumbtune"}
        if self.engine is not None:
            model["max_model_len"] = self.engine.preprocessor.window
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, _request: web.Request) -> web.Response:
        self._ready()
        return web.json_response({"status": "ok", "model": self._name})

    async def _show_metrics(self, _request: web.Request) -> web.Response:
        self._metrics.waiting.set(self._waiting)
        self._metrics.cache_bytes.set(0 if self.engine is None else self.engine.cache_bytes)
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _prepare(engine: ChatEngine, chat: ChatRequest) -> GenerationRequest:
    try:
        return await asyncio.to_thread(engine.preprocessor.prepare, chat.prompt, tile_limits=chat.tiles)
    except PictureError as error:
        raise ApiError(str(error), code=INVALID_PICTURE, param="messages") from error
    except PromptTooLong as error:
        raise ApiError(str(error), code="context_length_exceeded", param="messages") from error


async def _send_event(response: web.StreamResponse, body: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n")


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error.body(), status=error.status)
    except web.HTTPException as error:
        body = ApiError(f"{error.reason}: {request.method} {request.path}", status=error.status).body()
        return web.json_response(body, status=error.status)


def _access_check(key: str) -> Middleware:
    """Return a middleware that refuses requests unless they carry `key` and name a loopback host."""

    def header(request: web.Request, name: str) -> bytes:
        return request.headers.get(name, "").encode("utf-8", "surrogateescape")

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        denied = check_access(key, host=header(request, "Host"), authorization=header(request, "Authorization"))
        if denied is not None:
            raise ApiError(denied.message, status=denied.status)
        return await handler(request)

    return check
