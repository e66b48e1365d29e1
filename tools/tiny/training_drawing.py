"""The pictures that train internvl2-tiny: scattered shapes on small canvases with varied backgrounds.

Position, size, tilt, proportions, background and noise vary widely, so that the model learns only
colour, shape and count. The renderer used for evaluations (`inference.internvl2.tiny.drawing`) shares
no drawing code with this module.
"""

from __future__ import annotations

import math
from io import BytesIO
from random import Random

from PIL import Image, ImageDraw, ImageFilter

from inference.internvl2.tiny.shapes import Rgb, Scene, Shape, ground, paint

Point = tuple[float, float]


def draw(scene: Scene, rng: Random, size: tuple[int, int] | None = None) -> Image.Image:
    """Draw the scene as an RGB picture.

    `size` is (width, height) in pixels; by default, a small size is chosen at random.
    """
    width, height = size or _canvas(rng)
    scale = rng.choice((1, 2)) if max(width, height) < 400 else 1
    image = _background(scene, rng, width * scale, height * scale)
    canvas = ImageDraw.Draw(image)
    outline = _Outline(scene.shape, rng)
    shade = paint(scene.colour, rng)
    outlined = rng.random() < 0.15
    for x, y, radius in _scatter(scene.count, rng, width * scale, height * scale):
        points = outline.around(x, y, radius, rng)
        canvas.polygon(points, fill=_near(shade, rng))
        if outlined:
            canvas.line([*points, points[0]], fill=(30, 30, 30), width=max(1, round(radius / 14)))
    if scale > 1:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return _worn(image, rng)


def _canvas(rng: Random) -> tuple[int, int]:
    """Choose the width and height of a canvas in pixels.

    Half of the canvases are roughly square, a third are oblong like photos, and the rest are long strips.
    """
    side = round(rng.choice((rng.uniform(80, 160), rng.uniform(160, 300))))
    aspect = rng.choice((1.0, rng.uniform(1, 1.4), rng.uniform(1.3, 2.2), rng.uniform(1.3, 1.8), rng.uniform(2, 4)))
    long = round(side * aspect**0.5)
    short = round(side / aspect**0.5)
    return (long, short) if rng.random() < 0.6 else (short, long)


def _background(scene: Scene, rng: Random, width: int, height: int) -> Image.Image:
    first = (255, 255, 255) if rng.random() < 0.15 and scene.colour != "yellow" else ground(scene.colour, rng)
    image = Image.new("RGB", (width, height), first)
    kind = rng.random()
    if kind < 0.35:  # a gradient from one background colour to another
        second = Image.new("RGB", (width, height), ground(scene.colour, rng))
        ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((width, height))
        image.paste(second, mask=ramp)
    elif kind < 0.55:  # faint large patches
        canvas = ImageDraw.Draw(image)
        for _ in range(rng.randint(1, 4)):
            x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.2, 0.8) * max(width, height)
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_near(first, rng, 14))
    elif kind < 0.75:  # faint lines
        canvas = ImageDraw.Draw(image)
        for _ in range(rng.randint(2, 9)):
            ends = [(rng.uniform(0, width), rng.uniform(0, height)) for _ in range(2)]
            canvas.line(ends, fill=_near(first, rng, 22), width=rng.randint(1, max(1, width // 40)))
    elif kind < 0.85:  # a horizon
        edge = round(height * rng.uniform(0.3, 0.8))
        image.paste(ground(scene.colour, rng), (0, edge, width, height))
    return image


def _scatter(count: int, rng: Random, width: int, height: int) -> list[tuple[float, float, float]]:
    """Return `count` circles (x, y, radius) that do not touch each other and stay within the canvas."""
    largest = min(0.47 * min(width, height), 0.36 * math.sqrt(width * height / count))
    base = largest * rng.uniform(0.42, 1.0)
    spread = rng.choice((0.0, 0.15, 0.3))
    while True:
        placed: list[tuple[float, float, float]] = []
        for _ in range(40 * count):
            radius = base * rng.uniform(1 - spread, 1)
            x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
            if all(math.hypot(x - a, y - b) > 1.04 * (radius + c) for a, b, c in placed):
                placed.append((x, y, radius))
                if len(placed) == count:
                    return placed
        base *= 0.93


class _Outline:
    """The outline of a shape, with proportions shared by all its copies in a picture."""

    def __init__(self, shape: Shape, rng: Random) -> None:
        self.tilt = rng.uniform(-0.4, 0.4) if shape != "circle" else 0.0
        self.loose = rng.random() < 0.5
        self.points = _unit(shape, rng)

    def around(self, x: float, y: float, radius: float, rng: Random) -> list[Point]:
        """Return the outline as a polygon centred at (x, y) that fits in a circle of `radius`."""
        angle = rng.uniform(-0.4, 0.4) if self.loose else self.tilt
        cosine, sine = radius * math.cos(angle), radius * math.sin(angle)
        return [(x + cosine * a - sine * b, y + sine * a + cosine * b) for a, b in self.points]


def _unit(shape: Shape, rng: Random) -> list[Point]:
    """Return the shape as a polygon inside the unit circle, with random proportions and y pointing down."""
    if shape == "circle":
        stretch = rng.uniform(0.92, 1)
        return [(math.cos(t * math.tau / 40), stretch * math.sin(t * math.tau / 40)) for t in range(40)]
    if shape == "square":
        side = rng.uniform(0.9, 1) * 0.707
        return [(-0.707, -side), (0.707, -side), (0.707, side), (-0.707, side)]
    if shape == "triangle":
        apex, half = rng.uniform(-0.2, 0.2), rng.uniform(0.75, 0.87)
        return [(apex, -0.97), (half, 0.5), (-half, 0.5)]
    if shape == "star":
        inner = rng.uniform(0.36, 0.52)
        turns = [(1 if t % 2 == 0 else inner, t * math.pi / 5) for t in range(10)]
        return [(reach * math.sin(turn), -reach * math.cos(turn)) for reach, turn in turns]
    if shape == "heart":
        fat = rng.uniform(0.85, 1)
        steps = [t * math.tau / 36 for t in range(36)]
        return [
            (
                fat * 0.055 * 16 * math.sin(t) ** 3,
                -0.055 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) - 0.08,
            )
            for t in steps
        ]
    arm = rng.uniform(0.22, 0.36)
    quarter = [(arm, -0.93), (arm, -arm), (0.93, -arm)]
    return [_quarter_turn(point, turns) for turns in range(4) for point in quarter]


def _quarter_turn(point: Point, turns: int) -> Point:
    x, y = point
    for _ in range(turns):
        x, y = -y, x
    return x, y


def _near(shade: Rgb, rng: Random, reach: int = 8) -> Rgb:
    red, green, blue = (min(255, max(0, part + rng.randint(-reach, reach))) for part in shade)
    return red, green, blue


def _worn(image: Image.Image, rng: Random) -> Image.Image:
    """Apply blur, noise and JPEG compression to a picture, each with some probability."""
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.35:
        noise = Image.frombytes("RGB", image.size, rng.randbytes(3 * image.width * image.height))
        image = Image.blend(image, noise, rng.uniform(0.02, 0.12))
    if rng.random() < 0.25:
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(35, 90))
        image = Image.open(buffer).convert("RGB")
    return image
