"""Incremental detokenization: text from tokens as they are generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_REPLACEMENT: Final = "\ufffd"
_LONGEST_CHARACTER: Final = 4
"""The maximum length of a UTF-8 character in bytes, and so the maximum number of byte tokens per character."""


class TextStream:
    """The text of a growing list of tokens.

    Each call decodes only the new tokens and a few before them whose text has already been returned. The
    earlier tokens provide context, because a decoder treats the first token of a text differently
    (SentencePiece drops its space).

    Args:
        decode: A function that converts token IDs to text, omitting special tokens.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = 0
        self._returned = 0

    def push(self, *tokens: int) -> str:
        """Add tokens and return the new text, which never ends in the middle of a character."""
        self._tokens += tokens
        last = len(self._tokens)
        for end in range(last, max(last - _LONGEST_CHARACTER, self._returned - 1), -1):
            text = self._pending(end)
            if not text.endswith(_REPLACEMENT):
                return self._advance(text, end)
        # No character is this long, so the bytes are invalid.
        return self._advance(self._pending(last), last)

    def flush(self) -> str:
        """Return the rest of the text, without an incomplete character at the end."""
        text = self._pending(len(self._tokens)).rstrip(_REPLACEMENT)
        self._context = self._returned = len(self._tokens)
        return text

    def _pending(self, end: int) -> str:
        """Return the text of the tokens before index `end`, without the part that has already been returned."""
        if end == self._returned:
            return ""
        returned = self._decode(self._tokens[self._context : self._returned])
        return self._decode(self._tokens[self._context : end])[len(returned) :]

    def _advance(self, text: str, end: int) -> str:
        if text:
            # After a context without text (a special token), the next token would be decoded as the first of a text.
            self._context = self._returned
        self._returned = end
        return text
