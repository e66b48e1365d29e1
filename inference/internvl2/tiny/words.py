"""English and Chinese names of colours, shapes and numbers, and functions that find them in a text."""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

from inference.internvl2.tiny.shapes import Colour, Scene, Shape

Language = Literal["en", "zh"]
Kind = Literal["colour", "shape", "number", "describe"]

LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

COLOUR_ZH: Final[dict[Colour, str]] = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "black": "黑色",
}
SHAPE_ZH: Final[dict[Shape, str]] = {
    "circle": "圆形",
    "square": "方形",
    "triangle": "三角形",
    "star": "五角星",
    "heart": "爱心",
    "cross": "十字形",
}
NUMBER_EN: Final = ("zero", "one", "two", "three", "four", "five")
NUMBER_ZH: Final = ("零", "一", "两", "三", "四", "五")

_COLOURS: Final[dict[Colour, str]] = {
    "red": r"\bred\b|红",
    "orange": r"\borange\b|橙|橘",
    "yellow": r"\byellow\b|黄",
    "green": r"\bgreen\b|绿",
    "blue": r"\bblue\b|蓝",
    "purple": r"\b(?:purple|violet)\b|紫",
    "black": r"\bblack\b|黑",
}
_SHAPES: Final[dict[Shape, str]] = {
    "circle": r"\bcircles?\b|圆",
    "square": r"\bsquares?\b|方形|方块",
    "triangle": r"\btriangles?\b|三角",
    "star": r"\bstars?\b|星",
    "heart": r"\bhearts?\b|心形|爱心",
    "cross": r"\bcross(?:es)?\b|十字",
}
# A Chinese numeral counts only before a measure word, because 三角形 and 五角星 contain numerals too.
_NUMBERS: Final[dict[int, str]] = {
    1: r"\bone\b|\b1\b|[一1]\s*[个颗]",
    2: r"\btwo\b|\b2\b|[两二2]\s*[个颗]",
    3: r"\bthree\b|\b3\b|[三3]\s*[个颗]",
    4: r"\bfour\b|\b4\b|[四4]\s*[个颗]",
    5: r"\bfive\b|\b5\b|[五5]\s*[个颗]",
}


def plural(shape: Shape, count: int) -> str:
    """Return the English name of the shape, in the plural unless `count` is 1."""
    if count == 1:
        return shape
    return shape + ("es" if shape == "cross" else "s")


def colour_name(colour: Colour, language: Language) -> str:
    """Return the name of the colour in the given language, such as `red` or `红色`."""
    return colour if language == "en" else COLOUR_ZH[colour]


def shape_name(shape: Shape, language: Language) -> str:
    """Return the singular name of the shape in the given language, such as `star` or `五角星`."""
    return shape if language == "en" else SHAPE_ZH[shape]


def number_name(count: int, language: Language) -> str:
    """Return the number as a word, such as `three`; in Chinese, with a measure word, such as `三个`."""
    return NUMBER_EN[count] if language == "en" else NUMBER_ZH[count] + "个"


def phrase(scene: Scene, language: Language) -> str:
    """Return a phrase that describes the scene, such as `three red stars` or `三个红色的五角星`."""
    if language == "en":
        return f"{NUMBER_EN[scene.count]} {scene.colour} {plural(scene.shape, scene.count)}"
    return f"{NUMBER_ZH[scene.count]}个{COLOUR_ZH[scene.colour]}的{SHAPE_ZH[scene.shape]}"


def find_colours(text: str) -> frozenset[Colour]:
    """Return every colour that the text names."""
    return frozenset(colour for colour, pattern in _COLOURS.items() if re.search(pattern, text, re.IGNORECASE))


def find_shapes(text: str) -> frozenset[Shape]:
    """Return every shape that the text names."""
    return frozenset(shape for shape, pattern in _SHAPES.items() if re.search(pattern, text, re.IGNORECASE))


def find_numbers(text: str) -> frozenset[int]:
    """Return every count (1 to 5) that the text names in words or digits."""
    return frozenset(count for count, pattern in _NUMBERS.items() if re.search(pattern, text, re.IGNORECASE))
