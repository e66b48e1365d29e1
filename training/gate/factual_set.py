"""Factual questions with known answers, to check that a new model has not forgotten facts.

A set is a folder with `questions.json`, which is a list of entries such as::

    {"image": "cup.jpg", "question": "Which colour is the cup?",
     "expect": [["red", "crimson"]], "forbid": ["blue"]}

`image` is a file in the same folder. An answer is right if it has at least one word of every list in
`expect` and none of the words in `forbid`; case does not matter, and words in Latin letters are
matched as whole words. Style is not judged. Without a folder, a fixed series of questions about drawn
shapes is asked, which any InternVL2 model can answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import count, cycle, islice, product
from math import floor
from pathlib import Path
from random import Random
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from inference.internvl2.tiny.answer_checks import correct
from inference.internvl2.tiny.drawing import draw
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.shapes import Scene, random_scene
from inference.internvl2.tiny.words import LANGUAGES, Kind
from storage.translatable_reason import Reason
from training.data.llava import Lesson
from training.data.row_parser import open_question
from training.evidence.non_inferiority import least_margin, questions_needed
from training.job import TrainingError

SIDE: Final = 224
"""The side length of a drawn picture, in pixels."""

DRAWN: Final = "drawn-1"
"""The folder of drawn pictures that are kept; if other pictures are drawn, it needs another name."""

LOOKS: Final = (150, 300, 600, 1_500)
"""The numbers of questions about drawn shapes after which the answers are compared."""

ASKED: Final[tuple[Kind, ...]] = ("colour", "shape", "number")
"""The kinds of questions about drawn shapes."""


@dataclass(frozen=True, slots=True)
class FactualQuestion:
    """A question about one picture.

    Attributes:
        image: The picture's file, relative to the set's folder.
        text: The wording of the question.
        right: A function that returns whether an answer is right.
        fact: The fact that a right answer states. Questions with different right answers have different
            facts.
        identity: A hash of the picture and the wording.
    """

    image: str
    text: str
    right: Callable[[str], bool]
    fact: str
    identity: str

    @classmethod
    def about(cls, image: str, text: str, right: Callable[[str], bool], *, fact: str, folder: Path) -> FactualQuestion:
        """Return a question about a picture in `folder`.

        Raises:
            OSError: The picture cannot be read.
        """
        content = (folder / image).read_bytes() + b"\0" + text.encode()
        return cls(image, text, right, fact, sha256(content).hexdigest()[:32])


class _Entry(BaseModel):
    """An entry of `questions.json`."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True, str_min_length=1)

    image: str
    question: str
    expect: list[Annotated[list[str], Field(min_length=1)]] = Field(min_length=1)
    forbid: list[str] | None = None


_ENTRIES: Final[TypeAdapter[list[_Entry]]] = TypeAdapter(Annotated[list[_Entry], Field(min_length=1)])


def read_set(folder: Path) -> list[FactualQuestion]:
    """Read the questions in `folder` and check that their pictures exist.

    Raises:
        TrainingError: The questions are unreadable or invalid, or a picture is missing.
    """
    file = folder / "questions.json"
    try:
        entries = _ENTRIES.validate_json(file.read_bytes())
    except OSError as error:
        raise TrainingError(f"{file} cannot be read ({error}): correct training.regression") from error
    except ValidationError as error:
        first = error.errors()[0]
        entry, *names = first["loc"] or ("",)
        where = f" entry {entry + 1}: {'.'.join(map(str, names))}" if isinstance(entry, int) else ""
        raise TrainingError(f"{file}{where}: {first['msg']}") from error
    questions = []
    for number, each in enumerate(entries, 1):
        right = partial(matches, expect=each.expect, forbid=each.forbid or ())
        try:
            questions.append(
                FactualQuestion.about(each.image, each.question, right, fact=str(each.expect), folder=folder)
            )
        except OSError as error:
            raise TrainingError(f"{file} entry {number}: there is no picture {folder / each.image}") from error
    return questions


