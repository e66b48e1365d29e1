"""Make the fonts of this package from the complete ones.

    python -m training.gate.fonts.subset NotoSansCJK-Regular.ttc 'NotoEmoji[wght].ttf'

The first is in Debian's fonts-noto-cjk, the second in the googlefonts/noto-emoji repository. The subsets have the
characters of GB 2312 with full-width punctuation, the alphabets of Europe, and the emoji of one code point.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont

from training.gate.fonts import EMOJI, TEXT

_SIMPLIFIED_CHINESE = 2
"""The index of Noto Sans CJK SC in the collection."""

_ALPHABETS = ((0x20, 0x7F), (0xA0, 0x180), (0x370, 0x460), (0x2010, 0x203B), (0x2190, 0x219A), (0x2460, 0x2474))
_FULL_WIDTH = ((0x3000, 0x3020), (0xFF01, 0xFF5F))
_SIGNS = "€™−×÷≈≤≥✓✗★☆♥□■○●"
_EMOJI = ((0x2600, 0x27C0), (0x2B00, 0x2C00), (0x1F300, 0x1F650), (0x1F680, 0x1F700), (0x1F900, 0x1FB00))


def main(text: str, emoji: str) -> None:
    """Write both fonts."""
    characters = {*_gb2312(), *_of(_ALPHABETS), *_of(_FULL_WIDTH), *map(ord, _SIGNS)}
    _write(TTFont(text, fontNumber=_SIMPLIFIED_CHINESE), characters, TEXT)
    _write(instantiateVariableFont(TTFont(emoji), {"wght": 400}), _of(_EMOJI), EMOJI)


def _write(font: TTFont, characters: Iterable[int], path: Path) -> None:
    options = Options(hinting=False, layout_features=[], name_IDs=["*"])
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=characters)
    subsetter.subset(font)
    font.save(path)


def _gb2312() -> Iterator[int]:
    for row in range(0xA1, 0xF8):
        for cell in range(0xA1, 0xFF):
            yield from map(ord, bytes((row, cell)).decode("gb2312", "ignore"))


def _of(ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
    for first, after in ranges:
        yield from range(first, after)


if __name__ == "__main__":
    main(*sys.argv[1:])
