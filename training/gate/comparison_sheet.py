"""A comparison sheet: a self-contained HTML file with pictures, questions and several models' answers side by side."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import jinja2
from PIL import Image

from inference.images.opening import open_picture
from inference.messages import Role
from storage.atomic_files import write_text
from training.data.llava import Lesson
from training.gate.comparison_sheet_translations import words
from training.gate.report import Decision

TEMPLATES: Final = Path(__file__).parent / "templates"
_STYLE: Final = (TEMPLATES / "sheet.css").read_text(encoding="utf-8")
_STYLE_HASH: Final = f"sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}"
_THUMBNAIL: Final = 480
"""The length of a thumbnail's longer side in pixels, which looks sharp on a phone and takes about 20 KB."""


@dataclass(frozen=True)
class Row:
    """A question and the answer in each column.

    Attributes:
        question: The question.
        answers: The answer in each column.
        pictures: The files of the question's pictures.
        before: The earlier turns, as pairs of "asked" or "answered" and the text.
        id: The ID of the row in the data.
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
        """Return a row for a lesson's last question, with its pictures in the folder `images`."""
        *before, question, _ = lesson.turns
        return cls(
            question.text,
            tuple(answers),
            tuple(images / name for name in lesson.subject),
            tuple(("asked" if turn.role is Role.USER else "answered", turn.text) for turn in before),
            id=lesson.name,
        )

    @property
    def thumbnails(self) -> tuple[Image.Image, ...]:
        """The row's pictures as thumbnails.

        Raises:
            PictureError: A picture cannot be decoded.
            OSError: A picture cannot be read.
        """
        return tuple(thumbnail(each) for each in self.pictures)


@lru_cache(maxsize=64)
def thumbnail(file: Path) -> Image.Image:
    """Return a picture as a thumbnail; it is cached, because the sheet of each language shows it.

    Raises:
        PictureError: The picture cannot be decoded.
        OSError: The picture cannot be read.
    """
    small = open_picture(file.read_bytes())
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return small


@dataclass(frozen=True)
class Sheet:
    """Rows of answers in columns, under a title.

    Attributes:
        title: The title, in `language`.
        columns: The titles of the columns, in `language`.
        rows: The rows.
        decision: The verdict, or None for a sheet without a verdict.
        verdict: The reason for the verdict, in `language`.
        facts: (name, value) pairs, in `language`.
        plots: PNG files, each with a description.
        language: The language of everything except the questions and answers.
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
        """Return the sheet as an HTML page.

        Raises:
            PictureError: A picture cannot be decoded.
            OSError: A picture or a plot cannot be read.
        """
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
        """Write the sheet as an HTML page, atomically.

        Raises:
            PictureError: A picture cannot be decoded.
            OSError: A file cannot be read or written.
        """
        write_text(path, self.html())


def _jpeg(picture: Image.Image) -> str:
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{b64encode(written.getvalue()).decode()}"
