"""A comparison sheet as a PNG for a chat: the verdict, the numbers, the plots and the first rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageOps

from training.gate.comparison_sheet import Row, Sheet
from training.gate.comparison_sheet_translations import words
from training.gate.report import Decision
from training.gate.text_layout import UNKNOWN, Lettering, lacks_characters

# Telegram scales photos down to 1280 pixels; letters of 20 pixels stay legible.
WIDTH: Final = 1080
ROWS: Final = 4
_MARGIN: Final = 32
_GAP: Final = 20
_PICTURE: Final = 150
_CURVE: Final = 800
_MAX_LINES: Final = 5
_INK, _PALE, _LINE, _NEW, _GOOD, _BAD = "#1b1d21", "#6b7280", "#d9dce1", "#2f6fde", "#1a7f4b", "#c0392b"

_Line = tuple[float, float, str, Lettering, str]
"""Left, top, text, lettering and colour of a line."""

_Box = tuple[float, float, float]
"""Left, top and width of a block of text."""


def draw(sheet: Sheet, path: Path) -> None:
    """Draw a sheet into a PNG file.

    Raises:
        PictureError: A picture cannot be decoded.
        OSError: A file cannot be read or written.
    """
    say = words(sheet.language)
    page = _Page()
    page.write(sheet.title, page.title, _INK, max_lines=2)
    if sheet.decision is not None:
        sign = say(sheet.decision.value)
        colour = {Decision.ACCEPTED: _GOOD, Decision.REJECTED: _BAD}.get(sheet.decision, _INK)
        page.write(f"{sign}: {sheet.verdict}" if sheet.verdict else sign, page.text, colour)
    page.numbers(sheet.facts, [file for file, _ in sheet.plots])
    for row in sheet.rows[:ROWS]:
        page.row(sheet.columns, row, row.question or say("(the picture alone)"))
    if len(sheet.rows) > ROWS:
        page.write(say("{number} more are on the full page.", number=len(sheet.rows) - ROWS), page.small, _PALE)
    if page.lacks_characters:
        page.write(
            say("{box} stands for a character that only the full page can show.", box=UNKNOWN), page.small, _PALE
        )
    page.save(path)


class _Page:
    """A page that is filled from top to bottom; `save` draws it once its height is known."""

    def __init__(self) -> None:
        self.title, self.text, self.small = Lettering(34), Lettering(22), Lettering(18)
        self._top: float = _MARGIN
        self._texts: list[_Line] = []
        self._pictures: list[tuple[int, int, Image.Image]] = []
        self._rules: list[float] = []

    def write(self, text: str, letters: Lettering, colour: str, *, max_lines: int = 4) -> None:
        """Add text across the full width of the page."""
        self._top = self._lines(text, letters, colour, (_MARGIN, self._top, WIDTH - 2 * _MARGIN), max_lines) + 8

    def numbers(self, facts: tuple[tuple[str, str], ...], plots: Iterable[Path]) -> None:
        """Add lines of names and values, followed by the plots."""
        self._top += _GAP / 2
        for name, value in facts:
            self._texts.append((_MARGIN, self._top + 3, name, self.small, _PALE))
            self._texts.append((WIDTH - _MARGIN - self.text.width(value), self._top, value, self.text, _INK))
            self._top += self.text.line
        for plot in plots:
            with Image.open(plot) as opened:
                shown = ImageOps.contain(opened.convert("RGB"), (_CURVE, _CURVE), Image.Resampling.LANCZOS)
            self._top += _GAP
            self._pictures.append(((WIDTH - shown.width) // 2, round(self._top), shown))
            self._top += shown.height
        self._top += _GAP

    def row(self, columns: tuple[str, ...], row: Row, question: str) -> None:
        """Add the row's first picture, the question, and the answers side by side."""
        self._rules.append(self._top)
        top = self._top + _GAP
        bottom = top
        if row.thumbnails:
            small = ImageOps.contain(row.thumbnails[0], (_PICTURE, _PICTURE))
            self._pictures.append((_MARGIN + (_PICTURE - small.width) // 2, round(top), small))
            bottom += small.height
        left = _MARGIN + _PICTURE + _GAP
        width = WIDTH - _MARGIN - left
        top = self._lines(question, self.text, _INK, (left, top - 4, width), 3) + 8
        column_width = (width - _GAP * (len(columns) - 1)) / len(columns)
        for index, (column, answer) in enumerate(zip(columns, row.answers, strict=True)):
            column_left = left + index * (column_width + _GAP)
            colour = _NEW if index == len(columns) - 1 else _PALE
            end = self._lines(column, self.small, colour, (column_left, top, column_width), 1)
            end = self._lines(answer or "–", self.text, _INK, (column_left, end, column_width), _MAX_LINES)
            bottom = max(bottom, end)
        self._top = bottom + _GAP

    @property
    def lacks_characters(self) -> bool:
        """Whether the page has characters that no font can draw."""
        return any(lacks_characters(text) for _, _, text, _, _ in self._texts)

    def save(self, path: Path) -> None:
        """Draw the page and save it to a file."""
        image = Image.new("RGB", (WIDTH, round(self._top + _MARGIN / 2)), "white")
        draw = ImageDraw.Draw(image)
        for top in self._rules:
            draw.line((_MARGIN, top, WIDTH - _MARGIN, top), fill=_LINE, width=2)
        for left, upper, picture in self._pictures:
            image.paste(picture, (left, upper))
        for across, down, text, letters, colour in self._texts:
            letters.write(draw, (across, down), text, colour)
        image.save(path)

    def _lines(self, text: str, letters: Lettering, colour: str, box: _Box, max_lines: int) -> float:
        """Add lines of text, and return the top edge of the next line."""
        left, top, width = box
        for line in letters.wrap(text, width, max_lines):
            self._texts.append((left, top, line, letters, colour))
            top += letters.line
        return top
