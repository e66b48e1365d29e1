"""How many tiles a picture becomes, and in how many columns and rows: arithmetic on its width and height.

Identical to the official preprocessing (InternVL 1.5, arXiv 2404.16821, section 3.2). Standard library only: the bot
counts with it. Cutting the tiles is tiles.py's.
"""

from __future__ import annotations

from functools import lru_cache


@lru_cache
def _grids(min_num: int, max_num: int) -> tuple[tuple[int, int], ...]:
    """Every (columns, rows) of `min_num` to `max_num` tiles, fewest tiles first."""
    if not 1 <= min_num <= max_num:
        raise ValueError(f"tiles: 1 ≤ min_num ≤ max_num must hold, not {min_num} and {max_num}")
    # Grids of one area keep the set's order, which decides ties: the official code sorts a set built in this order.
    found = {
        (columns, rows)
        for n in range(min_num, max_num + 1)
        for columns in range(1, n + 1)
        for rows in range(1, n + 1)
        if min_num <= columns * rows <= max_num
    }
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


def grid(width: int, height: int, *, image_size: int = 448, min_num: int = 1, max_num: int = 12) -> tuple[int, int]:
    """The (columns, rows) whose shape is closest to that of a picture of `width` × `height` pixels.

    Between equally close shapes the larger wins if the picture has more than half its pixels.
    """
    shape = width / height
    best, nearest = (1, 1), float("inf")
    for columns, rows in _grids(min_num, max_num):
        distance = abs(shape - columns / rows)
        roomy = width * height > 0.5 * image_size * image_size * columns * rows
        if distance < nearest or (distance == nearest and roomy):
            best, nearest = (columns, rows), distance
    return best


def count_tiles(
    width: int,
    height: int,
    *,
    image_size: int = 448,
    min_num: int = 1,
    max_num: int = 12,
    use_thumbnail: bool = True,
) -> int:
    """How many tiles `tiles.tiles` would return for a picture of `width` × `height` pixels, thumbnail included."""
    columns, rows = grid(width, height, image_size=image_size, min_num=min_num, max_num=max_num)
    count = columns * rows
    return count + 1 if use_thumbnail and count > 1 else count
