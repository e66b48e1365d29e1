"""Read the chunks of a streamed answer from OpenAI's chat API."""

from __future__ import annotations

from typing import Final

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk

from inference.messages import EngineCrashed, Usage

COMPLETE: Final = ("stop", "length")
"""The finish reasons of complete answers."""


class ChunkReader:
    """Collector of the text, usage and finish reason from one stream of OpenAI's chat completion chunks."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.usage = Usage()
        self._finish: str | None = None
        self._model: str | None = None

    def read(self, chunk: ChatCompletionChunk) -> str:
        """Read a chunk and return its text, which may be empty.

        Raises:
            EngineCrashed: The chunk names a different model than earlier chunks.
        """
        if self._model not in (None, chunk.model):
            raise EngineCrashed(f"The engine's model changed from {self._model!r} to {chunk.model!r} mid-answer.")
        self._model = chunk.model
        if chunk.usage is not None:
            self.usage = _usage(chunk.usage)
        text = ""
        for choice in chunk.choices or ():
            self._finish = choice.finish_reason or self._finish
            text += (choice.delta.content if choice.delta else None) or ""
        if text:
            self.texts.append(text)
        return text

    def finish_reason(self) -> str:
        """Return the finish reason, "stop" or "length".

        Raises:
            EngineCrashed: The answer ended in another way, including "abort": a client that aborts an answer does
                not read its end.
        """
        if self._finish in COMPLETE:
            return self._finish
        raise EngineCrashed(f"The engine ended its answer after {len(self.texts)} pieces ({self._finish}).")


def _usage(usage: CompletionUsage) -> Usage:
    """Convert the usage, including `encoded_tiles`, which is an extension of the bot's own engines."""
    details = usage.prompt_tokens_details
    return Usage(
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=(details.cached_tokens if details else None) or 0,
        encoded_tiles=(usage.model_extra or {}).get("encoded_tiles", 0),
    )
