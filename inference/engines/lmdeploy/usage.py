"""Adds `encoded_tiles`, the tiles that went through the vision tower, to the usage in lmdeploy's responses.

Replaces `UsageInfo`, `ChatCompletionResponse` and `ChatCompletionStreamResponse` in lmdeploy 0.18.0's
serve/openai/chat_completions/serving.py, because its usage has no such field. TurboMind encodes a picture whole if any
of its positions is beyond the cached part of the prompt, whose length its output contains. The engine's output and the
response are handled in the same asyncio task, so the number is passed in a context variable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

from lmdeploy.serve.openai.chat_completions import serving

_encoded: Final[ContextVar[int]] = ContextVar("encoded_tiles", default=0)

PictureEnd = tuple[int, int]
"""The position after a picture's last token, and the number of its tiles."""


def picture_ends(items: Iterable[Mapping[str, Any]] | None) -> list[PictureEnd]:
    """Return the ends and sizes of the pictures in TurboMind's `multimodal` argument."""
    return [(item["offset"] + item["image_tokens"], item["pixel_values"].shape[0]) for item in items or ()]


def note_encoded(pictures: Sequence[PictureEnd], output: Any) -> None:
    """Record the encoded tiles from an output of TurboMind. Call it in the request's own task."""
    cached = output.req_metrics.cached_tokens if output.req_metrics is not None else 0
    _encoded.set(sum(tiles for end, tiles in pictures if end > cached))


class Usage(serving.UsageInfo):  # type: ignore[misc]
    """The usage with the encoded tiles of the current task."""

    encoded_tiles: int = 0

    @classmethod
    def build(cls, *inputs: Any, **more: Any) -> Any:
        """Build the usage as lmdeploy does."""
        usage = super().build(*inputs, **more)
        usage.encoded_tiles = _encoded.get()
        return usage


# A response serializes the fields of the declared type only.
class Response(serving.ChatCompletionResponse):  # type: ignore[misc]
    """A whole answer."""

    usage: Usage


class StreamResponse(serving.ChatCompletionStreamResponse):  # type: ignore[misc]
    """A chunk of a streamed answer."""

    usage: Usage | None = None


def patch_usage() -> None:
    """Install the response types with `encoded_tiles`. Call it once, before `api_server.serve`."""
    serving.UsageInfo = Usage
    serving.ChatCompletionResponse = Response
    serving.ChatCompletionStreamResponse = StreamResponse
