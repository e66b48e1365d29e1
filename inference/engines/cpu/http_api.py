"""The HTTP side of the CPU engine: the OpenAI chat API, slots, and the way from the engine's thread to the event loop.

    POST /v1/chat/completions   data: pictures, streaming or not
    POST /tokenize              the same body; the prompt's token ids, to compare engines
    GET  /v1/models  /health  /metrics

So many answers as there are slots are computed at a time, the rest wait in order. Computing is generation.py's, the
shape of requests and answers openai_api.py's, the process cpu_server.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import CONTENT_TYPE_LATEST

from inference.engines.access_key import refusal
from inference.engines.cpu.engine import ChatEngine
from inference.engines.cpu.engine_metrics import EngineMetrics
from inference.engines.cpu.openai_schema import ApiError, ChatRequest, Reply, parse
from inference.engines.cpu.tasks import Result, Task
from inference.messages import INVALID_PICTURE, PictureError, PromptTooLong

_log: Final = logging.getLogger(__name__)

_BODY_BYTES: Final = 128 * 2**20
_WAITING: Final = 64
"""Requests that may wait for a slot; the next is refused."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The HTTP side of one engine: `app` is its aiohttp application, `engine` is set once it is warm.

    Requests must carry `key` (access.py).
    """

    def __init__(self, name: str, *, slots: int, key: str) -> None:
        self.engine: ChatEngine | None = None
        self._name = name
        self._slots = asyncio.Semaphore(slots)
        self._waiting = 0
        self._metrics = EngineMetrics(name)
        self.app = web.Application(client_max_size=_BODY_BYTES, middlewares=[_errors_as_json, _only_with(key)])
        self.app.add_routes(
            [
                web.post("/v1/chat/completions", self._complete),
                web.post("/tokenize", self._tokenize),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/metrics", self._show_metrics),
            ]
        )

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = time.monotonic()
        outcome = "error"
        try:
            engine, chat = self._ready(), await self._read(request)
            async with self._slot():
                answer = _Answer(engine, await _prepare(engine, chat))
                try:
                    send = self._stream if chat.stream else self._send
                    response = await send(request, chat, answer, asked)
                finally:
                    answer.task.abort()
            if answer.result is not None:
                self._metrics.count(answer.result.usage)
                outcome = answer.result.finish
            return response
        except (asyncio.CancelledError, ConnectionResetError):
            outcome = "abort"
            raise
        except ApiError as error:
            outcome = "rejected" if error.status < 500 else "error"
            raise
        finally:
            self._metrics.requests.labels(outcome).inc()

    async def _send(self, _request: web.Request, _chat: ChatRequest, answer: _Answer, asked: float) -> web.Response:
        """The whole answer in one JSON."""
        text = "".join([piece async for piece in self._timed(answer, asked)])
        return web.json_response(Reply(self._name).whole(text, *answer.ended()))

    async def _stream(
        self, request: web.Request, chat: ChatRequest, answer: _Answer, asked: float
    ) -> web.StreamResponse:
        """The answer as server-sent events while it comes."""
        reply = Reply(self._name)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        await _event(response, reply.opening())
        try:
            async for piece in self._timed(answer, asked):
                await _event(response, reply.piece(piece))
        except ApiError as error:
            # The status has gone out already; OpenAI's clients raise on an error in the stream.
            await _event(response, error.body())
            return response
        for chunk in reply.closing(*answer.ended(), apart=chat.include_usage):
            await _event(response, chunk)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _timed(self, answer: _Answer, asked: float) -> AsyncIterator[str]:
        """The answer's pieces; the first one's time is noted."""
        first = True
        async for piece in answer.pieces():
            if first:
                self._metrics.first_token.observe(time.monotonic() - asked)
                first = False
            yield piece

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for a slot, first come, first served. Raises ApiError when too many wait."""
        if self._waiting >= _WAITING:
            raise ApiError("The engine has too much to do: ask again in a moment.", status=429, code="overloaded")
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
        return await asyncio.to_thread(parse, body, self._name)

    def _ready(self) -> ChatEngine:
        if self.engine is None:
            raise ApiError("The model is loading: ask again in a moment.", status=503, code="loading")
        return self.engine

    async def _tokenize(self, request: web.Request) -> web.Response:
        task = await _prepare(self._ready(), await self._read(request))
        return web.json_response({"tokens": task.ids, "count": len(task.ids)})

    async def _models(self, _request: web.Request) -> web.Response:
        model: dict[str, Any] = {"id": self._name, "object": "model", "created": 0, "owned_by": "thumbtune"}
        if self.engine is not None:
            model["max_model_len"] = self.engine.preparer.window
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, _request: web.Request) -> web.Response:
        self._ready()
        return web.json_response({"status": "ok", "model": self._name})

    async def _show_metrics(self, _request: web.Request) -> web.Response:
        self._metrics.waiting.set(self._waiting)
        self._metrics.cache_bytes.set(0 if self.engine is None else self.engine.cache_bytes)
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Answer:
    """An answer under way: from the engine's thread to the event loop."""

    def __init__(self, engine: ChatEngine, task: Task) -> None:
        self.task = task
        self.result: Result | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | Result | Exception] = asyncio.Queue()
        engine.submit(task, self._hear)

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it comes; afterwards `result` is there. Raises ApiError when the engine failed."""
        while self.result is None:
            event = await self._events.get()
            if isinstance(event, str):
                yield event
            elif isinstance(event, Result):
                self.result = event
            else:
                _log.error("an answer failed", exc_info=event)
                raise ApiError(f"The engine failed: {event}", status=500, code="engine_failed") from event

    def ended(self) -> tuple[str, Any]:
        """How it ended and what it cost, once `pieces` are through."""
        assert self.result is not None
        return self.result.finish, self.result.usage

    def _hear(self, event: str | Result | Exception) -> None:
        # A loop that is closed has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


async def _prepare(engine: ChatEngine, chat: ChatRequest) -> Task:
    prepare = engine.preparer.prepare
    try:
        return await asyncio.to_thread(prepare, chat.prompt, tile_limits=chat.tiles, stop=chat.stop)
    except PictureError as error:
        raise ApiError(str(error), code=INVALID_PICTURE, param="messages") from error
    except PromptTooLong as error:
        raise ApiError(str(error), code="context_length_exceeded", param="messages") from error


async def _event(response: web.StreamResponse, body: dict[str, Any]) -> None:
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


def _only_with(key: str) -> Middleware:
    """Return the middleware that refuses whatever access.py refuses."""

    def header(request: web.Request, name: str) -> bytes:
        return request.headers.get(name, "").encode("utf-8", "surrogateescape")

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        refused = refusal(key, host=header(request, "Host"), authorization=header(request, "Authorization"))
        if refused is not None:
            raise ApiError(refused.message, status=refused.status)
        return await handler(request)

    return check
