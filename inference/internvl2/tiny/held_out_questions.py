"""Questions for demos and evaluations of internvl2-tiny, never used in its training."""

from __future__ import annotations

from random import Random
from typing import Final

from inference.internvl2.tiny.words import Kind, Language

DEFAULT_QUESTION: Final[dict[Language, str]] = {"en": "What is in this picture?", "zh": "这张图里有什么？"}
"""The question asked about a photo without a caption. Like all of `HELD_OUT`, it is never used in training."""

HELD_OUT: Final[dict[tuple[Language, Kind], tuple[str, ...]]] = {
    ("en", "colour"): (
        "What colour do the shapes in this picture have?",
        "Could you please say which color was chosen here?",
        "Looking at the picture, what colour stands out?",
        "What would you call the colour of these?",
        "The shapes: what is their colour?",
        "Which of the colours did the painter use?",
    ),
    ("en", "shape"): (
        "What shape do the objects in this picture have?",
        "Could you please say which shape was chosen here?",
        "Looking at the picture, what shape stands out?",
        "What would you call the shape of these?",
        "The objects: what is their shape?",
        "Which of the shapes did the painter draw?",
    ),
    ("en", "number"): (
        "How many of these does this picture show?",
        "Could you please count everything that was drawn here?",
        "Looking at the picture, how many are there in total?",
        "What is the exact number of the things you see?",
        "The objects: how many of them are there?",
        "How many did the painter draw?",
    ),
    ("en", "describe"): (
        DEFAULT_QUESTION["en"],
        "Please describe this picture.",
        "What can be seen in this picture?",
        "Tell me what you see in this picture.",
        "Could you describe the image for me?",
        "What did the painter draw?",
    ),
    ("zh", "colour"): (
        "请问这张图里的图形是什么颜色的？",
        "你能说出图中用的是哪一种颜色吗？",
        "看一看，它们都是什么颜色呢？",
        "画画的人选了什么颜色？",
        "这些图案属于哪种颜色？",
        "麻烦看下颜色是哪个。",
    ),
    ("zh", "shape"): (
        "请问这张图里的东西是什么形状的？",
        "你能说出图中画的是哪一种形状吗？",
        "看一看，它们都是什么形状呢？",
        "画画的人选了什么形状？",
        "这些图案属于哪种形状？",
        "麻烦看下形状是哪个。",
    ),
    ("zh", "number"): (
        "请问这张图里的图形有多少个？",
        "你能数出图中一共画了几个吗？",
        "看一看，它们总共有几个呢？",
        "画画的人画了多少个？",
        "这些图案的数量到底是多少？",
        "麻烦看下有几个。",
    ),
    ("zh", "describe"): (
        DEFAULT_QUESTION["zh"],
        "请描述这张图片。",
        "这张图片里能看到什么？",
        "请告诉我你在图里看到了什么。",
        "可以帮我描述一下这张图吗？",
        "画画的人画了什么？",
    ),
}
"""The questions, by language and kind. `tools.tiny.training_questions` never produces one of them."""


def held_out(language: Language, kind: Kind, rng: Random) -> str:
    """Return a random question of the given language and kind from `HELD_OUT`."""
    return rng.choice(HELD_OUT[language, kind])