class QuestionSet:
    """Questions with known answers, generated as needed.

    Attributes:
        folder: The folder of the questions' pictures.
        looks: The numbers of questions after which answers are compared, in ascending order.
    """

    def __init__(self, folder: Path, questions: Iterator[FactualQuestion], looks: Sequence[int]) -> None:
        self.folder = folder
        self.looks = looks
        self._further = questions
        self._made: list[FactualQuestion] = []
        self._lessons: dict[tuple[str, str], Lesson] = {}

    def first(self, number: int) -> list[FactualQuestion]:
        """Return the first `number` questions."""
        self._made += islice(self._further, max(0, number - len(self._made)))
        return self._made[:number]

    def lesson(self, question: FactualQuestion, system: str) -> Lesson:
        """Return a question of this set as a conversation with an empty answer; its picture is decoded only once."""
        key = question.identity, system
        if key not in self._lessons:
            self._lessons[key] = open_question(question.image, question.text, system, self.folder)
        return self._lessons[key]


def own_set(folder: Path) -> QuestionSet:
    """Return the operator's questions in `folder`; models are compared once, after answering all of them.

    Raises:
        TrainingError: The questions are unreadable or invalid, or a picture is missing.
    """
    questions = read_set(folder)
    return QuestionSet(folder, iter(questions), (len(questions),))


def drawn_set(folder: Path) -> QuestionSet:
    """Return the questions about drawn shapes, whose pictures are drawn into `folder`."""
    return QuestionSet(folder, draw_questions(folder), LOOKS)


def draw_questions(folder: Path) -> Iterator[FactualQuestion]:
    """Yield English and Chinese questions on colours, shapes and numbers, drawing their pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random("the factual questions")
    for number, (kind, language) in zip(count(), cycle(product(ASKED, LANGUAGES)), strict=False):
        scene = random_scene(rng)
        image = f"{number:03}.png"
        draw_once(scene, folder / image)
        text, right = held_out(language, kind, rng), partial(correct, kind, scene)
        yield FactualQuestion.about(image, text, right, fact=fact_of(scene, kind), folder=folder)


def draw_once(scene: Scene, file: Path) -> None:
    """Draw a picture of the scene, which depends on the file's name too, unless the file exists and is not empty."""
    with suppress(FileNotFoundError):
        if file.stat().st_size:
            return
    part = file.with_suffix(f".{os.getpid()}")
    draw(scene, Random(file.name), (SIDE, SIDE)).save(part, "PNG", compress_level=1)
    part.replace(file)


def fact_of(scene: Scene, kind: Kind) -> str:
    """Return the fact about `scene` that answers a question of kind `kind`."""
    return str({"colour": scene.colour, "shape": scene.shape, "number": scene.count}[kind])


def check_decidable(folder: Path | None, max_loss_points: float) -> None:
    """Check that there are enough factual questions to show that a model loses less than `max_loss_points`.

    Args:
        folder: The folder of the operator's questions; None for questions about drawn shapes.
        max_loss_points: The allowed loss, in percentage points.

    Raises:
        TrainingError: The questions cannot be read, or there are too few. If there are too few, the message
            names the smallest `max_loss_points` for which they suffice.
    """
    looks = LOOKS if folder is None else own_set(folder).looks
    if max_loss_points / 100 > least_margin(looks):
        return
    smallest = f"{floor(1_000 * least_margin(looks) + 1) / 10:g}"
    if folder is None or max_loss_points == 0:
        raise TrainingError(
            Reason(
                "{questions} factual questions can't show that a model loses less than {allowed} points: set "
                "training.max_loss_points to at least {smallest}",
                questions=looks[-1],
                allowed=f"{max_loss_points:g}",
                smallest=smallest,
            )
        )
    raise TrainingError(
        Reason(
            "the {questions} factual questions in {folder} are too few to show that a model loses less than {allowed} "
            "points: set training.max_loss_points to at least {smallest}, or add questions until there are {needed}",
            questions=looks[-1],
            folder=str(folder),
            allowed=f"{max_loss_points:g}",
            smallest=smallest,
            needed=questions_needed(max_loss_points / 100),
        )
    )


def matches(answer: str, expect: Sequence[Sequence[str]], forbid: Sequence[str]) -> bool:
    """Return whether an answer contains a word from every list in `expect` and none from `forbid`."""
    return all(any(contains(answer, word) for word in words) for words in expect) and not any(
        contains(answer, word) for word in forbid
    )


def contains(answer: str, word: str) -> bool:
    """Return whether an answer contains a word or phrase, ignoring case."""
    # Scripts without spaces have no word boundaries.
    edge = r"\b" if word.isascii() else ""
    return re.search(f"{edge}{re.escape(word.casefold())}{edge}", answer.casefold()) is not None
