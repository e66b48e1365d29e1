"""The scenes that internvl2-tiny can recognize: one to five identical shapes of one colour.

A colour is a region of hue, saturation and value. `drawing` draws the scenes for demos and evaluations;
an independent renderer, `tools.tiny.training_drawing`, draws them for training.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, get_args

Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "black"]
Shape = Literal["circle", "square", "triangle", "star", "heart", "cross"]
Rgb = tuple[int, int, int]

COLOURS: Final[tuple[Colour, ...]] = get_args(Colour)
SHAPES: Final[tuple[Shape, ...]] = get_args(Shape)
COUNTS: Final = (1, 2, 3, 4, 5)

# Ranges of (hue in degrees, saturation, value), with gaps between neighbours, where people would disagree.
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
    """The content of a picture: `count` identical shapes of one colour."""

    colour: Colour
    shape: Shape
    count: int


def random_scene(rng: Random) -> Scene:
    """Return a scene whose colour, shape and count are chosen uniformly and independently at random."""
    return Scene(rng.choice(COLOURS), rng.choice(SHAPES), rng.choice(COUNTS))


def paint(colour: Colour, rng: Random, *, inner: float = 0.0) -> Rgb:
    """Return a random shade of the colour.

    `inner` is the fraction (0 to 1) by which the colour's region is shrunk towards its centre.
    """
    hue, saturation, value = (
        rng.uniform(low + (high - low) * inner / 2, high - (high - low) * inner / 2) for low, high in _REGIONS[colour]
    )
    return _rgb(hue, saturation, value)


def ground(colour: Colour, rng: Random, *, lightest: float = 1.0, most_coloured: float = 0.25) -> Rgb:
    """Return a random grey or pale background shade that contrasts with every shade of `colour`.

    `lightest` limits the brightness of the background and `most_coloured` its saturation, both from 0 to 1.
    """
    while True:
        shade = _rgb(rng.uniform(0, 360), rng.uniform(0, most_coloured), rng.uniform(0.1, lightest) ** 0.6)
        if contrast(shade, colour) > 110:
            return shade


def contrast(shade: Rgb, colour: Colour) -> float:
    """Return the Euclidean RGB distance (0 to 441) between a shade and the centre of a colour's region."""
    hue, saturation, value = (sum(edges) / 2 for edges in _REGIONS[colour])
    return math.dist(shade, _rgb(hue, saturation, value))


def _rgb(hue: float, saturation: float, value: float) -> Rgb:
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
