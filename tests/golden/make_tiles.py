"""Script that makes tests/golden/tiles.json with the official code.

Run it with `python -m tests.golden.make_tiles OFFICIAL`, where OFFICIAL is the folder internvl_chat of a
checkout of github.com/OpenGVLab/InternVL. The official dataset module imports more than is needed here,
so only the required functions are extracted from its source and run.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms as transforms  # type: ignore[import-untyped, unused-ignore]
from PIL import Image
from torchvision.transforms.functional import InterpolationMode  # type: ignore[import-untyped, unused-ignore]

from tests.golden.tile_cases import LIMITS, PIXEL_SIZES, picture

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def official_functions(source: Path, names: set[str]) -> dict[str, Any]:
    """Load only the functions `names` from the file `source` and return their namespace.

    The namespace also has the torchvision names and constants that the functions need.
    """
    tree = ast.parse(source.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    scope: dict[str, Any] = {"T": transforms, "InterpolationMode": InterpolationMode}
    scope |= {"IMAGENET_MEAN": MEAN, "IMAGENET_STD": STD}
    exec(compile(tree, str(source), "exec"), scope)
    return scope


def main(official: Path) -> None:
    """Run the official tiling on every size and picture, and write the results to `tiles.json`."""
    code = official_functions(
        official / "internvl" / "train" / "dataset.py",
        {"find_closest_aspect_ratio", "dynamic_preprocess", "build_transform"},
    )
    draw = random.Random(0)
    grids = []
    sizes = [(draw.randint(1, 4000), draw.randint(1, 4000)) for _ in range(120)]
    sizes += [(a * 100, b * 100) for a in range(1, 13) for b in range(1, 13)]
    for low, high, side in LIMITS:
        for width, height in sizes:
            blank = _Blank(width, height)
            tiles = code["dynamic_preprocess"](blank, min_num=low, max_num=high, image_size=side, use_thumbnail=True)
            stretched = blank.sizes[0]
            grid = (stretched[0] // side, stretched[1] // side)
            grids.append([low, high, side, width, height, *grid, len(tiles)])
    hashes = []
    for number, (width, height, side, high) in enumerate(PIXEL_SIZES):
        image = picture(number, width, height)
        tiles = code["dynamic_preprocess"](image, min_num=1, max_num=high, image_size=side, use_thumbnail=True)
        transform = code["build_transform"](is_train=False, input_size=side)
        values = torch.stack([transform(tile) for tile in tiles])
        hashes.append(hashlib.sha256(values.numpy().tobytes()).hexdigest())
    Path(__file__).with_name("tiles.json").write_text(json.dumps({"grids": grids, "pixels": hashes}) + "\n")


class _Blank:
    """A stand-in for a picture; it has no pixels and records the sizes it is resized to."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.sizes: list[tuple[int, int]] = []

    def resize(self, size: tuple[int, int]) -> _Blank:
        self.sizes.append(size)
        return _Blank(*size)

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image | None:
        return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
