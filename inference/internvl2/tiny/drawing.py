"""Renderer of the pictures for the demo and evaluations: coloured shapes on textured backgrounds.

The pictures are as large as photos, show shapes in rows, rings or grids, and are compressed as JPEG.
Shapes are painted through masks with rounded corners, shading, shadows and rims; backgrounds look like
paper, stripes, tiles or wood. The renderer shares neither drawing code nor proportions with
`tools.tiny.training_drawing`, which draws the training pictures of internvl2-tiny.
"""

from __future__ import annotations

import math
from io import BytesIO
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from inference.internvl2.tiny.shapes import Colour, Rgb, Scene, Shape, ground, paint

_SIZES = ((320, 320), (400, 300), (480, 640), (640, 480), (500, 500), (800, 600), (600, 800), (900, 500), (1280, 960))


def draw(scene: Scene, rng: Random, size: tuple[int, int] | None = None) -> Image.Image:
    """Draw the scene as an RGB picture; the same state of `rng` produces the same picture.

    `size` is (width, height) in pixels; by default, a random size typical of photos.
    """
    width, height = size or rng.choice(_SIZES)
    image = _texture(scene.colour, rng, width, height)
    places, reach = _places(scene.count, rng, width, height)
    reach *= rng.uniform(0.6, 0.9)
    tilt = rng.uniform(-14, 14)
    stencil = _stencil(scene.shape, round(2 * reach), tilt)
    fill = _fill(scene.colour, rng, stencil.size)
    shadow = rng.random() < 0.4
    rim = rng.random() < 0.25
    for x, y in places:
        corner = (round(x - stencil.width / 2), round(y - stencil.height / 2))
        if shadow:
            offset = max(2, round(reach * 0.08))
            soft = stencil.filter(ImageFilter.GaussianBlur(offset)).point([value * 35 // 100 for value in range(256)])
            image.paste((40, 40, 45), (corner[0] + offset, corner[1] + offset), soft)
        image.paste(fill, corner, stencil)
        if rim:
            edge = ImageChops.subtract(stencil, stencil.filter(ImageFilter.MinFilter(5)))
            image.paste((250, 250, 250), corner, edge)
    return _photographed(image, rng)


def sticker(scene: Scene, rng: Random, side: int) -> Image.Image:
    """Draw the scene's shape once, with a white outline, on a transparent background.

    The result is an RGBA picture of `side` × `side` pixels.
    """
    shape = _stencil(scene.shape, round(0.88 * side), rng.uniform(-14, 14))
    stencil = Image.new("L", (side, side))
    stencil.paste(shape, ((side - shape.width) // 2, (side - shape.height) // 2))
    edge = stencil.filter(ImageFilter.GaussianBlur(side / 40)).point([min(255, 12 * value) for value in range(256)])
    image = Image.new("RGB", (side, side), "white")
    image.paste(_fill(scene.colour, rng, (side, side)), (0, 0), stencil)
    image.putalpha(edge)
    return image


def _places(count: int, rng: Random, width: int, height: int) -> tuple[list[tuple[float, float]], float]:
    """Return the centres of `count` shapes in a row, column, ring or grid, and the maximum half-width of each."""
    plan = rng.choice(("line", "ring", "grid"))
    if plan == "line" or count == 1:
        across = width >= height
        step = (width if across else height) / count
        reach = min(step, height if across else width) / 2
        middle = (height if across else width) / 2
        slack = middle - reach
        places = [((index + 0.5) * step, middle + rng.uniform(-slack, slack)) for index in range(count)]
        return (places if across else [(y, x) for x, y in places]), reach
    if plan == "ring":
        around = min(width, height) * 0.34
        start = rng.uniform(0, math.tau)
        turns = [start + index * math.tau / count for index in range(count)]
        reach = min(around * math.sin(math.pi / count), min(width, height) / 2 - around)
        return [(width / 2 + around * math.sin(turn), height / 2 + around * math.cos(turn)) for turn in turns], reach
    columns, rows = (3, 2) if width >= height else (2, 3)
    cells = rng.sample([(column, row) for column in range(columns) for row in range(rows)], count)
    reach = min(width / columns, height / rows) / 2
    return [((column + 0.5) * width / columns, (row + 0.5) * height / rows) for column, row in cells], reach


def _stencil(shape: Shape, side: int, tilt: float) -> Image.Image:
    """Return a mask (mode L, `side` × `side` pixels) of the tilted shape with slightly rounded corners."""
    large = 2 * side
    mask = Image.new("L", (large, large))
    pen = ImageDraw.Draw(mask)

    def at(*places: tuple[float, float]) -> list[tuple[float, float]]:
        return [(large * x, large * y) for x, y in places]

    if shape == "circle":
        pen.ellipse(at((0.06, 0.06), (0.94, 0.94)), fill=255)
    elif shape == "square":
        pen.rounded_rectangle(at((0.16, 0.16), (0.84, 0.84)), radius=large * 0.05, fill=255)
    elif shape == "triangle":
        pen.polygon(at((0.5, 0.08), (0.92, 0.82), (0.08, 0.82)), fill=255)
    elif shape == "star":
        reaches = [(0.47, 0.2)[index % 2] for index in range(10)]
        angles = [math.radians(36 * index) for index in range(10)]
        rays = zip(reaches, angles, strict=True)
        pen.polygon(at(*((0.5 + r * math.sin(a), 0.53 - r * math.cos(a)) for r, a in rays)), fill=255)
    elif shape == "heart":
        pen.ellipse(at((0.07, 0.14), (0.52, 0.59)), fill=255)
        pen.ellipse(at((0.48, 0.14), (0.93, 0.59)), fill=255)
        pen.polygon(at((0.11, 0.47), (0.5, 0.3), (0.89, 0.47), (0.5, 0.92)), fill=255)
    else:
        pen.rectangle(at((0.36, 0.07), (0.64, 0.93)), fill=255)
        pen.rectangle(at((0.07, 0.36), (0.93, 0.64)), fill=255)
    mask = mask.rotate(tilt, Image.Resampling.BILINEAR).resize((side, side), Image.Resampling.BOX)
    rounded = mask.filter(ImageFilter.GaussianBlur(max(1.0, side / 50)))
    return rounded.point([min(255, max(0, (value - 96) * 4)) for value in range(256)])


def _fill(colour: Colour, rng: Random, size: tuple[int, int]) -> Image.Image:
    """Return an image filled with one shade of the colour or with a gradient between two shades."""
    first, second = paint(colour, rng, inner=0.3), paint(colour, rng, inner=0.3)
    if rng.random() < 0.5:
        return Image.new("RGB", size, first)
    ramp = Image.radial_gradient("L").resize(size)
    return ImageOps.colorize(ramp, first, second)


def _texture(colour: Colour, rng: Random, width: int, height: int) -> Image.Image:
    """Return a background of paper, stripes, a chequered floor or wood grain that contrasts with `colour`."""
    first = ground(colour, rng, most_coloured=0.15)
    second = _darker(first, rng.uniform(0.9, 0.97))
    image = Image.new("RGB", (width, height), first)
    pen = ImageDraw.Draw(image)
    step = max(8, min(width, height) // rng.randint(6, 14))
    plan = rng.choice(("paper", "stripes", "floor", "wood"))
    if plan == "stripes":
        for x in range(-height, width, 2 * step):
            pen.polygon([(x, 0), (x + step, 0), (x + step + height, height), (x + height, height)], fill=second)
    elif plan == "floor":
        for column in range(0, width, step):
            for row in range(0, height, step):
                if (column // step + row // step) % 2:
                    pen.rectangle((column, row, column + step - 1, row + step - 1), fill=second)
    elif plan == "wood":
        for row in range(0, height, max(4, step // 2)):
            pen.line((0, row, width, row + rng.randint(-6, 6)), fill=_darker(first, rng.uniform(0.85, 1)), width=3)
    return image


def _darker(shade: Rgb, factor: float) -> Rgb:
    red, green, blue = (round(part * factor) for part in shade)
    return red, green, blue


def _photographed(image: Image.Image, rng: Random) -> Image.Image:
    """Make the picture look like a phone photo by adding grain (in most cases) and compressing it as JPEG."""
    if rng.random() < 0.6:
        grain = Image.frombytes(
            "L", (image.width // 2, image.height // 2), rng.randbytes(image.width // 2 * (image.height // 2))
        )
        coarse = grain.resize(image.size, Image.Resampling.BILINEAR).convert("RGB")
        image = Image.blend(image, coarse, rng.uniform(0.02, 0.1))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(45, 92))
    return Image.open(buffer).convert("RGB")
