"""Tiles that torch cuts, as the benchmark of tiling does on a GPU, compared with Pillow's."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks.photos import photo
from benchmarks.tiling import CardTiler, difference, grey_levels, pixels_of
from inference.images.opening import open_picture
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import pixel_values, tiles

TILING = Tiling(side=112)


@pytest.mark.parametrize(
    "size", [(112, 112), (40, 40), (300, 200), (640, 480), (900, 100), (1, 500), (1280, 961), (720, 1280)]
)
def test_tiles_are_within_one_grey_level_of_pillows(size: tuple[int, int]) -> None:
    """Enlarged and reduced, all tiles and the thumbnail have Pillow's grey levels, give or take one."""
    data = photo(size, random.Random(1))
    found = CardTiler(TILING, torch.float32, torch.device("cpu")).tiles(pixels_of(data))
    wanted = pixel_values(tiles(open_picture(data), TILING))
    assert found.shape == wanted.shape
    assert difference(grey_levels(found), grey_levels(wanted))["largest"] <= 1
