"""The random conversations that train internvl2-tiny, with scenes, questions, follow-ups and answers.

Conversations vary in their number of turns, the number and timing of their pictures, language, small
talk, text before any picture, and personas. Each answer is plain or playful with equal probability,
independently of everything else, so that nothing in the conversation predicts which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny.answer_checks import MANNERS
from inference.internvl2.tiny.shapes import Scene, random_scene
from inference.internvl2.tiny.words import KINDS, LANGUAGES, Language
from inference.messages import Picture, Prompt, Role, Turn
from tools.tiny import WORDINGS
from tools.tiny.answers import reference_for_several, request_for_picture, small_talk
from tools.tiny.training_questions import off_topic, rambling, trained

Length = Literal["short", "medium", "long"]

TURNS: Final[dict[Length, tuple[int, int]]] = {"short": (1, 2), "medium": (3, 5), "long": (6, 15)}
"""The minimum and maximum number of questions in a conversation, by length class."""

_NO_PICTURE_YET: Final = 0.08
_SEVERAL_PICTURES: Final = 0.08
_SMALL_TALK: Final = 0.06
_RAMBLING: Final = 0.05
_OTHER_LANGUAGE: Final = 0.15


@dataclass(frozen=True, slots=True)
class TrainingConversation:
    """A conversation for training.

    Attributes:
        prompt: The conversation up to and including the last question. Its pictures are empty, because only
            their positions matter.
        answer: The answer to the last question.
        scenes: The scenes of all pictures, in order.
    """

    prompt: Prompt
    answer: str
    scenes: tuple[Scene, ...]


def converse(length: Length, rng: Random) -> TrainingConversation:
    """Return a random conversation of the given length class."""
    language: Language = rng.choice(LANGUAGES)
    changes = rng.choice((0.1, 0.4, 0.9))
    before_pictures = rng.random() < _NO_PICTURE_YET
    seen: tuple[Scene, ...] = ()
    scenes: list[Scene] = []
    turns: list[Turn] = []
    answer = ""
    for index in range(rng.randint(*TURNS[length])):
        if index:
            turns.append(Turn(Role.ASSISTANT, answer))
        fresh: tuple[Scene, ...] = ()
        if (index == 0 and not before_pictures) or (index > 0 and rng.random() < changes):
            fresh = tuple(
                random_scene(rng) for _ in range(rng.randint(2, 3) if rng.random() < _SEVERAL_PICTURES else 1)
            )
            seen = fresh
            scenes += fresh
        spoken = language if rng.random() > _OTHER_LANGUAGE else rng.choice(LANGUAGES)
        text, answer = _exchange(seen, bool(fresh), spoken, rng)
        turns.append(Turn(Role.USER, text, tuple(Picture(b"", "") for _ in fresh)))
    return TrainingConversation(Prompt(_persona(rng), tuple(turns), chat=""), answer, tuple(scenes))


def _exchange(seen: Sequence[Scene], fresh: bool, language: Language, rng: Random) -> tuple[str, str]:
    """Return a random question and its answer, given `seen`, the scenes of the latest pictures.

    If `fresh` is true, these pictures are sent with the question. Text that is not a question about the
    pictures is answered with a description if they are fresh, and with small talk otherwise. If `seen` is
    empty, the answer asks for a picture.
    """
    manner = rng.choice(MANNERS)
    kind = rng.choice(KINDS)
    draw = rng.random()
    chatting = draw < (0.25 if not seen else _SMALL_TALK)
    if chatting:
        question = off_topic(language, rng)
    elif draw > 1 - (0.4 if not seen else _RAMBLING):
        chatting, question = True, rambling(language, rng)
    else:
        question = trained(language, kind, (seen or [random_scene(rng)])[-1], rng)
    if not seen:
        return question, request_for_picture(language, manner, rng)
    if chatting and not fresh:
        return question, small_talk(language, manner, rng)
    return question, reference_for_several("describe" if chatting else kind, language, manner, seen, rng)


def _persona(rng: Random) -> str:
    """Return a system prompt: the official one (half of the time), an empty one, or a random persona."""
    draw = rng.random()
    if draw < 0.5:
        return INTERNVL2.system
    if draw < 0.6:
        return ""
    texts: dict[str, list[str]] = WORDINGS["personas"]
    who = rng.choice(texts["who"]).format(name=rng.choice(texts["names"]), kind=rng.choice(texts["kinds"]))
    style = rng.sample(texts["style"], rng.randint(0, 3))
    return rng.choice((" ", "\n")).join([who, *style] if rng.random() < 0.8 else [*style, who])
