"""Picture sizes, tile limits and pictures for comparing our tiling with the official one."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Fewest tiles, most tiles, side of a tile in pixels.
LIMITS = ((1, 12, 448), (1, 6, 448), (1, 1, 448), (3, 5, 112), (4, 24, 112))

# Width, height, side of a tile, most tiles.
PIXEL_SIZES = (
    *((width, height, 112, 12) for width in (31, 112, 300, 641) for height in (40, 112, 223, 448)),
    *((width, height, 112, 6) for width, height in ((1280, 960), (960, 1280), (1, 900), (900, 1), (777, 333))),
    *((width, height, 448, 12) for width, height in ((448, 448), (1280, 960), (500, 1999), (5, 3))),
    *((width, height, 56, 3) for width, height in ((56, 112), (57, 113), (200, 100), (150, 100), (100, 150))),
)


def picture(number: int, width: int, height: int) -> Image.Image:
    """Return an RGB picture of smooth gradients with noise, determined by `number`."""
    draw = np.random.RandomState(number)
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    smooth = np.stack([x, y, 255 - (x + y) / 2], axis=-1)
    return Image.fromarray(np.clip(smooth + draw.randint(-60, 60, smooth.shape), 0, 255).astype(np.uint8))
