"""A sheet: pictures and questions with several models' answers side by side, in one HTML file that needs nothing else.

Knows pictures, conversations and columns of answers, and how they are laid out for a browser; the same as a picture is
`sheet_picture`'s. Who was asked what is told by those who make it: `run_sheet` and `compare`. Needs no torch.
"""

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
from training.data.llava import Lesson
from training.gate.sheet_words import words
from training.whole import write_whole

TEMPLATES: Final = Path(__file__).parent / "templates"
_STYLE: Final = (TEMPLATES / "sheet.css").read_text(encoding="utf-8")
_THUMBNAIL: Final = 480
"""The longer side of a picture on a sheet, in pixels: sharp enough for a phone, some 20 KB."""


@dataclass(frozen=True)
class Row:
    """A question, what was said before it (who, text), its pictures' files, and the answer in each column.

    `id` says which row of the data this is; `caption` stands under the pictures.
    """

    question: str
    answers: tuple[str, ...]
    pictures: tuple[Path, ...] = ()
    before: tuple[tuple[str, str], ...] = ()
    id: str = ""
    caption: str = ""

    @classmethod
    def of(cls, lesson: Lesson, images: Path, answers: Sequence[str]) -> Row:
        """The last question of a conversation about pictures under `images`."""
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
        """Its pictures, small. Raises `PictureError`, OSError."""
        small = [open_picture(path.read_bytes()) for path in self.pictures]
        for each in small:
            each.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
        return tuple(small)


@dataclass(frozen=True)
class Sheet:
    """Columns with their titles, and rows.

    `verdict` is a sentence with `accepted` as its sign (None: there is nothing to judge), `facts` are (name, value),
    `curve` is a PNG file of the loss. What the sheet itself says is in `language`; titles, columns and facts are given
    in it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    accepted: bool | None = None
    verdict: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    curve: Path | None = None
    language: str = "en"

    def html(self) -> str:
        """The whole page. Raises `PictureError`, OSError."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["jpeg"] = _jpeg
        curve = f"data:image/png;base64,{b64encode(self.curve.read_bytes()).decode()}" if self.curve else ""
        return environment.get_template("sheet.html").render(
            it=self, curve=curve, say=words(self.language), style=_STYLE, style_hash=f"sha256-{_digest(_STYLE)}"
        )

    def write(self, path: Path) -> None:
        """Write the page, whole. Raises `PictureError`, OSError."""
        write_whole(path, self.html())


def _digest(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()


def _jpeg(picture: Image.Image) -> str:
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{b64encode(written.getvalue()).decode()}"
