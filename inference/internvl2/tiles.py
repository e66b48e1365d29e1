"""Cuts a picture into tiles and converts tiles to pixel values: InternVL's dynamic high resolution.

Identical to the official preprocessing in every pixel (InternVL 1.5, arXiv 2404.16821, section 3.2). EXIF orientation
is not applied. torch is imported in `pixel_values` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from inference.internvl2.tiling import Tiling

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def tiles(image: Image.Image, tiling: Tiling) -> list[Image.Image]:
    """Return square RGB tiles, row by row, then a thumbnail if there are several.

    The picture is resized (bicubic) to the closest grid regardless of its aspect ratio, as InternVL2 was trained.
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
    """Convert tiles of one size S to float32 [T, 3, S, S], normalized by ImageNet's mean and standard deviation."""
    import numpy as np
    import torch

    stacked = np.stack([np.asarray(image if image.mode == "RGB" else image.convert("RGB")) for image in images])
    values = torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous().float().div_(255)
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return values.sub_(mean).div_(std)
