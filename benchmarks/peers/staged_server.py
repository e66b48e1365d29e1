"""Run thumbtune's lmdeploy server and record how long each stage of a request takes.

    python -m benchmarks.peers.staged_server REPORT.jsonl ARGUMENT…

serving.py starts this script with `--stages`. For each question, a JSON line with the seconds of each stage in `STAGES`
is appended to REPORT.jsonl.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import uvicorn

from inference.engines.lmdeploy import patches, server, tile_cache

STAGES: Final = ("read", "parse", "tile", "tokenize", "submit", "compute")
"""The stages of a request: its body is read; lmdeploy parses and checks it; the pictures are tiled or found in the
cache; the prompt is tokenized; lmdeploy prepares the answer; TurboMind admits the prompt and computes a token."""

_ends: Final[ContextVar[list[float] | None]] = ContextVar("ends", default=None)
"""The times at which the stages of the current request have ended, after the time at which the request began."""

App = Callable[[Mapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


def end(stage: str) -> None:
    """Record that a stage of the current request has ended, if it is the next one."""
    ends = _ends.get()
    if ends is not None and len(ends) == 1 + STAGES.index(stage):
        ends.append(time.perf_counter())


class TileCache(tile_cache.TileCache):
    """A tile cache that records when a picture's tiles are there."""

    async def get(self, url: str, max_tiles: int | None = None) -> Any:
        """Return the picture, prepared for the vision tower."""
        prepared = await super().get(url, max_tiles)
        end("tile")
        return prepared


class Processor(patches.Processor):
    """A processor that records when it is called and when the prompt is tokenized."""

    async def _get_multimodal_prompt_input(self, *inputs: Any, **more: Any) -> Any:
        end("parse")
        prompt = await super()._get_multimodal_prompt_input(*inputs, **more)
        end("tokenize")
        return prompt


class Instance(patches.Instance):
    """A TurboMind instance that records when it is given a prompt and when the first token is there."""

    async def async_stream_infer(self, *inputs: Any, **more: Any) -> AsyncIterator[Any]:
        """Generate as the worker does."""
        end("submit")
        stock: Any = super().async_stream_infer(*inputs, **more)
        async with aclosing(stock) as outputs:
            async for output in outputs:
                end("compute")
                yield output


def recording(app: App, report: Path) -> App:
    """Return an ASGI application that appends the seconds of each question's stages to `report`."""

    async def serve(scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if not scope.get("path", "").endswith("/chat/completions"):
            return await app(scope, receive, send)
        ends = [time.perf_counter()]
        _ends.set(ends)

        async def read() -> Any:
            message = await receive()
            if not message.get("more_body"):
                end("read")
            return message

        await app(scope, read, send)
        seconds = (after - before for before, after in itertools.pairwise(ends))
        with report.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(zip(STAGES, seconds, strict=True))) + "\n")
        return None

    return serve


def main() -> None:
    """Run the server until it is killed."""
    report = Path(sys.argv.pop(1))
    stock_run = uvicorn.run
    uvicorn.run = lambda app, **more: stock_run(recording(app, report), **more)
    for replacement in (TileCache, Processor, Instance):
        setattr(patches, replacement.__name__, replacement)
    server.main()


if __name__ == "__main__":
    main()
