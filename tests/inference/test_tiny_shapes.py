"""internvl2-tiny's pictures: two independent renderers of scenes, and the sample pictures."""

from __future__ import annotations

import ast
import colorsys
from io import BytesIO
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
from PIL import Image

from inference.internvl2.tiny import drawing
from inference.internvl2.tiny.samples import sample_pictures, sample_sticker
from inference.internvl2.tiny.shapes import COLOURS, COUNTS, SHAPES, Colour, Scene, paint, random_scene
from inference.internvl2.tiny.words import find_colours, find_numbers, find_shapes
from tools.tiny import training_drawing

RENDERERS = (drawing, training_drawing)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_every_scene_is_drawn_and_repeatable(renderer: ModuleType) -> None:
    """Each renderer draws every colour, shape and count, and the same random state gives the same picture."""
    rng = Random(0)
    for colour, shape, count in zip(COLOURS, [*SHAPES, "star"], [*COUNTS, 2, 3], strict=True):
        scene = Scene(colour, shape, count)
        seed = rng.random()
        first, second = renderer.draw(scene, Random(seed)), renderer.draw(scene, Random(seed))
        assert first.mode == "RGB"
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("size", [(64, 64), (500, 120), (90, 400)])
def test_a_requested_size_is_kept(renderer: ModuleType, size: tuple[int, int]) -> None:
    """A picture has exactly the requested canvas size, even if oblong."""
    assert renderer.draw(Scene("red", "circle", 5), Random(1), size).size == size


@pytest.mark.parametrize("renderer", RENDERERS)
def test_more_shapes_cover_more_area_in_their_colour(renderer: ModuleType) -> None:
    """A picture shows its scene's colour, and other colours are nearly absent."""
    for colour in ("red", "green", "blue"):
        image = renderer.draw(Scene(colour, "square", 4), Random(5), (300, 300))
        shown = {each: _share(image, each) for each in ("red", "green", "blue")}
        assert shown.pop(colour) > 0.01
        assert max(shown.values()) < 0.01


def _share(image: Image.Image, colour: Colour) -> float:
    """Return the share of pixels that are saturated and have the hue of `colour`."""
    pixels = image.resize((100, 100)).tobytes()
    middle = {"red": 0.0, "green": 1 / 3, "blue": 0.62}[colour]
    found = 0
    for start in range(0, len(pixels), 3):
        hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in pixels[start : start + 3]))
        apart = min(abs(hue - middle), 1 - abs(hue - middle))
        found += saturation > 0.5 and value > 0.3 and apart < 0.1
    return found / 10_000


def test_the_renderers_share_no_drawing_code() -> None:
    """The two renderers import neither each other nor common drawing code, only shapes and colours."""
    allowed = {"Colour", "Rgb", "Scene", "Shape", "ground", "paint"}
    for module in RENDERERS:
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("inference"):
                assert node.module == "inference.internvl2.tiny.shapes"
                assert {name.name for name in node.names} <= allowed


def test_the_renderers_use_other_sizes_and_places() -> None:
    """All examination pictures are larger than the training pictures; some are photo-sized, and some oblong."""
    rng = Random(2)
    sizes = {
        renderer: [renderer.draw(random_scene(rng), rng).size for _ in range(40)]
        for renderer in (training_drawing, drawing)
    }
    trained, other = ([width * height for width, height in found] for found in sizes.values())
    assert max(trained) < min(other)
    assert any(width >= 1280 for width, _ in sizes[drawing])
    assert any(width != height for width, height in sizes[drawing])


def test_shades_of_different_colours_never_meet() -> None:
    """Shades of different colours differ clearly, even red and orange or blue and purple."""
    rng = Random(4)
    for colour in COLOURS:
        for other in COLOURS:
            if colour != other:
                gaps = (
                    sum(abs(a - b) for a, b in zip(paint(colour, rng), paint(other, rng), strict=True))
                    for _ in range(200)
                )
                assert min(gaps) > 20


def test_samples_are_a_dozen_named_photographs() -> None:
    """The sample pictures are twelve different JPEG files whose names say what they show."""
    samples = sample_pictures()
    assert len(samples) == len(set(samples.values())) == 12
    for name, data in samples.items():
        assert Image.open(BytesIO(data)).format == "JPEG"
        words = name.replace("-", " ")
        assert len(find_colours(words)) == len(find_shapes(words)) == len(find_numbers(words)) == 1


def test_there_is_a_sticker_among_the_samples() -> None:
    """The sample sticker is a 512-pixel WebP file, as Telegram requires, transparent around its shape."""
    ((name, data),) = sample_sticker().items()
    image = Image.open(BytesIO(data))
    assert (image.format, image.mode, image.size) == ("WEBP", "RGBA", (512, 512))
    alpha = image.getchannel("A")
    assert [alpha.getpixel(place) for place in ((0, 0), (511, 511), (256, 256))] == [0, 0, 255]
    assert name not in sample_pictures()
    assert find_shapes(name.replace("-", " ")) == {"star"}
