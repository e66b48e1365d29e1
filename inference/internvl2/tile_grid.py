"""Choice of the tile grid for a picture's width and height (InternVL's dynamic high resolution).

The grids are identical to those of the official preprocessing (InternVL 1.5, arXiv 2404.16821,
section 3.2). Only the standard library is used, because the bot counts tiles with this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True, slots=True)
class Tiling:
    """The tiling configuration of a checkpoint.

    Attributes:
        side: The side length of a tile in pixels.
        tokens: The number of feature tokens per tile.
        min_tiles: The minimum number of tiles per picture.
        max_tiles: The maximum number of tiles per picture, not counting the thumbnail.
        thumbnail: Whether a picture with several tiles also gets a thumbnail.
    """

    side: int = 448
    tokens: int = 256
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any], max_tiles: int | None = None) -> Tiling:
        """Return the tiling described by `config`, the content of a checkpoint's config.json.

        A `max_tiles` above 0 overrides the limit in `config`.
        """
        side = config.get("force_image_size") or config["vision_config"]["image_size"]
        patches = side // config["vision_config"]["patch_size"]
        max_tiles = max_tiles or (config["max_dynamic_patch"] if config["dynamic_image_size"] else 1)
        return cls(
            side=side,
            tokens=int(patches**2 * config["downsample_ratio"] ** 2),
            min_tiles=min(config["min_dynamic_patch"], max_tiles),
            max_tiles=max_tiles,
            thumbnail=config["use_thumbnail"],
        )

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return the grid (columns, rows) whose aspect ratio is closest to that of `width` × `height` pixels.

        If several grids are equally close, the largest one with fewer than twice as many pixels as the picture
        is chosen or, if there is none, the smallest one.
        """
        aspect = width / height
        best, nearest = (1, 1), float("inf")
        for columns, rows in _grids(self.min_tiles, self.max_tiles):
            distance = abs(aspect - columns / rows)
            roomy = width * height > 0.5 * self.side * self.side * columns * rows
            if distance < nearest or (distance == nearest and roomy):
                best, nearest = (columns, rows), distance
        return best

    def count(self, width: int, height: int) -> int:
        """Return the number of tiles, including any thumbnail, for a picture of `width` × `height` pixels."""
        columns, rows = self.grid(width, height)
        return columns * rows + (self.thumbnail and columns * rows > 1)

    def count_tokens(self, width: int, height: int) -> int:
        """Return the number of feature tokens for a picture of `width` × `height` pixels."""
        return self.tokens * self.count(width, height)


@lru_cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Return all grids (columns, rows) of `min_tiles` to `max_tiles` tiles, ordered by number of tiles."""
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"min_tiles ({min_tiles}) and max_tiles ({max_tiles}) must satisfy 1 ≤ min_tiles ≤ max_tiles")
    # Grids of equal area stay in the set's order, which breaks ties: the official code sorts a set built this way.
    found = {
        (columns, rows)
        for n in range(min_tiles, max_tiles + 1)
        for columns in range(1, n + 1)
        for rows in range(1, n + 1)
        if min_tiles <= columns * rows <= max_tiles
    }
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))
