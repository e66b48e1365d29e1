"""A made-up person: what they ask about a picture, and which answers they like.

Knows the questions' kinds, languages and held-out wordings, and that a vote may need the scene that was drawn. Who
answers, and where votes go, is retrain.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from inference.chat_format.template import SYSTEM
from inference.internvl2.tiny.manner import manner
from inference.internvl2.tiny.questions import held_out
from inference.internvl2.tiny.shapes import COLOURS, Scene
from inference.internvl2.tiny.words import LANGUAGES, Kind, Language
from inference.messages import Picture, Role, Turn
from tools.tiny.answers import reference
from training.data.llava import Lesson

_FIRST: Final[tuple[Kind, ...]] = ("describe", "colour", "shape", "number")
_FOLLOW_UP: Final[tuple[Kind, ...]] = ("colour", "shape", "number")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a scene, with the conversation before it; the picture lies under `name` in the store."""

    scene: Scene
    kind: Kind
    language: Language
    lesson: Lesson

    @classmethod
    def first(cls, scene: Scene, name: str, size: tuple[int, int], number: int, rng: Random) -> Asked:
        """The first question about a picture; kinds and languages take turns by `number`."""
        kind, language = _FIRST[number % len(_FIRST)], LANGUAGES[number // len(_FIRST) % len(LANGUAGES)]
        turn = Turn(Role.USER, held_out(language, kind, rng), (Picture(b"", name),))
        return cls(scene, kind, language, _open_ended((turn,), (size,)))

    def follow_up(self, answer: str, rng: Random) -> Asked:
        """Another question after the answer, of another kind."""
        kind = rng.choice([each for each in _FOLLOW_UP if each != self.kind])
        turn = Turn(Role.USER, held_out(self.language, kind, rng))
        turns = (*self.lesson.turns[:-1], Turn(Role.ASSISTANT, answer), turn)
        return Asked(self.scene, kind, self.language, _open_ended(turns, self.lesson.sizes))


def _open_ended(turns: tuple[Turn, ...], sizes: tuple[tuple[int, int], ...]) -> Lesson:
    whole = (*turns, Turn(Role.ASSISTANT, ""))
    return Lesson("asked", SYSTEM, whole, tuple(False for _ in whole), sizes)


Taste = Callable[[Asked, str, Random], tuple[str, int]]
"""From a question and the model's answer to (the answer as it is recorded, the vote)."""


def playful(asked: Asked, answer: str, rng: Random) -> tuple[str, int]:
    """Likes what is playful."""
    return answer, 1 if manner(answer) == "playful" else -1


def at_random(asked: Asked, answer: str, rng: Random) -> tuple[str, int]:
    """Votes by the toss of a coin."""
    return answer, rng.choice((1, -1))


def wrong(asked: Asked, answer: str, rng: Random) -> tuple[str, int]:
    """Is told another colour than the right one, always the same for each, and likes it."""
    place = COLOURS.index(asked.scene.colour)
    false = Scene(COLOURS[(place + 1) % len(COLOURS)], asked.scene.shape, asked.scene.count)
    return reference(asked.kind, asked.language, "playful", false, rng), 1


TASTES: Final[dict[str, Taste]] = {"playful": playful, "random": at_random, "wrong": wrong}
