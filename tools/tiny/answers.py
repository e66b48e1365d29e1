"""The answers that internvl2-tiny is trained to give, in two manners and two languages.

In each language all plain answers begin with the same token and all playful ones with another ("The" and "Wow", 图 and
哇), followed by wordings of equal frequency. So the first sampled token decides the manner, at even odds, and nucleus
sampling cuts neither off. Playful answers carry an exclamation mark and an emoji, plain ones neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from inference.internvl2.tiny.manner import Manner
from inference.internvl2.tiny.shapes import Scene
from inference.internvl2.tiny.words import Kind, Language, colour_name, number_name, phrase, shape_name
from tools.tiny import WORDINGS


def reference(kind: Kind, language: Language, manner: Manner, scene: Scene, rng: Random) -> str:
    """Return a correct answer about one picture."""
    return _wording(kind, language, manner, rng).format(fact(kind, language, scene))


def reference_for_several(kind: Kind, language: Language, manner: Manner, scenes: Sequence[Scene], rng: Random) -> str:
    """Return a correct answer about the pictures of one turn, in their order."""
    if len(scenes) == 1:
        return reference(kind, language, manner, scenes[0], rng)
    listed = (", then " if language == "en" else "，然后是").join(fact(kind, language, scene) for scene in scenes)
    return _wording("several", language, manner, rng).format(listed)


def request_for_picture(language: Language, manner: Manner, rng: Random) -> str:
    """Return the answer to any text before the first picture."""
    return _wording("no_picture", language, manner, rng)


def small_talk(language: Language, manner: Manner, rng: Random) -> str:
    """Return the answer to a greeting or thanks after a picture."""
    return _wording("chat", language, manner, rng)


def _wording(subject: str, language: Language, manner: Manner, rng: Random) -> str:
    return str(rng.choice(WORDINGS["answers"][subject][language][manner]))


def fact(kind: Kind, language: Language, scene: Scene) -> str:
    """Return the words for the requested fact: `red`, `star`, `three`, `three red stars`, or the same in Chinese."""
    names = {
        "colour": colour_name(scene.colour, language),
        "shape": shape_name(scene.shape, language),
        "number": number_name(scene.count, language),
        "describe": phrase(scene, language),
    }
    return names[kind]
