"""A sheet: pictures and questions with the answers of several models side by side, in one self-contained HTML file."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final

import jinja2
from PIL import Image

from inference.images.opening import open_picture
from inference.messages import Role
from storage.atomic_files import write_text
from training.data.llava import Lesson
from training.gate.report import Decision
from training.gate.sheet_words import words

TEMPLATES: Final = Path(__file__).parent / "templates"
_STYLE: Final = (TEMPLATES / "sheet.css").read_text(encoding="utf-8")
_STYLE_HASH: Final = f"sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}"
_THUMBNAIL: Final = 480
"""Pixels of a picture's longer side: sharp on a phone, some 20 KB."""


@dataclass(frozen=True)
class Row:
    """A question and the answer in each column.

    Attributes:
        question: The question.
        answers: An answer for each column.
        pictures: The files of its pictures.
        before: The earlier turns: "asked" or "answered", and the text.
        id: The id of the row in the data.
        caption: The text under the pictures.
    """

    question: str
    answers: tuple[str, ...]
    pictures: tuple[Path, ...] = ()
    before: tuple[tuple[str, str], ...] = ()
    id: str = ""
    caption: str = ""

    @classmethod
    def from_lesson(cls, lesson: Lesson, images: Path, answers: Sequence[str]) -> Row:
        """Make the row of a conversation's last question. Its pictures are under `images`."""
        *before, question, _ = lesson.turns
        return cls(
            question.text,
            tuple(answers),
            tuple(images / name for name in lesson.subject),
            tuple(("asked" if turn.role is Role.USER else "answered", turn.text) for turn in before),
            id=lesson.name,
        )

    @cached_property
    def thumbnails(self) -> tuple[Image.Image, ...]:
        """Its pictures as thumbnails. Raises `PictureError`, OSError."""
        small = [open_picture(path.read_bytes()) for path in self.pictures]
        for each in small:
            each.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
        return tuple(small)


@dataclass(frozen=True)
class Sheet:
    """Rows of answers in columns, under a title.

    Attributes:
        title: The title, in `language`.
        columns: The titles of the columns, in `language`.
        rows: The rows.
        decision: The verdict, or None if there is none.
        verdict: The reason of the verdict, in `language`.
        facts: Names and values, in `language`.
        plots: PNG files, each with a description.
        language: The language of the sheet's own words.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    decision: Decision | None = None
    verdict: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    plots: tuple[tuple[Path, str], ...] = ()
    language: str = "en"

    def html(self) -> str:
        """Return the page. Raises `PictureError`, OSError."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters["jpeg"] = _jpeg
        plots = [
            (f"data:image/png;base64,{b64encode(file.read_bytes()).decode()}", shown) for file, shown in self.plots
        ]
        return environment.get_template("sheet.html").render(
            it=self, plots=plots, say=words(self.language), style=_STYLE, style_hash=_STYLE_HASH
        )

    def write(self, path: Path) -> None:
        """Write the page atomically. Raises `PictureError`, OSError."""
        write_text(path, self.html())


def _jpeg(picture: Image.Image) -> str:
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{b64encode(written.getvalue()).decode()}"
