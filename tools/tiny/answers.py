"""The answers that internvl2-tiny is trained to give, plain and playful, in English and Chinese.

In each language, every plain answer begins with one token and every playful answer with another ("The"
and "Wow", 图 and 哇); the wordings that follow are equally frequent. The first sampled token therefore
decides, with equal probability, whether an answer is plain or playful, and nucleus sampling excludes neither. Playful
answers contain an exclamation mark and an emoji; plain answers contain neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from inference.internvl2.tiny.answer_checks import Manner
from inference.internvl2.tiny.shapes import Scene
from inference.internvl2.tiny.words import Kind, Language, colour_name, number_name, phrase, shape_name
from tools.tiny import WORDINGS


def reference(kind: Kind, language: Language, manner: Manner, scene: Scene, rng: Random) -> str:
    """Return a correct answer to a question of `kind` about one picture, in a random wording."""
    return _wording(kind, language, manner, rng).format(fact(kind, language, scene))


def reference_for_several(kind: Kind, language: Language, manner: Manner, scenes: Sequence[Scene], rng: Random) -> str:
    """Return a correct answer to a question of `kind` about the pictures of one turn, in order."""
    if len(scenes) == 1:
        return reference(kind, language, manner, scenes[0], rng)
    listed = (", then " if language == "en" else "，然后是").join(fact(kind, language, scene) for scene in scenes)
    return _wording("several", language, manner, rng).format(listed)


def request_for_picture(language: Language, manner: Manner, rng: Random) -> str:
    """Return a request for a picture, which answers any text before the first picture."""
    return _wording("no_picture", language, manner, rng)


def small_talk(language: Language, manner: Manner, rng: Random) -> str:
    """Return the answer to small talk, such as a greeting or thanks, after a picture."""
    return _wording("chat", language, manner, rng)


def _wording(subject: str, language: Language, manner: Manner, rng: Random) -> str:
    return str(rng.choice(WORDINGS["answers"][subject][language][manner]))


def fact(kind: Kind, language: Language, scene: Scene) -> str:
    """Return the words for a fact of the given kind about a scene, in English or Chinese.

    English examples are `red`, `star`, `three` and `three red stars`.
    """
    names = {
        "colour": colour_name(scene.colour, language),
        "shape": shape_name(scene.shape, language),
        "number": number_name(scene.count, language),
        "describe": phrase(scene, language),
    }
    return names[kind]
