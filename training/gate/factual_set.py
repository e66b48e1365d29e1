"""Factual questions with known answers, which a new model must not have forgotten.

A set is a folder with `questions.json`, a list of ::

    {"image": "cup.jpg", "question": "Which colour is the cup?", "expect": [["red", "crimson"]], "forbid": ["blue"]}

`image` is a file beside it. An answer is right if it has at least one word of every list in `expect` and none of
`forbid`; case does not matter, and Latin letters match whole words only. Style is not judged. Without a folder the
questions are about drawn shapes, always the same ones, which any InternVL2 can answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from random import Random
from typing import Any, Final

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


def read_set(folder: Path) -> list[Question]:
    """Read a folder's questions and check that their pictures exist. Raises `RegressionSetError`."""
    file = folder / "questions.json"
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RegressionSetError(f"{file} cannot be read ({error}): correct training.regression") from error
    if not isinstance(entries, list) or not entries:
        raise RegressionSetError(f"{file} must be a list of questions")
    questions = [_question(each, f"{file} entry {number}") for number, each in enumerate(entries, 1)]
    for number, each in enumerate(questions, 1):
        if not (folder / each.image).is_file():
            raise RegressionSetError(f"{file} entry {number}: there is no picture {folder / each.image}")
    return questions


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


def _question(entry: Any, where: str) -> Question:
    if not isinstance(entry, dict) or not entry.keys() <= {"image", "question", "expect", "forbid"}:
        raise RegressionSetError(f"{where} must have image, question, expect and, if you like, forbid; nothing else")
    image, text, expect, forbid = (entry.get(name) for name in ("image", "question", "expect", "forbid"))
    if not isinstance(image, str) or not isinstance(text, str) or not text.strip():
        raise RegressionSetError(f"{where}: image and question must be texts")
    if not isinstance(expect, list) or not expect or not all(_are_words(each) for each in expect):
        raise RegressionSetError(f"{where}: expect must be a list of lists of words, none of them empty")
    if forbid is not None and forbid != [] and not _are_words(forbid):
        raise RegressionSetError(f"{where}: forbid must be a list of words")
    return Question(image, text, partial(matches, expect=expect, forbid=forbid or ()))


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) and each.strip() for each in value)
