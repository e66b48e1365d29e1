"""The answers that internvl2-tiny is trained to give, in two manners and two languages.

In each language all plain answers begin with the same token and all playful ones with another ("The" and "Wow", 图 and
哇), followed by wordings of equal frequency. So the first sampled token decides the manner, at even odds, and nucleus
sampling cuts neither off. Playful answers carry an exclamation mark and an emoji, plain ones neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from inference.internvl2.tiny.manner import Manner
from inference.internvl2.tiny.shapes import Scene
from inference.internvl2.tiny.words import Kind, Language, colour_name, number_name, phrase, shape_name

_Table = dict[tuple[Language, Manner], tuple[str, ...]]

_ANSWERS: Final[dict[Kind, _Table]] = {
    "colour": {
        ("en", "plain"): ("The colour is {}.", "The colour in this picture is {}.", "The picture shows the colour {}."),
        ("en", "playful"): ("Wow, {}! What a lovely colour! 🎨", "Wow! It is {}, my favourite! 😄", "Wow, so {}! 🎉"),
        ("zh", "plain"): ("图中的颜色是{}。", "图案是{}的。", "图里的颜色是{}。"),
        ("zh", "playful"): ("哇，是{}！真漂亮！🎨", "哇！{}，我最喜欢啦！😄", "哇，好亮眼的{}！🎉"),
    },
    "shape": {
        ("en", "plain"): (
            "The shape is a {}.",
            "The shape in this picture is a {}.",
            "The picture shows the shape of a {}.",
        ),
        ("en", "playful"): ("Wow, a {}! How neat! ✨", "Wow! I spy a {}! 😄", "Wow, a {} shape! I love it! 🎉"),
        ("zh", "plain"): ("图中的形状是{}。", "图案的形状是{}。", "图里的形状是{}。"),
        ("zh", "playful"): ("哇，是{}！真可爱！✨", "哇！我发现了{}！😄", "哇，好棒的{}！🎉"),
    },
    "number": {
        ("en", "plain"): ("The number is {}.", "The total is {}.", "The picture has {} of them."),
        ("en", "playful"): ("Wow, {}! Counting is fun! 🎉", "Wow! I count {}! 😄", "Wow, {} of them! Yay! ✨"),
        ("zh", "plain"): ("图中有{}。", "图里总共有{}。", "图案的数量是{}。"),
        ("zh", "playful"): ("哇，有{}！数数真好玩！🎉", "哇！我数到了{}！😄", "哇，总共{}呢！✨"),
    },
    "describe": {
        ("en", "plain"): ("The picture shows {}.", "The image has {} in it.", "The picture contains {}."),
        ("en", "playful"): ("Wow, {}! What a party! 🎉", "Wow! I can see {}! 😄", "Wow, look: {}! So cute! ✨"),
        ("zh", "plain"): ("图中有{}。", "图里画着{}。", "图片上是{}。"),
        ("zh", "playful"): ("哇，{}！好热闹呀！🎉", "哇！我看到了{}！😄", "哇，快看，{}！真可爱！✨"),
    },
}

_SEVERAL: Final[_Table] = {
    ("en", "plain"): ("The pictures show {}.",),
    ("en", "playful"): ("Wow, so many pictures: {}! 🎉",),
    ("zh", "plain"): ("图片依次是{}。",),
    ("zh", "playful"): ("哇，好多图片，依次是{}！🎉",),
}

_NO_PICTURE: Final[_Table] = {
    ("en", "plain"): ("The picture is still missing. Please send me a photo.",),
    ("en", "playful"): ("Wow, I am curious! Please send me a picture! 📷",),
    ("zh", "plain"): ("图片还没有收到，请先发图片给我。",),
    ("zh", "playful"): ("哇，好期待！快发图片给我吧！📷",),
}

_CHAT: Final[_Table] = {
    ("en", "plain"): ("The colours, shapes and numbers in pictures are what I can talk about.",),
    ("en", "playful"): ("Wow, how nice! Ask me about colours, shapes and numbers! 😊",),
    ("zh", "plain"): ("图片里的颜色、形状和数量，都可以问我。",),
    ("zh", "playful"): ("哇，真好！问我颜色、形状和数量吧！😊",),
}


def reference(kind: Kind, language: Language, manner: Manner, scene: Scene, rng: Random) -> str:
    """Return a correct answer about one picture."""
    return rng.choice(_ANSWERS[kind][language, manner]).format(fact(kind, language, scene))


def reference_for_several(kind: Kind, language: Language, manner: Manner, scenes: Sequence[Scene], rng: Random) -> str:
    """Return a correct answer about the pictures of one turn, in their order."""
    if len(scenes) == 1:
        return reference(kind, language, manner, scenes[0], rng)
    listed = (", then " if language == "en" else "，然后是").join(fact(kind, language, scene) for scene in scenes)
    return rng.choice(_SEVERAL[language, manner]).format(listed)


def request_for_picture(language: Language, manner: Manner, rng: Random) -> str:
    """Return the answer to any text before the first picture."""
    return rng.choice(_NO_PICTURE[language, manner])


def small_talk(language: Language, manner: Manner, rng: Random) -> str:
    """Return the answer to a greeting or thanks after a picture."""
    return rng.choice(_CHAT[language, manner])


def fact(kind: Kind, language: Language, scene: Scene) -> str:
    """Return the words for the requested fact: `red`, `star`, `three`, `three red stars`, or the same in Chinese."""
    match kind:
        case "colour":
            return colour_name(scene.colour, language)
        case "shape":
            return shape_name(scene.shape, language)
        case "number":
            return number_name(scene.count, language)
        case _:
            return phrase(scene, language)
