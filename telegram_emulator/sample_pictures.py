"""Sample pictures for the chat page: one to five coloured shapes on a white background."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Final

from PIL import Image, ImageDraw

_SAMPLES: Final = (
    (3, "red", "star"),
    (2, "blue", "circle"),
    (1, "yellow", "heart"),
    (5, "green", "triangle"),
    (4, "purple", "square"),
    (2, "orange", "cross"),
    (1, "black", "star"),
    (5, "red", "heart"),
    (3, "blue", "triangle"),
    (4, "yellow", "circle"),
    (1, "green", "square"),
    (3, "purple", "cross"),
)
_NUMBERS: Final = ("one", "two", "three", "four", "five")
_COLOURS: Final = {
    "red": (220, 20, 30),
    "orange": (245, 130, 10),
    "yellow": (250, 215, 20),
    "green": (30, 150, 50),
    "blue": (30, 90, 220),
    "purple": (130, 50, 180),
    "black": (15, 15, 15),
}
_SIZE: Final = (640, 480)
_PLACES: Final = {
    1: ((320, 240),),
    2: ((180, 240), (460, 240)),
    3: ((320, 125), (180, 345), (460, 345)),
    4: ((200, 130), (440, 130), (200, 350), (440, 350)),
    5: ((120, 130), (320, 130), (520, 130), (220, 350), (420, 350)),
}
"""The centres of the shapes in pixels, by their number."""

_RADII: Final = {1: 160, 2: 110, 3: 105, 4: 100, 5: 90}


def sample_pictures() -> dict[str, bytes]:
    """Return JPEG pictures, keyed by names such as `three-red-stars`."""
    return {_name(*each): _draw(*each) for each in _SAMPLES}


def _name(number: int, colour: str, shape: str) -> str:
    plural = "" if number == 1 else "es" if shape == "cross" else "s"
    return f"{_NUMBERS[number - 1]}-{colour}-{shape}{plural}"


def _draw(number: int, colour: str, shape: str) -> bytes:
    picture, data = Image.new("RGB", _SIZE, "white"), BytesIO()
    pen, radius = ImageDraw.Draw(picture), _RADII[number]
    outline = _outline(shape)
    for x, y in _PLACES[number]:
        pen.polygon([(x + radius * right, y + radius * down) for right, down in outline], _COLOURS[colour])
    picture.save(data, "JPEG", quality=90)
    return data.getvalue()


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners of a shape that is centred at the origin and fits into a square with sides of 2."""
    match shape:
        case "circle":
            return _around([1.0] * 72)
        case "square":
            return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
        case "triangle":
            return _around([1.0] * 3)
        case "star":
            return _around([1.0, 0.4] * 5)
        case "heart":
            # x = 16 sin³ t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t (mathworld.wolfram.com/HeartCurve.html).
            return [
                (
                    math.sin(t) ** 3,
                    -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
                )
                for t in (math.tau * step / 72 for step in range(72))
            ]
        case _:
            arm = [(-1.0, -0.3), (-0.3, -0.3), (-0.3, -1.0), (0.3, -1.0), (0.3, -0.3), (1.0, -0.3)]
            return [*arm, *[(-x, -y) for x, y in arm]]


def _around(distances: list[float]) -> list[tuple[float, float]]:
    """Return points at equal angles around the origin, at the given distances from it; the first one is at the top."""
    turns = (math.tau * step / len(distances) for step in range(len(distances)))
    return [(each * math.sin(turn), -each * math.cos(turn)) for each, turn in zip(distances, turns, strict=True)]
