"""What internvl2-tiny can see: scenes of one to five equal shapes in one colour, and how they are drawn.

Knows colours as regions of hue, saturation and value, and which background keeps a colour apart. The two
renderers, one that trains the model and an independent one that examines it, live in `drawing_train` and
`drawing_other`. Pillow and the standard library only.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final, Literal, get_args

if TYPE_CHECKING:
    from PIL import Image

Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "black"]
Shape = Literal["circle", "square", "triangle", "star", "heart", "cross"]
Renderer = Literal["train", "other"]
Rgb = tuple[int, int, int]

COLOURS: Final[tuple[Colour, ...]] = get_args(Colour)
SHAPES: Final[tuple[Shape, ...]] = get_args(Shape)
COUNTS: Final = (1, 2, 3, 4, 5)

# (hue in degrees, saturation, value), each a range. Gaps lie between neighbours where people would disagree.
_REGIONS: Final[dict[Colour, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]]] = {
    "red": ((-10, 7), (0.75, 1.0), (0.7, 1.0)),
    "orange": ((23, 36), (0.8, 1.0), (0.9, 1.0)),
    "yellow": ((50, 60), (0.7, 1.0), (0.88, 1.0)),
    "green": ((95, 150), (0.55, 1.0), (0.45, 0.9)),
    "blue": ((208, 240), (0.65, 1.0), (0.6, 1.0)),
    "purple": ((268, 295), (0.5, 1.0), (0.5, 0.9)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.14)),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows: `count` equal shapes of one colour. The ground truth of every question."""

    colour: Colour
    shape: Shape
    count: int


def random_scene(rng: Random) -> Scene:
    """A scene with colour, shape and count drawn evenly and independently."""
    return Scene(rng.choice(COLOURS), rng.choice(SHAPES), rng.choice(COUNTS))


def draw(scene: Scene, rng: Random, renderer: Renderer = "train", size: tuple[int, int] | None = None) -> Image.Image:
    """Draw the scene as an RGB picture; the same `rng` state draws the same picture.

    `size` is (width, height) in pixels; without it the renderer chooses, small canvases for "train", up to
    photo-sized and oblong ones for "other".
    """
    from inference.internvl2.tiny import drawing_other, drawing_train

    if renderer == "train":
        return drawing_train.draw(scene, rng, size)
    return drawing_other.draw(scene, rng, size)


def paint(colour: Colour, rng: Random, *, inner: float = 0.0) -> Rgb:
    """A shade of the colour; `inner` (0..1) keeps away from the region's edges by that share."""
    hue, saturation, value = (
        rng.uniform(low + (high - low) * inner / 2, high - (high - low) * inner / 2) for low, high in _REGIONS[colour]
    )
    return _rgb(hue, saturation, value)


def ground(colour: Colour, rng: Random, *, lightest: float = 1.0, most_coloured: float = 0.25) -> Rgb:
    """A background: grey or pale, from dark to `lightest`, well apart from every shade of `colour`."""
    while True:
        shade = _rgb(rng.uniform(0, 360), rng.uniform(0, most_coloured), rng.uniform(0.1, lightest) ** 0.6)
        if contrast(shade, colour) > 110:
            return shade


def contrast(shade: Rgb, colour: Colour) -> float:
    """Euclidean RGB distance (0..441) between a shade and the middle of a colour."""
    hue, saturation, value = (sum(edges) / 2 for edges in _REGIONS[colour])
    return math.dist(shade, _rgb(hue, saturation, value))


def _rgb(hue: float, saturation: float, value: float) -> Rgb:
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
