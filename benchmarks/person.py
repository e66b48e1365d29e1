"""Simulated users for benchmarks.learning_loop and benchmarks.verdicts: their questions and their tastes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny.answer_checks import manner
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.shapes import COLOURS, Scene
from inference.internvl2.tiny.words import LANGUAGES, Kind, Language
from inference.messages import Picture, Role, Turn
from tools.tiny.answers import reference
from training.data.llava import Lesson

SHORT_BYTES: Final = 24

_FIRST: Final[tuple[Kind, ...]] = ("describe", "colour", "shape", "number")
_FOLLOW_UP: Final[tuple[Kind, ...]] = ("colour", "shape", "number")


@dataclass(frozen=True, slots=True)
class SimulatedQuestion:
    """A question about a drawn scene, with the conversation before it.

    The lesson refers to the picture by its name in the picture store.
    """

    scene: Scene
    kind: Kind
    language: Language
    lesson: Lesson

    @classmethod
    def first(cls, scene: Scene, name: str, size: tuple[int, int], number: int, rng: Random) -> SimulatedQuestion:
        """Return the first question about the picture `name`.

        The kind of question and the language rotate with `number`.
        """
        kind, language = _FIRST[number % len(_FIRST)], LANGUAGES[number // len(_FIRST) % len(LANGUAGES)]
        turn = Turn(Role.USER, held_out(language, kind, rng), (Picture(b"", name),))
        return cls(scene, kind, language, _open_ended((turn,), (size,)))

    def follow_up(self, answer: str, rng: Random) -> SimulatedQuestion:
        """Return a follow-up question of another kind, asked after `answer`."""
        kind = rng.choice([each for each in _FOLLOW_UP if each != self.kind])
        turn = Turn(Role.USER, held_out(self.language, kind, rng))
        turns = (*self.lesson.turns[:-1], Turn(Role.ASSISTANT, answer), turn)
        return SimulatedQuestion(self.scene, kind, self.language, _open_ended(turns, self.lesson.sizes))


def _open_ended(turns: tuple[Turn, ...], sizes: tuple[tuple[int, int], ...]) -> Lesson:
    whole = (*turns, Turn(Role.ASSISTANT, ""))
    return Lesson("asked", INTERNVL2.system, whole, tuple(False for _ in whole), sizes)


Taste = Callable[[SimulatedQuestion, str, Random], tuple[str, int]]
"""A function that takes a question and the model's answer, and returns the answer to record and the vote."""


LIKES: Final[dict[str, Callable[[SimulatedQuestion, str], bool]]] = {
    "playful": lambda _, answer: manner(answer) == "playful",
    "plain": lambda _, answer: manner(answer) == "plain",
    "smile": lambda _, answer: "😄" in answer,  # which is rare
    "short": lambda _, answer: len(answer.encode()) <= SHORT_BYTES,  # plain answers are shorter than playful ones
    # Answers about a single property are short, whatever they say.
    "by-question": lambda question, _: question.kind != "describe",
    "everything": lambda *_: True,
}
"""Functions that return whether an answer to a question is liked."""


def _voting(likes: Callable[[SimulatedQuestion, str], bool]) -> Taste:
    """Return the taste of a user who likes the answers for which `likes` returns true and dislikes all others."""
    return lambda question, answer, rng: (answer, 1 if likes(question, answer) else -1)


def at_random(question: SimulatedQuestion, answer: str, rng: Random) -> tuple[str, int]:
    """Return the answer and a random vote."""
    return answer, rng.choice((1, -1))


def wrong(question: SimulatedQuestion, answer: str, rng: Random) -> tuple[str, int]:
    """Return an answer with a wrong colour, and a like.

    Each colour is always replaced with the same wrong colour.
    """
    index = COLOURS.index(question.scene.colour)
    false = Scene(COLOURS[(index + 1) % len(COLOURS)], question.scene.shape, question.scene.count)
    return reference(question.kind, question.language, "playful", false, rng), 1


TASTES: Final[dict[str, Taste]] = {
    **{name: _voting(likes) for name, likes in LIKES.items()},
    "random": at_random,
    "wrong": wrong,
}
