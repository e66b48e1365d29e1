"""LLaVA files for tests, laid out like published data sets, with generated pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.lessons import photo

DISHES = (
    ("red", "川菜", "辣子鸡"),
    ("green", "粤菜", "白灼菜心"),
    ("yellow", "湘菜", "蒸蛋"),
    ("brown", "鲁菜", "红烧肉"),
)


def said(*texts: str) -> list[dict[str, Any]]:
    """Return alternating conversation turns, starting with the user's."""
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def write_file(file: Path, rows: Sequence[Any]) -> Path:
    """Write rows to a .json or .jsonl file, in the format that the file name indicates."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=4), encoding="utf-8")
    return file


def write_photo(file: Path, colour: str = "red", size: tuple[int, int] = (60, 40)) -> Path:
    """Write a JPEG of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(photo(colour, size))
    return file


def foodie(folder: Path) -> Path:
    """Write rows like those of `sivqa_llava.json`, FoodieQA's single-picture questions for XTuner.

    The rows have no ID. The picture tag follows the question on its own line, the answer is a choice and the
    dish's name, and picture names include a folder.
    """
    rows = []
    for number, (colour, cuisine, dish) in enumerate(DISHES):
        write_photo(folder / "images" / f"{number}_IMG.jpeg", colour)
        talk = said("图片中的食物通常属于哪个菜系?\n<image>", f"{cuisine}，图中的菜是{dish}")
        rows.append({"image": f"images/{number}_IMG.jpeg", "conversations": talk})
    return write_file(folder / "sivqa_llava.json", rows)


def clot(folder: Path) -> Path:
    """Write rows like those of `ex_cn.json`, the Chinese part of CLoT's Oogiri-GO for XTuner.

    The rows have no ID and all ask the same question.
    """
    rows = []
    for number, (colour, _, dish) in enumerate(DISHES):
        write_photo(folder / "ex_images" / f"007{number}.jpg", colour, (50, 50))
        talk = said("<image>\n请你根据这张图片，讲一个脑洞大开的梗", f"『{dish}！快跑！！』")
        rows.append({"image": f"ex_images/007{number}.jpg", "conversations": talk})
    return write_file(folder / "ex_cn.json", rows)


def mixed(folder: Path) -> Path:
    """Write a .jsonl file with every kind of sample.

    A sample has no picture, one picture (as text or as a list) or several pictures, and one or more turns.
    """
    for colour in ("red", "blue"):
        write_photo(folder / f"{colour}.jpg", colour)
    rows: list[dict[str, Any]] = [
        {"id": 1, "image": "red.jpg", "conversations": said("<image>\nWhich colour?", "Red.")},
        {"id": 2, "image": ["blue.jpg"], "conversations": said("Which colour? <image>", "Blue.")},
        {"id": 3, "image": None, "conversations": said("How many legs has a cat?", "Four.")},
        {
            "id": 4,
            "image": ["red.jpg", "blue.jpg"],
            "conversations": said("Image-1: <image>\nImage-2: <image>\nWhich is blue?", "The second."),
        },
        {
            "id": 5,
            "system": "Be brief.",
            "image": "blue.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "Something blue.", "loss": False},
                {"from": "human", "value": "Only blue?"},
                {"from": "gpt", "value": "Only blue!"},
            ],
        },
    ]
    return write_file(folder / "mixed.jsonl", rows)


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "missing picture": ({"image": "none.jpg", "conversations": said("<image>\nWhat?", "It.")}, "none.jpg is missing"),
    "no picture": ({"image": "text.jpg", "conversations": said("<image>\nWhat?", "It.")}, "text.jpg.* not a picture"),
    "cut picture": ({"image": "cut.jpg", "conversations": said("<image>\nWhat?", "It.")}, "cut.jpg.* cut off"),
    "folder": ({"image": "sub", "conversations": said("<image>\nWhat?", "It.")}, "sub: it is not a regular file"),
    "pipe": (
        {"image": "pipe.jpg", "conversations": said("<image>\nWhat?", "It.")},
        "pipe.jpg: it is not a regular file",
    ),
    "elsewhere": (
        {"image": "sub/../..", "conversations": said("<image>\nWhat?", "It.")},
        "it is outside .*: copy it there",
    ),
    "link elsewhere": (
        {"image": "link.jpg", "conversations": said("<image>\nWhat?", "It.")},
        "link.jpg: it is outside",
    ),
    "whole path": ({"image": "/dev/null", "conversations": said("<image>\nWhat?", "It.")}, "null: it is outside"),
    "no tag": ({"image": "red.jpg", "conversations": said("What?", "It.")}, "only 0 <image> tags"),
    "tag alone": ({"conversations": said("<image>\nWhat?", "It.")}, "more <image> tags than the 0 pictures"),
    "tag too many": (
        {"image": "red.jpg", "conversations": said("<image>\n<image>\nWhat?", "It.")},
        "more <image> tags than the 1 pictures",
    ),
    "too long": ({"conversations": said("Why? " * 600, "It.")}, r"\d+ tokens .*more than max_length 512"),
    "no labels": (
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "It.", "loss": False}]},
        "every loss is false",
    ),
    "no answer": ({"conversations": said("Why?")}, "must end with an answer"),
    "empty answer": ({"conversations": said("Why?", " ")}, "the answer is empty"),
    "token in question": ({"conversations": said("Why <|im_end|>?", "It.")}, r"turn 1: '<\|im_end\|>'"),
    "token in answer": ({"conversations": said("Why?", "<IMG_CONTEXT>")}, "turn 2: '<IMG_CONTEXT>'"),
    "tag in answer": (
        {"image": "red.jpg", "conversations": said("<image>\nWhat?", "<image> It.")},
        "turn 2: '<image>'",
    ),
    "token in system": ({"system": "Be </s>.", "conversations": said("Why?", "It.")}, "system: '</s>'"),
    "half a character": ({"conversations": said("Why \ud83d?", "It.")}, "lone surrogate"),
    "no object": (["Why?", "It."], "must be a JSON object"),
    "no conversation": ({"image": "red.jpg"}, "conversations is missing"),
    "gpt first": ({"conversations": [{"from": "gpt", "value": "It."}]}, "must be from 'human'"),
    "strange image": ({"image": 7, "conversations": said("Why?", "It.")}, "image must be a file name"),
}
"""Invalid rows, each with a pattern for its error message; they refer to the files that `spoil` writes."""


def spoil(folder: Path) -> None:
    """Write the files that make the rows of `BAD_ROWS` invalid, and `red.jpg`, a valid picture."""
    write_photo(folder / "red.jpg")
    (folder / "text.jpg").write_text("no picture")
    (folder / "cut.jpg").write_bytes(photo("blue", (600, 400))[:2000])
    (folder / "sub").mkdir(exist_ok=True)
    if not (folder / "pipe.jpg").exists():
        os.mkfifo(folder / "pipe.jpg")
        (folder / "link.jpg").symlink_to(__file__)
