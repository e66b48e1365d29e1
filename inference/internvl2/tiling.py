"""The tiling of pictures by a checkpoint (dynamic high resolution): the grid of tiles for a width and height.

Identical to the official preprocessing (InternVL 1.5, arXiv 2404.16821, section 3.2). Standard library only, because
the bot counts tiles with it.
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
        side: The side of a tile in pixels.
        tokens: The number of feature tokens of a tile.
        min_tiles: The fewest tiles of a picture.
        max_tiles: The most tiles of a picture, not counting the thumbnail.
        thumbnail: Whether a picture of several tiles gets a thumbnail.
    """

    side: int = 448
    tokens: int = 256
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any], max_tiles: int | None = None) -> Tiling:
        """Return the tiling of the content of a config.json; a `max_tiles` above 0 replaces the file's limit."""
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
        """Return the (columns, rows) whose aspect ratio is closest to that of `width` × `height` pixels.

        Of equally close grids, the larger one is chosen if the picture has more than half its pixels.
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
        """Return the number of tiles of a picture of `width` × `height` pixels, thumbnail included."""
        columns, rows = self.grid(width, height)
        return columns * rows + (self.thumbnail and columns * rows > 1)

    def count_tokens(self, width: int, height: int) -> int:
        """Return the number of feature tokens of a picture of `width` × `height` pixels."""
        return self.tokens * self.count(width, height)


@lru_cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Return all (columns, rows) of `min_tiles` to `max_tiles` tiles, ordered by the number of tiles."""
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"tiles: 1 ≤ min_tiles ≤ max_tiles must hold, not {min_tiles} and {max_tiles}")
    # Grids of equal area stay in the set's order, which decides ties: the official code sorts a set built this way.
    found = {
        (columns, rows)
        for n in range(min_tiles, max_tiles + 1)
        for columns in range(1, n + 1)
        for rows in range(1, n + 1)
        if min_tiles <= columns * rows <= max_tiles
    }
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))
