"""Tiles and pixel values compared with those of the official preprocessing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import pixel_values, tiles
from tests.golden.tile_cases import PIXEL_SIZES, picture

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tiles.json").read_text(encoding="utf-8"))


def test_grid_equals_the_official_one() -> None:
    """For all sizes and limits, the numbers of columns, rows and tiles equal the official ones."""
    for low, high, side, width, height, columns, rows, count in GOLDEN["grids"]:
        tiling = Tiling(side=side, min_tiles=low, max_tiles=high)
        assert tiling.grid(width, height) == (columns, rows)
        assert tiling.count(width, height) == count


@pytest.mark.parametrize("number", range(len(PIXEL_SIZES)))
def test_pixels_equal_the_official_ones(number: int) -> None:
    """The pixel values of all tiles are identical to those of the official preprocessing."""
    width, height, side, high = PIXEL_SIZES[number]
    values = pixel_values(tiles(picture(number, width, height), Tiling(side=side, max_tiles=high)))
    assert hashlib.sha256(values.numpy().tobytes()).hexdigest() == GOLDEN["pixels"][number]


def test_count_agrees_with_tiles() -> None:
    """`count` returns the number of tiles that `tiles` returns, with and without a thumbnail."""
    for width, height in ((50, 50), (200, 100), (90, 300), (333, 777)):
        for thumbnail in (True, False):
            tiling = Tiling(side=56, max_tiles=6, thumbnail=thumbnail)
            made = tiles(picture(1, width, height), tiling)
            assert len(made) == tiling.count(width, height)
            assert {tile.size for tile in made} == {(56, 56)}


def test_other_modes_are_converted_to_rgb() -> None:
    """A grey, transparent or palette picture gives the same tiles as its RGB conversion."""
    colours = picture(3, 130, 60)
    for mode in ("L", "RGBA", "P"):
        other = colours.convert(mode)
        ours = pixel_values(tiles(other, Tiling(side=56)))
        assert torch.equal(ours, pixel_values(tiles(other.convert("RGB"), Tiling(side=56))))


def test_normalized_by_imagenet() -> None:
    """Each channel of a white tile becomes (1 − mean) / standard deviation, using ImageNet's values."""
    values = pixel_values([Image.new("RGB", (4, 4), "white")])
    assert values.shape == (1, 3, 4, 4)
    assert values[0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-4)


def test_invalid_limits_are_refused() -> None:
    """A maximum number of tiles below the minimum, or a minimum below 1, raises an error."""
    with pytest.raises(ValueError, match="min_tiles"):
        Tiling(min_tiles=3, max_tiles=2).count(100, 100)
    with pytest.raises(ValueError, match="min_tiles"):
        Tiling(min_tiles=0, max_tiles=2).count(100, 100)
