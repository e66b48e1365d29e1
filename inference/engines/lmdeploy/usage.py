"""How many tiles an answer of lmdeploy's had encoded, in its usage, where the CPU engine says it too.

TurboMind encodes a picture whole as soon as one of its positions lies behind the cached part of the prompt, and says
how long that part is. Where it runs and where the usage is written are far apart but one task, so the number travels
in a context variable. Knows of lmdeploy the fields of an engine's outputs and items, and three names in
`serve/openai/chat_completions/serving.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

_encoded: Final[ContextVar[int]] = ContextVar("encoded_tiles", default=0)

Placed = tuple[int, int]
"""A picture in a prompt: the position behind its last token, and its tiles."""


def placed(items: Iterable[Mapping[str, Any]] | None) -> list[Placed]:
    """The pictures among what goes to TurboMind as `multimodal`."""
    return [(item["offset"] + item["image_tokens"], item["pixel_values"].shape[0]) for item in items or ()]


def note_encoded(pictures: Sequence[Placed], output: Any) -> None:
    """Take one of TurboMind's outputs to the prompt with these pictures; called in the request's own task."""
    cached = output.req_metrics.cached_tokens if output.req_metrics is not None else 0
    _encoded.set(sum(tiles for end, tiles in pictures if end > cached))


def extend_usage() -> None:
    """Have lmdeploy's chat completions say `encoded_tiles` in their usage. Called once, before `api_server.serve`."""
    from lmdeploy.serve.openai.chat_completions import serving

    class Usage(serving.UsageInfo):  # type: ignore[misc]
        encoded_tiles: int = 0

        @classmethod
        def build(cls, *inputs: Any, **more: Any) -> Any:
            usage = super().build(*inputs, **more)
            usage.encoded_tiles = _encoded.get()
            return usage

    # A response writes the fields of the type that it declares.
    class Response(serving.ChatCompletionResponse):  # type: ignore[misc]
        usage: Usage

    class StreamResponse(serving.ChatCompletionStreamResponse):  # type: ignore[misc]
        usage: Usage | None = None

    serving.UsageInfo = Usage
    serving.ChatCompletionResponse = Response
    serving.ChatCompletionStreamResponse = StreamResponse
