"""The wordings of questions: a grammar that trains internvl2-tiny, and sentences held out to examine it.

A wording is a template: `[a|b|]` stands for one of its alternatives, `{shape}` and its like for a fact of the
scene that people may already name when they ask for another. No sentence of `HELD_OUT` is ever produced by
`trained`. What is answered stands in `answers`. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import Final

from inference.internvl2.tiny.shapes import Scene
from inference.internvl2.tiny.wordings import BEFORE, BEHIND, EVERYDAY, OFF_TOPIC, SEE_EN, TRAINED
from inference.internvl2.tiny.words import Kind, Language, colour_name, number_name, plural, shape_name

DEFAULT_QUESTION: Final[dict[Language, str]] = {"en": "What is in this picture?", "zh": "这张图里有什么？"}
"""What a bare photo asks; held out from training like every sentence of `HELD_OUT`."""

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
"""Sentences for examinations and evaluations; `trained` never yields one of them."""

_CHOICE: Final = re.compile(r"\[([^\[\]]*)\]")


def trained(language: Language, kind: Kind, scene: Scene, rng: Random) -> str:
    """A wording of the training grammar, never one that is held out. `scene` lends names to the question."""
    while True:
        core = _fill(rng.choice(TRAINED[language, kind]), language, scene, rng)
        sentence = _spoken(core, language, rng)
        if _bare(sentence) not in _HELD_OUT_BARE:
            return sentence


def held_out(language: Language, kind: Kind, rng: Random) -> str:
    """A wording that training never used."""
    return rng.choice(HELD_OUT[language, kind])


def off_topic(language: Language, rng: Random) -> str:
    """Small talk: greetings, thanks, and questions about anything but a picture."""
    return _spoken(_expand(rng.choice(OFF_TOPIC[language]), rng), language, rng, plain=0.8)


def rambling(language: Language, rng: Random) -> str:
    """Any text people may send: words in no order, long ones too, other alphabets, figures, signs."""
    longest = rng.choice((3, 10, 40, 150, 400))
    draw = rng.random()
    if draw < 0.2:
        start = rng.choice((0x21, 0xC0, 0x370, 0x410, 0x5D0, 0x900, 0x3040, 0xAC00, 0x1F600))
        letters = [chr(start + rng.randrange(64)) for _ in range(rng.randint(2, min(longest, 60)))]
        return "".join(letter if rng.random() < 0.85 else " " for letter in letters)
    if draw < 0.3:
        return rng.choice(("", "?", "...", "/start", "1+1=?", "😀", "abc", "!!!", "42", "http://x.org/a?b=c", "？？"))
    words = [_word(language, rng) for _ in range(rng.randint(4, max(4, longest)))]
    if rng.random() < 0.3:
        words = words[:3] * (1 + len(words) // 3)
    return (" " if language == "en" or rng.random() < 0.2 else "").join(words)


def _word(language: Language, rng: Random) -> str:
    """A word that asks for nothing: small talk's, everyday's, or one that does not exist."""
    draw = rng.random()
    if draw < 0.3:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 9)))
    if draw < 0.6:
        return rng.choice(EVERYDAY[language])
    core = _expand(rng.choice(OFF_TOPIC[language]), rng)
    if language == "en":
        return rng.choice(core.split())
    start = rng.randrange(max(1, len(core) - 3))
    return core[start : start + rng.randint(1, 4)]


def _fill(template: str, language: Language, scene: Scene, rng: Random) -> str:
    names: Mapping[str, str] = {
        "colour": colour_name(scene.colour, language),
        "shape": shape_name(scene.shape, language),
        "shapes": plural(scene.shape, scene.count),
        "number": number_name(scene.count, language),
        "_see": _expand(SEE_EN, rng),
    }
    return " ".join(_expand(template, rng).format_map(names).split())


def _expand(template: str, rng: Random) -> str:
    """Replace every `[a|b]` by one of its alternatives, the innermost first."""
    while "[" in template:
        template = _CHOICE.sub(lambda found: rng.choice(found[1].split("|")), template)
    return template


def _spoken(core: str, language: Language, rng: Random, plain: float = 0.55) -> str:
    """The core as people write it: with or without politeness, capitals, punctuation, now and then a slip."""
    gap = " " if language == "en" else ""
    if rng.random() > plain:
        core = rng.choice(BEFORE[language]) + gap + core
    if rng.random() > plain + 0.2:
        core = core + gap + rng.choice(BEHIND[language])
    if language == "en" and rng.random() < 0.7:
        core = core[:1].upper() + core[1:]
    if language == "en" and "what is" in core.lower() and rng.random() < 0.3:
        core = core.replace("what is", "what's").replace("What is", "What's")
    if rng.random() < 0.12:
        core = _with_strangers(core, language, rng)
    if rng.random() < 0.04 and len(core) > 8:
        slip = rng.randrange(len(core))
        core = core[:slip] + core[slip + 1 :]
    if language == "en" and rng.random() < 0.02:
        core = core.upper()
    ends = ("?", "?", "?", "", ".", "??", "!") if language == "en" else ("？", "？", "？", "", "。", "?", "！")
    return core + rng.choice(ends)


def _with_strangers(core: str, language: Language, rng: Random) -> str:
    """The core with one to four words in it that change nothing."""
    gap = " " if language == "en" else ""
    words = core.split() if language == "en" else [core]
    for _ in range(rng.randint(1, 4)):
        words.insert(rng.randint(0, len(words)), _word(language, rng))
    return gap.join(words)


def _bare(sentence: str) -> str:
    return re.sub(r"\W", "", sentence).lower()


_HELD_OUT_BARE: Final = frozenset(_bare(sentence) for sentences in HELD_OUT.values() for sentence in sentences)
