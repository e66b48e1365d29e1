"""From a prompt to a task: pictures decoded and tiled, text tokenised, both named for the caches.

Knows the checkpoint's numbers (tile size, tokens a tile, window) and its tokenizer, not its weights. All of it may
run in any thread, several at once. Computing the answer is generation.py's.
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
from inference.chat_format.token_ids import Span, token_ids
from inference.images.opening import open_picture
from inference.internvl2.tiles import pixel_values, tiles
from inference.messages import Picture, Prompt, PromptTooLong, Sampling, Usage

_TILE_COUNTS: Final = 4096
"""Pictures whose number of tiles is remembered, so that a known one need not be decoded."""


@dataclass(frozen=True, slots=True)
class Result:
    """How an answer ended ("stop", "length" or "abort") and what it cost."""

    finish: str
    usage: Usage


Listener = Callable[[str | Result | Exception], None]
"""Is called from the engine's thread with pieces of text, then once with the result or what went wrong."""


@dataclass(slots=True)
class View:
    """A picture in a prompt: its name in the caches, its place, its pixels once decoded ([T, 3, S, S]).

    `features` ([positions, width]) are here from its first chunk to its last, whatever a cache has room for.
    """

    key: int
    span: Span
    picture: Picture
    limit: int | None
    pixels: Tensor | None
    features: Tensor | None = None


@dataclass(slots=True)
class Task:
    """A prompt that is ready to be answered."""

    ids: list[int]
    keys: list[int]
    views: list[View]
    sampling: Sampling
    stop: tuple[str, ...]
    listener: Listener = field(default=lambda _event: None)
    aborted: threading.Event = field(default_factory=threading.Event)

    def abort(self) -> None:
        """Stop computing soon; the result will say "abort". From any thread, also when all is over."""
        self.aborted.set()


class Preparer:
    """Makes tasks for one model from prompts. Takes the checkpoint's configuration, its `num_image_token`
    (positions that a tile fills) and its tokenizer.
    """

    def __init__(self, config: Any, num_image_token: int, tokenizer: Any) -> None:
        self._config = config
        self._positions_a_tile = num_image_token
        self._tokenizer = tokenizer
        self._tokenizing = threading.Lock()
        self.side: int = config.force_image_size or config.vision_config.image_size
        self._tile_counts: LRUCache[int, int] = LRUCache(_TILE_COUNTS)
        self._counting = threading.Lock()

    @property
    def patches(self) -> int:
        """ViT patches of one tile."""
        return int(self.side // self._config.vision_config.patch_size) ** 2

    @property
    def window(self) -> int:
        """Positions the model was made for, prompt and answer together."""
        return int(self._config.llm_config.max_position_embeddings)

    def prepare(
        self, prompt: Prompt, *, tile_limits: Sequence[int | None] | None = None, stop: Sequence[str] = ()
    ) -> Task:
        """Decode, tile and tokenise. `tile_limits` has the most tiles of each picture, None as the checkpoint says.

        Raises PictureError, and PromptTooLong when no room for an answer is left in the window.
        """
        shown = pictures(prompt)
        limits = [None] * len(shown) if tile_limits is None else tile_limits
        seen: list[tuple[int, int, Tensor | None]] = []
        positions: list[int] = []
        for picture, limit in zip(shown, limits, strict=True):
            seen.append(self._look(picture, limit))
            positions.append(seen[-1][1] * self._positions_a_tile)
            # Before the next one is decoded: an album without end would fill the memory.
            self._fits(sum(positions))
        # A tokenizer's Rust part refuses to be used from two threads at once.
        with self._tokenizing:
            ids, spans = token_ids(prompt, positions, self._tokenizer)
        self._fits(len(ids))
        keys = list(ids)
        views: list[View] = []
        for picture, limit, (key, _, pixels), span in zip(shown, limits, seen, spans, strict=True):
            keys[span.start : span.stop] = [key] * span.length
            views.append(View(key, span, picture, limit, pixels))
        return Task(ids, keys, views, prompt.sampling, tuple(stop))

    def decode(self, picture: Picture, limit: int | None) -> Tensor:
        """The picture's tiles, at most `limit` and a thumbnail, as float32 [T, 3, S, S]. Raises PictureError."""
        config = self._config
        most = limit or (config.max_dynamic_patch if config.dynamic_image_size else 1)
        cut = tiles(
            open_picture(picture.data),
            image_size=self.side,
            min_num=min(config.min_dynamic_patch, most),
            max_num=most,
            use_thumbnail=config.use_thumbnail,
        )
        return pixel_values(cut)

    def _fits(self, tokens: int) -> None:
        if tokens >= self.window:
            raise PromptTooLong(
                f"The prompt has {tokens} tokens or more and the model's context length is {self.window}: "
                "shorten it or send fewer pictures."
            )

    def _look(self, picture: Picture, limit: int | None) -> tuple[int, int, Tensor | None]:
        """A picture's key, its number of tiles and, unless that was known already, its pixels."""
        name = sha256(f"{picture.sha256} {limit}".encode()).digest()
        key = -1 - int.from_bytes(name[:8], "big") // 2
        with self._counting:
            if key in self._tile_counts:
                return key, self._tile_counts[key], None
        pixels = self.decode(picture, limit)
        with self._counting:
            self._tile_counts[key] = len(pixels)
        return key, len(pixels), pixels
