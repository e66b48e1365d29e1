"""Factual questions with known answers, which a new model must not have forgotten.

A set is a folder with `questions.json`, a list of ::

    {"image": "cup.jpg", "question": "Which colour is the cup?", "expect": [["red", "crimson"]], "forbid": ["blue"]}

`image` is a file beside it. An answer is right if it has at least one word of every list in `expect` and none of
`forbid`; case does not matter, and Latin letters match whole words only. Style is not judged. Without a folder the
questions are about drawn shapes, always the same ones, which any InternVL2 can answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from random import Random
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from inference.internvl2.tiny.drawing import draw
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.manner import correct
from inference.internvl2.tiny.shapes import random_scene
from inference.internvl2.tiny.words import LANGUAGES, Kind
from training.data.llava import Lesson, open_question
from training.job import TrainingError

DRAWN: Final = 150
"""The number of questions about drawn shapes."""

_SIDE: Final = 224
_ASKED: Final[tuple[Kind, ...]] = ("colour", "shape", "number")


class RegressionSetError(TrainingError):
    """The folder of factual questions is invalid. The text names the entry."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one picture file (relative to the set's folder), and the test of its answers."""

    image: str
    text: str
    right: Callable[[str], bool]

    def lesson(self, folder: Path, system: str) -> Lesson:
        """Return the question as a conversation without its answer."""
        return open_question(self.image, self.text, system, folder)


class _Entry(BaseModel):
    """An entry of `questions.json`."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True, str_min_length=1)

    image: str
    question: str
    expect: list[Annotated[list[str], Field(min_length=1)]] = Field(min_length=1)
    forbid: list[str] | None = None


_ENTRIES: Final[TypeAdapter[list[_Entry]]] = TypeAdapter(Annotated[list[_Entry], Field(min_length=1)])


def read_set(folder: Path) -> list[Question]:
    """Read a folder's questions and check that their pictures exist. Raises `RegressionSetError`."""
    file = folder / "questions.json"
    try:
        entries = _ENTRIES.validate_json(file.read_bytes())
    except OSError as error:
        raise RegressionSetError(f"{file} cannot be read ({error}): correct training.regression") from error
    except ValidationError as error:
        first = error.errors()[0]
        entry, *names = first["loc"] or ("",)
        where = f" entry {entry + 1}: {'.'.join(map(str, names))}" if isinstance(entry, int) else ""
        raise RegressionSetError(f"{file}{where}: {first['msg']}") from error
    for number, each in enumerate(entries, 1):
        if not (folder / each.image).is_file():
            raise RegressionSetError(f"{file} entry {number}: there is no picture {folder / each.image}")
    return [
        Question(each.image, each.question, partial(matches, expect=each.expect, forbid=each.forbid or ()))
        for each in entries
    ]


def draw_set(folder: Path, count: int = DRAWN) -> list[Question]:
    """Draw pictures into `folder` and return questions on colours, shapes and numbers in English and Chinese."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random("the factual questions")
    questions = []
    for number, (kind, language) in enumerate(islice(cycle(product(_ASKED, LANGUAGES)), count)):
        scene = random_scene(rng)
        image = f"{number:03}.png"
        draw(scene, rng, (_SIDE, _SIDE)).save(folder / image, compress_level=1)
        questions.append(Question(image, held_out(language, kind, rng), partial(correct, kind, scene)))
    return questions


def matches(answer: str, expect: Sequence[Sequence[str]], forbid: Sequence[str]) -> bool:
    """Return whether an answer is right by the rule of `questions.json`."""
    return all(any(_contains(answer, word) for word in words) for words in expect) and not any(
        _contains(answer, word) for word in forbid
    )


def _contains(answer: str, word: str) -> bool:
    # Scripts without spaces have no word boundaries.
    edge = r"\b" if word.isascii() else ""
    return re.search(f"{edge}{re.escape(word.casefold())}{edge}", answer.casefold()) is not None
