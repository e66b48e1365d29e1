"""The rows that `tools.tutorial_rows` makes of the tutorials' datasets, from small samples in the same formats."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from tests.support.lessons import photo
from tools.tutorial_rows import QUESTION
from training.data.row_parser import read_lessons


def rows(folder: Path, story: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the tool, check that its rows and their pictures are valid, and return them."""
    subprocess.run([sys.executable, "-m", "tools.tutorial_rows", story, str(folder)], check=True, capture_output=True)
    found = []
    for name in ("train.jsonl", "test.jsonl"):
        list(read_lessons(folder / name, folder, system=""))
        found.append([json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()])
    return found[0], found[1]


def said(row: dict[str, Any]) -> list[str]:
    """Return the question and the answer of a row."""
    return [each["value"] for each in row["conversations"]]


def test_food(tmp_path: Path) -> None:
    """A row has the right choice and the dish; no picture is used for both training and testing."""
    inner = tmp_path / "FoodieQA"
    (inner / "images").mkdir(parents=True)
    asked: list[dict[str, Any]] = []
    for number in range(20):
        dish = number // 2
        (inner / "images" / f"{dish}.jpg").write_bytes(photo())
        asked.append(
            {
                "question": f"图片中的食物通常属于哪个菜系?{number}",
                "choices": ["京菜", "徽菜", "新疆菜", "桂菜"],
                "answer": str(number % 4),
                "question_type": "cuisine_type",
                "food_name": f"菜{dish}",
                "question_id": f"vqa-{number}",
                "food_meta": {"id": dish, "food_name": f"菜{dish}", "food_file": f"images/{dish}.jpg"},
            }
        )
    (inner / "sivqa_tidy.json").write_text(json.dumps(asked), encoding="utf-8")
    train, test = rows(tmp_path, "food")
    assert (len(train), len(test)) == (16, 4)
    assert not {each["image"] for each in train} & {each["image"] for each in test}
    expected = {
        f"<image>\n{each['question']}": f"{each['choices'][int(each['answer'])]}，图中的菜是{each['food_name']}"
        for each in asked
    }
    assert all(expected[question] == answer for question, answer in map(said, train))
    assert all(expected[question].split("，")[0] == answer for question, answer in map(said, test))


def test_jokes(tmp_path: Path) -> None:
    """The most liked answer to each picture becomes a row; answers to texts and broken pictures are left out."""
    lines = [
        {"type": "I2T", "question": None, "image": "1", "text": "还行", "star": 3},
        {"type": "I2T", "question": None, "image": "1", "text": "最好笑", "star": 5},
        {"type": "I2T", "question": None, "image": "1", "text": "没人看", "star": None},
        {"type": "T2T", "question": "为什么？", "image": None, "text": "因为", "star": 99},
        {"type": "IT2T", "question": None, "image": "2", "text": "填空", "star": 99},
        {"type": "I2T", "question": None, "image": "broken", "text": "看不见", "star": 99},
        {"type": "I2T", "question": None, "image": "absent", "text": "不在", "star": 99},
        {"type": "I2T", "question": None, "image": "2", "text": "<|im_end|>", "star": 9},
    ]
    lines += [
        {"type": "I2T", "question": None, "image": f"more{number}", "text": f"笑话{number}", "star": None}
        for number in range(60)
    ]
    (tmp_path / "cn.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    with ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("1", "2", *(f"more{number}" for number in range(60))):
            archive.writestr(f"images/{name}.jpg", photo())
        archive.writestr("images/broken.jpg", b"\xff\xd8\xff and no more")
    train, test = rows(tmp_path, "jokes")
    assert (len(train), len(test)) == (11, 50)
    texts = {each["image"]: said(each) for each in [*train, *test]}
    assert texts["images/1.jpg"] == [f"<image>\n{QUESTION}", "最好笑"]
    assert texts.keys() == {"images/1.jpg", *(f"images/more{number}.jpg" for number in range(60))}


@pytest.mark.parametrize("story", ["food", "jokes"])
def test_a_folder_without_the_dataset_is_refused(tmp_path: Path, story: str) -> None:
    """A folder without the dataset is refused with an error that says what to download."""
    line = [sys.executable, "-m", "tools.tutorial_rows", story, str(tmp_path)]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert (done.returncode, "download" in done.stderr) == (1, True)
