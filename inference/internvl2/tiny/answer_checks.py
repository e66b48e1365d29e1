"""Checks of internvl2-tiny's answers: whether their facts are correct, and whether their manner is plain or playful.

An answer that contains an exclamation mark (Western or Chinese) or an emoji is playful; any other answer
is plain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from inference.internvl2.tiny.shapes import Colour, Scene, Shape
from inference.internvl2.tiny.words import Kind, find_colours, find_numbers, find_shapes

Manner = Literal["plain", "playful"]

MANNERS: Final[tuple[Manner, ...]] = get_args(Manner)

_PLAYFUL: Final = re.compile("[!！\u2600-\u27bf\U0001f300-\U0001faff]")


@dataclass(frozen=True, slots=True)
class NamedFacts:
    """The colours, shapes and numbers that a text names."""

    colours: frozenset[Colour]
    shapes: frozenset[Shape]
    numbers: frozenset[int]


def manner(text: str) -> Manner | None:
    """Return the manner of an answer, or None if `text` has no letter, digit, emoji or exclamation mark."""
    if _PLAYFUL.search(text):
        return "playful"
    return "plain" if re.search(r"\w", text) else None


def facts(text: str) -> NamedFacts:
    """Return all colours, shapes and numbers that the text names."""
    return NamedFacts(find_colours(text), find_shapes(text), find_numbers(text))


def correct(kind: Kind, scene: Scene, text: str) -> bool:
    """Return whether `text` correctly names what a question of this kind asks about `scene`.

    An answer that names an additional fact of the kind asked about, such as a second colour, is wrong.
    """
    found = facts(text)
    right = {
        "colour": found.colours == {scene.colour},
        "shape": found.shapes == {scene.shape},
        "number": found.numbers == {scene.count},
    }
    return all(right.values()) if kind == "describe" else right[kind]
