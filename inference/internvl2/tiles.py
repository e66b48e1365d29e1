"""Conversion of a picture to tiles and of tiles to pixel values (InternVL's dynamic high resolution).

The pixels are identical to those of the official preprocessing (InternVL 1.5, arXiv 2404.16821,
section 3.2). EXIF orientation is not applied. Only `pixel_values` imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from inference.internvl2.tile_grid import Tiling

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def tiles(image: Image.Image, tiling: Tiling) -> list[Image.Image]:
    """Split `image` into square RGB tiles, row by row.

    If there are several tiles and `tiling.thumbnail` is set, a thumbnail comes last. The picture is first
    resized (bicubic) to fill the grid chosen by `tiling.grid`, regardless of the picture's aspect ratio, as
    in the training of InternVL2.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    columns, rows = tiling.grid(image.width, image.height)
    side = tiling.side
    resized = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    found = [
        resized.crop((left, top, left + side, top + side))
        for top in range(0, rows * side, side)
        for left in range(0, columns * side, side)
    ]
    if tiling.thumbnail and len(found) > 1:
        found.append(image.resize((side, side), Image.Resampling.BICUBIC))
    return found


def pixel_values(images: Sequence[Image.Image]) -> torch.Tensor:
    """Convert tiles of side S to float32 [T, 3, S, S], normalized by ImageNet's mean and standard deviation."""
    import numpy as np
    import torch

    stacked = np.stack([np.asarray(image if image.mode == "RGB" else image.convert("RGB")) for image in images])
    values = torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous().float().div_(255)
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return values.sub_(mean).div_(std)
