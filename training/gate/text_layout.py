"""Lay out text on a picture: break lines to fit a width, and fall back to other fonts.

Pillow draws a string in one font, with an empty box for each character that the font lacks. This module
draws each character in the first font that has it, or as □ if no font has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Final

import matplotlib
from fontTools.ttLib import TTFont
from PIL import ImageDraw, ImageFont

from training.gate.fonts import EMOJI, TEXT

UNKNOWN: Final = "□"
_ELLIPSIS: Final = "…"
_OTHERS: Final = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""matplotlib's font, with the alphabets that our fonts lack."""

_FILES: Final = (TEXT, EMOJI, _OTHERS)

# Lines break at spaces and around a character of these scripts. Closing punctuation stays with its phrase.
_WIDE: Final = r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]"
_UNIT: Final = re.compile(rf"\s+|{_WIDE}[，。！？、；：）》」』”’]*|(?:(?!{_WIDE})\S)+")
_INVISIBLE: Final = re.compile(r"[\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufe00-\ufe0f\U000e0000-\U000e01ef]")


class Lettering:
    """Fonts of one size, in pixels, for measuring, wrapping and drawing text."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.line = round(size * 1.4)
        self._fonts = [ImageFont.truetype(path, size) for path in _FILES]

    def width(self, text: str) -> float:
        """Return the width of a line in pixels."""
        return sum(self._fonts[font].getlength(part) for font, part in _parts(text))

    def wrap(self, text: str, width: float, max_lines: int) -> list[str]:
        """Wrap text into lines of at most `width` pixels, with an ellipsis for text beyond `max_lines` lines."""
        rows = [row for each in text.strip().splitlines() for row in self._break(_INVISIBLE.sub("", each), width)]
        if len(rows) <= max_lines:
            return rows
        last = rows[max_lines - 1]
        while last and self.width(last + _ELLIPSIS) > width:
            last = last[:-1]
        return [*rows[: max_lines - 1], last.rstrip() + _ELLIPSIS]

    def _break(self, text: str, width: float) -> Iterator[str]:
        row = ""
        for unit in _UNIT.findall(text):
            if row and self.width((row + unit).rstrip()) > width:
                yield row.rstrip()
                row = ""
            row = row + unit if row else unit.lstrip()
            while self.width(row.rstrip()) > width and len(row) > 1:
                fits = next(end for end in range(len(row) - 1, 0, -1) if end == 1 or self.width(row[:end]) <= width)
                yield row[:fits]
                row = row[fits:]
        if row.strip():
            yield row.rstrip()

    def write(self, draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: str) -> None:
        """Draw one line with its upper left corner at `corner`."""
        left, baseline = corner[0], corner[1] + self.size
        for font, part in _parts(text):
            draw.text((left, baseline), part, fill=colour, font=self._fonts[font], anchor="ls")
            left += self._fonts[font].getlength(part)


def lacks_characters(text: str) -> bool:
    """Return whether any character of the text is drawn as `UNKNOWN`."""
    return any(_font_of(character) < 0 for character in text)


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """Split text into pieces that each need one font, and yield the font's index with each piece."""
    for number, piece in groupby(text, _font_of):
        part = "".join(piece)
        yield (number, part) if number >= 0 else (0, UNKNOWN * len(part))


@cache
def _font_of(character: str) -> int:
    """Return the index of the first font that has a character, or -1 if none has it."""
    return next((number for number, known in enumerate(_covered()) if ord(character) in known), -1)


@cache
def _covered() -> tuple[frozenset[int], ...]:
    """Return the code points that each font covers."""
    found = []
    for path in _FILES:
        with TTFont(path, lazy=True) as font:
            found.append(frozenset(font.getBestCmap()))
    return tuple(found)
