"""Tiles and pixel values against the official preprocessing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from inference.internvl2.grids import count_tiles, grid
from inference.internvl2.tiles import pixel_values, tiles
from tests.golden.tile_cases import PIXEL_SIZES, picture

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tiles.json").read_text(encoding="utf-8"))


def test_grid_equals_the_official_one() -> None:
    """All sizes and limits give the official number of columns, rows and tiles."""
    for low, high, side, width, height, columns, rows, count in GOLDEN["grids"]:
        limits = {"image_size": side, "min_num": low, "max_num": high}
        assert grid(width, height, **limits) == (columns, rows)
        assert count_tiles(width, height, **limits) == count


@pytest.mark.parametrize("number", range(len(PIXEL_SIZES)))
def test_pixels_equal_the_official_ones(number: int) -> None:
    """The pixel values of all tiles are identical to the official ones."""
    width, height, side, high = PIXEL_SIZES[number]
    values = pixel_values(tiles(picture(number, width, height), image_size=side, max_num=high))
    assert hashlib.sha256(values.numpy().tobytes()).hexdigest() == GOLDEN["pixels"][number]


def test_count_agrees_with_tiles() -> None:
    """`count_tiles` returns the number of tiles that `tiles` returns, with and without a thumbnail."""
    for width, height in ((50, 50), (200, 100), (90, 300), (333, 777)):
        for thumbnail in (True, False):
            made = tiles(picture(1, width, height), image_size=56, max_num=6, use_thumbnail=thumbnail)
            assert len(made) == count_tiles(width, height, image_size=56, max_num=6, use_thumbnail=thumbnail)
            assert {tile.size for tile in made} == {(56, 56)}


def test_other_modes_are_converted_to_rgb() -> None:
    """A grey, transparent or palette picture has the tiles of its RGB conversion."""
    colours = picture(3, 130, 60)
    for mode in ("L", "RGBA", "P"):
        other = colours.convert(mode)
        ours = pixel_values(tiles(other, image_size=56))
        assert torch.equal(ours, pixel_values(tiles(other.convert("RGB"), image_size=56)))


def test_normalized_by_imagenet() -> None:
    """A white tile becomes (1 − mean) / standard deviation per channel."""
    values = pixel_values([Image.new("RGB", (4, 4), "white")])
    assert values.shape == (1, 3, 4, 4)
    assert values[0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-4)


def test_invalid_limits_are_refused() -> None:
    """The maximum must not be below the minimum, nor the minimum below 1."""
    with pytest.raises(ValueError, match="min_num"):
        count_tiles(100, 100, min_num=3, max_num=2)
    with pytest.raises(ValueError, match="min_num"):
        count_tiles(100, 100, min_num=0, max_num=2)
