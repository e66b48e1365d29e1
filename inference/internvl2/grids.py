"""The grid of tiles for a picture's width and height (dynamic high resolution).

Identical to the official preprocessing (InternVL 1.5, arXiv 2404.16821, section 3.2). Standard library only, because
the bot counts tiles with it.
"""

from __future__ import annotations

from functools import lru_cache


@lru_cache
def _grids(min_num: int, max_num: int) -> tuple[tuple[int, int], ...]:
    """Return all (columns, rows) of `min_num` to `max_num` tiles, ordered by the number of tiles."""
    if not 1 <= min_num <= max_num:
        raise ValueError(f"tiles: 1 ≤ min_num ≤ max_num must hold, not {min_num} and {max_num}")
    # Grids of equal area stay in the set's order, which decides ties: the official code sorts a set built this way.
    found = {
        (columns, rows)
        for n in range(min_num, max_num + 1)
        for columns in range(1, n + 1)
        for rows in range(1, n + 1)
        if min_num <= columns * rows <= max_num
    }
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


def grid(width: int, height: int, *, image_size: int = 448, min_num: int = 1, max_num: int = 12) -> tuple[int, int]:
    """Return the (columns, rows) whose aspect ratio is closest to that of `width` × `height` pixels.

    Of equally close grids the larger one wins if the picture has more than half its pixels.
    """
    aspect = width / height
    best, nearest = (1, 1), float("inf")
    for columns, rows in _grids(min_num, max_num):
        distance = abs(aspect - columns / rows)
        roomy = width * height > 0.5 * image_size * image_size * columns * rows
        if distance < nearest or (distance == nearest and roomy):
            best, nearest = (columns, rows), distance
    return best


def count_tiles(
    width: int, height: int, *, image_size: int = 448, min_num: int = 1, max_num: int = 12, use_thumbnail: bool = True
) -> int:
    """Return the number of tiles that `tiles.tiles` returns for `width` × `height` pixels, thumbnail included."""
    columns, rows = grid(width, height, image_size=image_size, min_num=min_num, max_num=max_num)
    count = columns * rows
    return count + 1 if use_thumbnail and count > 1 else count
