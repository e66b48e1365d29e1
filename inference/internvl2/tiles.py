"""A picture becomes tiles, tiles become pixel values: InternVL's dynamic high resolution.

Identical to the pixel to the official preprocessing (InternVL 1.5, arXiv 2404.16821, section 3.2). Needs Pillow;
torch only inside `pixel_values`. Knows nothing of models, files or orientation: turn EXIF before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
    """How many tiles `tiles` would return for a picture of `width` × `height` pixels, thumbnail included."""
    columns, rows = grid(width, height, image_size=image_size, min_num=min_num, max_num=max_num)
    count = columns * rows
    return count + 1 if use_thumbnail and count > 1 else count


def tiles(
    image: Image.Image,
    *,
    image_size: int = 448,
    min_num: int = 1,
    max_num: int = 12,
    use_thumbnail: bool = True,
) -> list[Image.Image]:
    """Square RGB tiles of `image_size` pixels, row by row; a thumbnail of the whole last, if there are several.

    The whole picture is stretched (bicubic) to the closest grid, as InternVL2 was trained.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    columns, rows = grid(image.width, image.height, image_size=image_size, min_num=min_num, max_num=max_num)
    stretched = image.resize((columns * image_size, rows * image_size), Image.Resampling.BICUBIC)
    found = [
        stretched.crop((left, top, left + image_size, top + image_size))
        for top in range(0, rows * image_size, image_size)
        for left in range(0, columns * image_size, image_size)
    ]
    if use_thumbnail and len(found) > 1:
        found.append(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return found


def pixel_values(images: Sequence[Image.Image]) -> torch.Tensor:
    """Tiles of one size S → float32 [T, 3, S, S], scaled to 0…1 and normalised by ImageNet's mean and deviation."""
    import numpy as np
    import torch

    stacked = np.stack([np.asarray(image if image.mode == "RGB" else image.convert("RGB")) for image in images])
    values = torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous().float().div_(255)
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return values.sub_(mean).div_(std)
