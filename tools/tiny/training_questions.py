"""The questions that train internvl2-tiny: a grammar of wordings, small talk and arbitrary text.

The wordings are in wordings.toml. `[a|b|]` stands for one of `a`, `b` and the empty text. `{shape}` and
similar placeholders stand for facts about the scene: a question about the colour, for example, may mention
the shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from string import Template
from typing import Final

from inference.internvl2.tiny.held_out_questions import HELD_OUT
from inference.internvl2.tiny.shapes import Scene
from inference.internvl2.tiny.words import Kind, Language, colour_name, number_name, plural, shape_name
from tools.tiny import WORDINGS

_CHOICE: Final = re.compile(r"\[([^\[\]]*)\]")


def trained(language: Language, kind: Kind, scene: Scene, rng: Random) -> str:
    """Return a random question from the training templates, never a held-out one.

    The question may mention facts about `scene`.
    """
    while True:
        core = _fill(rng.choice(WORDINGS["trained"][language][kind]), language, scene, rng)
        sentence = _varied(core, language, rng)
        if _bare(sentence) not in _HELD_OUT_BARE:
            return sentence


def off_topic(language: Language, rng: Random) -> str:
    """Return small talk: greetings, thanks, and questions about anything but a picture."""
    return _varied(_expand(rng.choice(WORDINGS["off_topic"][language]), rng), language, rng, plain=0.8)


def rambling(language: Language, rng: Random) -> str:
    """Return arbitrary text: few or many words in random order, other alphabets, digits or symbols."""
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
    """Return a random filler word: one from small talk, an everyday word, or an invented one."""
    draw = rng.random()
    if draw < 0.3:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 9)))
    if draw < 0.6:
        return str(rng.choice(WORDINGS["everyday"][language]))
    core = _expand(rng.choice(WORDINGS["off_topic"][language]), rng)
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
        "_see": _expand(WORDINGS["parts"]["en"]["see"], rng),
    }
    template = Template(template).substitute(WORDINGS["parts"][language])
    return " ".join(_expand(template, rng).format_map(names).split())


def _expand(template: str, rng: Random) -> str:
    """Replace every `[a|b]` with one of its alternatives at random, starting with the innermost brackets."""
    while "[" in template:
        template = _CHOICE.sub(lambda found: rng.choice(found[1].split("|")), template)
    return template


def _varied(core: str, language: Language, rng: Random, plain: float = 0.55) -> str:
    """Vary a sentence as users do, in politeness, capitals, punctuation and the occasional typo.

    The higher `plain` is, the less often phrases are added before or after the sentence.
    """
    gap = " " if language == "en" else ""
    if rng.random() > plain:
        core = rng.choice(WORDINGS["before"][language]) + gap + core
    if rng.random() > plain + 0.2:
        core = core + gap + rng.choice(WORDINGS["behind"][language])
    if language == "en" and rng.random() < 0.7:
        core = core[:1].upper() + core[1:]
    if language == "en" and "what is" in core.lower() and rng.random() < 0.3:
        core = core.replace("what is", "what's").replace("What is", "What's")
    if rng.random() < 0.12:
        core = _with_extra_words(core, language, rng)
    if rng.random() < 0.04 and len(core) > 8:
        slip = rng.randrange(len(core))
        core = core[:slip] + core[slip + 1 :]
    if language == "en" and rng.random() < 0.02:
        core = core.upper()
    ends = ("?", "?", "?", "", ".", "??", "!") if language == "en" else ("？", "？", "？", "", "。", "?", "！")
    return core + rng.choice(ends)


def _with_extra_words(core: str, language: Language, rng: Random) -> str:
    """Insert one to four filler words that do not change the meaning of the sentence."""
    gap = " " if language == "en" else ""
    words = core.split() if language == "en" else [core]
    for _ in range(rng.randint(1, 4)):
        words.insert(rng.randint(0, len(words)), _word(language, rng))
    return gap.join(words)


def _bare(sentence: str) -> str:
    return re.sub(r"\W", "", sentence).lower()


_HELD_OUT_BARE: Final = frozenset(_bare(sentence) for sentences in HELD_OUT.values() for sentence in sentences)
