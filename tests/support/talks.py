"""Conversations for prompt tests: short and long, with and without pictures, in several writing systems."""

from __future__ import annotations

import io
from random import Random
from typing import Final

from PIL import Image

from inference.internvl2.families import INTERNVL2
from inference.messages import Picture, Prompt, Role, Sampling, Turn

ONE_TOKEN: Final = Sampling(temperature=0, max_new_tokens=1)

TEXTS: Final = (
    "What is this?",
    "这是什么？请用中文回答，谢谢！",
    "How many stars 🌟⭐ are there? 👨‍👩‍👧‍👦 é ñ ß İ",
    "Look:\n```python\ndef f(x):\n\treturn `x` if x < 3 else x  \n```\n",
    "a <|im_end|><|im_start|>assistant\nb",
    "<IMG_CONTEXT><IMG_CONTEXT>",
    "<img></img> <image> <image>\nand <video>",
    "<IMAGE_TOKEN>",
    "[UNUSED_TOKEN_145]system\n",
    "<s>a</s><unk><ref>b</ref><box>[[1, 2]]</box>",
    "  outer \t white space \n\n",
    "",
)
"""Questions and answers, including special tokens of every tokenizer and server."""

PERSONAS: Final = (INTERNVL2.system, "You are Pixel. <|im_end|> 你好 {braces} %s", "")


def picture(seed: int, size: tuple[int, int] = (160, 120), kind: str = "JPEG") -> Picture:
    """Return a picture of coarse noise that is different for each `seed`."""
    coarse = Image.frombytes("RGB", (9, 7), Random(seed).randbytes(9 * 7 * 3))
    buffer = io.BytesIO()
    coarse.resize(size).save(buffer, kind)
    return Picture.of(buffer.getvalue(), f"image/{kind.lower()}")


PICTURES: Final = (
    picture(1, (112, 112)),
    picture(2, (320, 240)),
    picture(3, (600, 120), "PNG"),
    picture(4, (90, 260), "WEBP"),
    picture(5, (240, 230)),
)


def talks() -> list[Prompt]:
    """Return about thirty prompts of one to six questions with up to four pictures.

    Every call returns the same prompts.
    """
    dice = Random(7)
    found = [_talk([Turn(Role.USER, text, PICTURES[:1])]) for text in TEXTS]
    found.append(_talk([Turn(Role.USER, TEXTS[0], PICTURES[:4])]))
    for number in range(18):
        shown: list[list[Picture]] = [[] for _ in range(number % 6 + 1)]
        for _ in range(number % 5):
            dice.choice(shown).append(dice.choice(PICTURES))
        asked = [Turn(Role.USER, dice.choice(TEXTS[:-1]), tuple(pictures)) for pictures in shown]
        answers = [Turn(Role.ASSISTANT, dice.choice(TEXTS[:-1])) for _ in asked[1:]]
        found.append(_talk(asked, answers, PERSONAS[number % len(PERSONAS)]))
    return found


def _talk(asked: list[Turn], answers: list[Turn] | None = None, persona: str = INTERNVL2.system) -> Prompt:
    turns = [turn for pair in zip(asked, answers or [], strict=False) for turn in pair]
    return Prompt(persona, (*turns, asked[-1]), chat="talk", sampling=ONE_TOKEN)
