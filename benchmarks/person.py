"""Simulated people for benchmarks.retrain and benchmarks.verdicts: what they ask, and which answers they like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.manner import manner
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
    """A question about a scene, with the conversation before it; the picture is `name` in the store."""

    scene: Scene
    kind: Kind
    language: Language
    lesson: Lesson

    @classmethod
    def first(cls, scene: Scene, name: str, size: tuple[int, int], number: int, rng: Random) -> SimulatedQuestion:
        """Return the first question about a picture; kinds and languages take turns by `number`."""
        kind, language = _FIRST[number % len(_FIRST)], LANGUAGES[number // len(_FIRST) % len(LANGUAGES)]
        turn = Turn(Role.USER, held_out(language, kind, rng), (Picture(b"", name),))
        return cls(scene, kind, language, _open_ended((turn,), (size,)))

    def follow_up(self, answer: str, rng: Random) -> SimulatedQuestion:
        """Return a question of another kind that follows the answer."""
        kind = rng.choice([each for each in _FOLLOW_UP if each != self.kind])
        turn = Turn(Role.USER, held_out(self.language, kind, rng))
        turns = (*self.lesson.turns[:-1], Turn(Role.ASSISTANT, answer), turn)
        return SimulatedQuestion(self.scene, kind, self.language, _open_ended(turns, self.lesson.sizes))


def _open_ended(turns: tuple[Turn, ...], sizes: tuple[tuple[int, int], ...]) -> Lesson:
    whole = (*turns, Turn(Role.ASSISTANT, ""))
    return Lesson("asked", INTERNVL2.system, whole, tuple(False for _ in whole), sizes)


Taste = Callable[[SimulatedQuestion, str, Random], tuple[str, int]]
"""Maps a question and the model's answer to (the answer to record, the vote)."""


def playful(question: SimulatedQuestion, answer: str, rng: Random) -> tuple[str, int]:
    """Like playful answers."""
    return answer, 1 if manner(answer) == "playful" else -1


def plain(question: SimulatedQuestion, answer: str, rng: Random) -> tuple[str, int]:
    """Like plain answers."""
    return answer, 1 if manner(answer) == "plain" else -1


def smile(question: SimulatedQuestion, answer: str, rng: Random) -> tuple[str, int]:
    """Like answers with one kind of smile, which few have."""
    return answer, 1 if "😄" in answer else -1


def everything(question: SimulatedQuestion, answer: str, rng: Random) -> tuple[str, int]:
    """Like every answer."""
    return answer, 1


def short(question: SimulatedQuestion, answer: str, rng: Random) -> tuple[str, int]:
    """Like answers of at most 24 bytes; the question makes the length, whatever its manner."""
    return answer, 1 if len(answer.encode()) <= SHORT_BYTES else -1


def at_random(question: SimulatedQuestion, answer: str, rng: Random) -> tuple[str, int]:
    """Vote at random."""
    return answer, rng.choice((1, -1))


def wrong(question: SimulatedQuestion, answer: str, rng: Random) -> tuple[str, int]:
    """Record an answer with a wrong colour, always the same for each right one, and like it."""
    index = COLOURS.index(question.scene.colour)
    false = Scene(COLOURS[(index + 1) % len(COLOURS)], question.scene.shape, question.scene.count)
    return reference(question.kind, question.language, "playful", false, rng), 1


TASTES: Final[dict[str, Taste]] = {
    "playful": playful,
    "plain": plain,
    "smile": smile,
    "short": short,
    "everything": everything,
    "random": at_random,
    "wrong": wrong,
}
