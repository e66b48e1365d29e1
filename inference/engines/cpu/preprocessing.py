"""Preparation of generation requests: decoding and tiling pictures, tokenizing text, assigning cache keys.

The preparation needs the checkpoint's configuration and tokenizer, but not its weights, and is
thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from cachetools import LRUCache
from torch import Tensor

from inference.chat_format.template import pictures
from inference.chat_format.token_ids import token_ids
from inference.images.opening import open_picture
from inference.internvl2.families import family_of
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import pixel_values, tiles
from inference.messages import Picture, Prompt, PromptTooLong, Sampling, Usage

_TILE_COUNTS: Final = 4096
"""The number of pictures whose tile count is remembered, so that they need not be decoded again."""

_LONG: Final = 1 << 40
"""Added to the first cache key of a long sequence, whose keys and values differ from those of a short one (Phi-3)."""


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The finish reason of an answer ("stop", "length" or "abort"), and its token counts."""

    finish: str
    usage: Usage


Listener = Callable[[str | GenerationResult | Exception], None]
"""Called in the engine's thread with each piece of text, then once with the result or the exception."""


@dataclass(slots=True)
class PromptPicture:
    """A picture in a prompt: its cache key, its number of tiles and its positions among the token IDs.

    Attributes:
        limit: The maximum number of tiles, or None for the checkpoint's own limit.
        pixels: The tiles [tiles, 3, S, S], or None if the picture has not been decoded because its number
            of tiles was already known.
        features: The features [positions, width], kept during prefill in case the feature cache is too
            small.
    """

    key: int
    picture: Picture
    limit: int | None
    tiles: int
    pixels: Tensor | None
    span: range = range(0)
    features: Tensor | None = None


class Aborted(Exception):
    """The request was aborted."""


@dataclass(slots=True)
class GenerationRequest:
    """A prompt that is ready for the engine, and the progress of its answer.

    Attributes:
        ids: The prompt's token IDs.
        keys: One cache key for each position: the token ID or, at the positions of a picture, the picture's
            key. The first key also distinguishes long sequences from short ones if the model computes them
            differently.
    """

    ids: list[int]
    keys: list[int]
    pictures: list[PromptPicture]
    sampling: Sampling
    listener: Listener = field(default=lambda _event: None)
    completion_tokens: int = 0
    encoded_tiles: int = 0
    _aborted: threading.Event = field(default_factory=threading.Event)

    @property
    def length(self) -> int:
        """The maximum number of positions of the prompt and the answer together."""
        return len(self.ids) + self.sampling.max_new_tokens

    def abort(self) -> None:
        """Make the generation stop soon, with the finish reason "abort".

        This method may be called from any thread, even after the generation has ended.
        """
        self._aborted.set()

    def check_abort(self) -> None:
        """Raise `Aborted` if `abort` has been called."""
        if self._aborted.is_set():
            raise Aborted


class Preprocessor:
    """Builder of generation requests for one model.

    Args:
        config: The checkpoint's configuration.
        tokenizer: The checkpoint's tokenizer.
    """

    def __init__(self, config: Any, tokenizer: Any) -> None:
        self._config = config.to_dict()
        self._short_length: int | None = config.short_length
        self.family = family_of(self._config)
        self.tiling = Tiling.from_config(self._config)
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._tile_counts: LRUCache[int, int] = LRUCache(_TILE_COUNTS)
        self.window: int = config.llm_config.max_position_embeddings
        """The model's context length in positions, for the prompt and the answer together."""

    def prepare(self, prompt: Prompt, *, tile_limits: Sequence[int | None] | None = None) -> GenerationRequest:
        """Decode and tile the pictures of a prompt, and tokenize its text.

        Args:
            prompt: The prompt.
            tile_limits: The maximum number of tiles of each picture, or None for the checkpoint's own limit.

        Raises:
            PictureError: A picture cannot be read.
            PromptTooLong: The prompt leaves no room for an answer in the context window.
        """
        given = pictures(prompt)
        limits = [None] * len(given) if tile_limits is None else tile_limits
        prepared: list[PromptPicture] = []
        for picture, limit in zip(given, limits, strict=True):
            prepared.append(self._picture(picture, limit))
            # Checked before the next picture is decoded, because a huge album would exhaust the memory.
            self._check_length(sum(each.tiles for each in prepared) * self.tiling.tokens)
        # A fast tokenizer's Rust part raises an error when two threads use it at once.
        with self._lock:
            ids, spans = token_ids(
                prompt, [each.tiles * self.tiling.tokens for each in prepared], self._tokenizer, self.family
            )
        self._check_length(len(ids))
        keys = list(ids)
        for each, span in zip(prepared, spans, strict=True):
            each.span = span
            keys[span.start : span.stop] = [each.key] * len(span)
        request = GenerationRequest(ids, keys, prepared, prompt.sampling)
        if self._short_length is not None and request.length > self._short_length:
            keys[0] += _LONG
        return request

    def decode(self, picture: Picture, limit: int | None) -> Tensor:
        """Return a picture as float32 [tiles, 3, S, S], with at most `limit` tiles and a thumbnail.

        Raises:
            PictureError: The picture cannot be read.
        """
        return pixel_values(tiles(open_picture(picture.data), Tiling.from_config(self._config, limit)))

    def _check_length(self, tokens: int) -> None:
        if tokens >= self.window:
            raise PromptTooLong(
                f"The prompt has {tokens} tokens or more, and the model's context length is {self.window}: "
                "shorten it or send fewer pictures."
            )

    def _picture(self, picture: Picture, limit: int | None) -> PromptPicture:
        digest = sha256(f"{picture.sha256} {limit}".encode()).digest()
        # Negative, so that it never equals a token ID.
        key = -1 - int.from_bytes(digest[:8], "big") // 2
        with self._lock:
            count = self._tile_counts.get(key)
        if count is not None:
            return PromptPicture(key, picture, limit, count, pixels=None)
        pixels = self.decode(picture, limit)
        with self._lock:
            self._tile_counts[key] = len(pixels)
        return PromptPicture(key, picture, limit, len(pixels), pixels)
