"""Tiling of decoded pictures with torch, on the GPU or, in tests, on the CPU.

The tiles of photos differ from Pillow's (inference/internvl2/tiles.py) by at most 1 in a pixel's 8-bit values.
For high-frequency noise, the difference is larger if the height shrinks more than the width, because Pillow 13
then resizes the columns first.
"""

from __future__ import annotations

from typing import Final

import torch
from PIL import Image
from torch.nn.functional import interpolate

from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import IMAGENET_MEAN, IMAGENET_STD

_BAND_PIXELS: Final = 4_000_000
"""The maximum number of pixels in the rows resized at once, which limits the memory for a large picture."""


def as_tensor(picture: Image.Image) -> torch.Tensor:
    """Return an RGB picture as [height, width, 3] in uint8."""
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)


def cut(decoded: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Return the tiles of a picture [height, width, 3] in uint8 as float32 [T, 3, S, S], normalized.

    The tiles are in row order, as in `tiles.tiles`; if there are several, a thumbnail follows.
    """
    side = tiling.side
    columns, rows = tiling.grid(decoded.shape[1], decoded.shape[0])
    grid = _resized(decoded, rows * side, columns * side).view(3, rows, side, columns, side)
    found = grid.permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
    if tiling.thumbnail and len(found) > 1:
        found = torch.cat([found, _resized(decoded, side, side)])
    mean, std = (torch.tensor(each, device=decoded.device).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return found.div_(255).sub_(mean).div_(std)


def _resized(decoded: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize a picture [h, w, 3] in uint8 as Pillow does; return it as float32 [1, 3, height, width] from 0 to 255.

    Pillow resizes each row, then each column, and rounds after both.
    """
    bands = torch.split(decoded, max(1, _BAND_PIXELS // decoded.shape[1]))
    across = torch.cat([_rounded(_planes(each), each.shape[0], width) for each in bands], dim=2)
    return _rounded(across, height, width)


def _planes(decoded: torch.Tensor) -> torch.Tensor:
    return decoded.permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)


def _rounded(levels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    # With antialiasing, torch uses Pillow's kernel: Keys' cubic with a = -0.5, widened for downscaling.
    resized = interpolate(levels, (height, width), mode="bicubic", antialias=True)
    return resized.add_(0.5).floor_().clamp_(0, 255)
