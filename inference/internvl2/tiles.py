"""A picture becomes tiles, tiles become pixel values: InternVL's dynamic high resolution.

Identical to the pixel to the official preprocessing (InternVL 1.5, arXiv 2404.16821, section 3.2). Needs Pillow;
torch only inside `pixel_values`. Which grid of tiles is grids.py's to say. Knows nothing of models, files or
orientation: turn EXIF before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from inference.internvl2.grids import grid

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
