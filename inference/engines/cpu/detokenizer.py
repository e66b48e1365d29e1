"""Tokens to text, piece by piece: what a stream may show, and where it must stop.

Knows that a character can take several tokens and that a stop string can arrive in several pieces. Knows neither
models nor sampling nor tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

_REPLACEMENT: Final = "\ufffd"
_LONGEST_CHARACTER: Final = 4
"""Bytes of the longest UTF-8 character: so many byte tokens can wait for their last one."""


class TextStream:
    """The text of one growing list of tokens.

    `decode` turns token ids into their text, special tokens left out. Decodes a short window only: a few tokens that
    are already shown, because a decoder treats the first token of a text differently (SentencePiece drops its
    space), and those that are not.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = 0
        self._shown = 0

    def push(self, *tokens: int) -> str:
        """Add tokens; return the text that is certain now, never half a character."""
        self._tokens += tokens
        everything = len(self._tokens)
        for end in range(everything, max(everything - _LONGEST_CHARACTER, self._shown - 1), -1):
            text = self._pending(end)
            if not text.endswith(_REPLACEMENT):
                return self._show(text, end)
        # No character is so long: these bytes are none.
        return self._show(self._pending(everything), everything)

    def flush(self) -> str:
        """What is left at the end; a character that never became whole is left out."""
        text = self._pending(len(self._tokens)).rstrip(_REPLACEMENT)
        self._context = self._shown = len(self._tokens)
        return text

    def _pending(self, end: int) -> str:
        """The text of the tokens up to `end` that is not shown yet."""
        if end == self._shown:
            return ""
        shown = self._decode(self._tokens[self._context : self._shown])
        return self._decode(self._tokens[self._context : end])[len(shown) :]

    def _show(self, text: str, end: int) -> str:
        if text:
            # A context without text (a special token) would make the next token the first of a text.
            self._context = self._shown
        self._shown = end
        return text


class StopStrings:
    """Holds text back while it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be shown, and whether a stop string was found (it is not shown, nor what follows)."""
        if not self._stops:
            return text, False
        held = self._held + text
        found = [(held.find(stop) + len(stop), held.find(stop)) for stop in self._stops if stop in held]
        if found:
            # The one complete first, so that it does not matter how the text was cut into pieces.
            self._held = ""
            return held[: min(found)[1]], True
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
