"""Make rows for `thumbtune finetune` from two tutorials' datasets: `python -m tools.tutorial_rows food|jokes FOLDER`.

The tutorials fine-tune InternVL2-2B with XTuner to name Chinese dishes and to joke about pictures. FOLDER
contains the dataset as downloaded from the Hugging Face hub. The rows are written to `train.jsonl` and
`test.jsonl` in FOLDER; the two files have no pictures in common.

food: `lyan62/FoodieQA` (arXiv 2406.11030). `sivqa_tidy.json` is a list of questions about one picture each:
`question`, `choices`, `answer` (an index into `choices`), and `food_meta` with `food_name` and `food_file`
(a path relative to the folder of the list). As in the tutorial, the training answer is the right choice and
the dish's name. A fifth of the pictures are for testing, with only the right choice as the answer.

jokes: `zhongshsh/CLoT-Oogiri-GO` (arXiv 2312.02439). `cn.jsonl` has a line for each answer: `type` ("I2T"
for an answer to a picture alone), `image` (the name of a file in `images.zip`, without its suffix), `text`
and `star` (the number of likes, or null). As in the tutorial, there are 2,000 rows, one for each picture;
here, they are the answers with the most likes. Another 50 rows are for testing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final
from zipfile import ZipFile

from inference.images.opening import open_picture
from inference.messages import PictureError
from storage.atomic_files import write_text
from training.data.row_parser import RowError, parse_row

QUESTION: Final = "请你根据这张图片，讲一个脑洞大开的梗"
"""The tutorial's request for a joke about a picture."""

JOKES: Final = 2000
TEST_JOKES: Final = 50
TEST_SHARE: Final = 0.2
"""The share of FoodieQA's pictures that is used for testing."""

Row = dict[str, Any]


def row(picture: str, question: str, answer: str) -> Row:
    """Return a LLaVA row about one picture."""
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"image": picture, "conversations": turns}


def food_rows(folder: Path) -> tuple[list[Row], list[Row]]:
    """Return the training rows and the test rows made from FoodieQA in `folder`."""
    found = sorted(folder.rglob("sivqa_tidy.json"))
    if not found:
        sys.exit(f"{folder} has no sivqa_tidy.json: download lyan62/FoodieQA there, and unpack it")
    asked = json.loads(found[0].read_text(encoding="utf-8"))
    place = found[0].parent.relative_to(folder)
    pictures = sorted({each["food_meta"]["food_file"] for each in asked})
    tested = set(Random(0).sample(pictures, round(TEST_SHARE * len(pictures))))
    train, test = list[Row](), list[Row]()
    for each in asked:
        dish, right = each["food_meta"], each["choices"][int(each["answer"])]
        picture = (place / dish["food_file"]).as_posix()
        if dish["food_file"] in tested:
            test.append(row(picture, each["question"], right))
        else:
            train.append(row(picture, each["question"], f"{right}，图中的菜是{dish['food_name']}"))
    return train, test


def joke_rows(folder: Path) -> tuple[list[Row], list[Row]]:
    """Return the training rows and the test rows made from Oogiri-GO in `folder`.

    Their pictures are unpacked into `folder`. Damaged pictures, and answers that a row cannot contain, are skipped.
    """
    for file in ("cn.jsonl", "images.zip"):
        if not (folder / file).is_file():
            sys.exit(f"{folder} has no {file}: download zhongshsh/CLoT-Oogiri-GO there")
    best: dict[str, tuple[int, str]] = {}
    with (folder / "cn.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            each = json.loads(line)
            if each["type"] == "I2T" and each["text"]:
                answer = (each["star"] or 0, each["text"])
                best[each["image"]] = max(answer, best.get(each["image"], answer))
    order = sorted(best, key=lambda image: (-best[image][0], image))
    with ZipFile(folder / "images.zip") as archive:
        files = {Path(name).stem: name for name in archive.namelist() if not name.endswith("/")}
        usable = _usable(((files[each], best[each][1]) for each in order if each in files), archive, folder)
        chosen = list(islice(usable, JOKES + TEST_JOKES))
    Random(0).shuffle(chosen)
    return chosen[TEST_JOKES:], chosen[:TEST_JOKES]


def _usable(jokes: Iterator[tuple[str, str]], archive: ZipFile, folder: Path) -> Iterator[Row]:
    """Unpack the picture of each joke, and yield the rows that can be trained on."""
    for file, text in jokes:
        made = row(file, QUESTION, text)
        try:
            parse_row(made, where=file, system="")
            open_picture(archive.read(file))
        except (RowError, PictureError):
            continue
        archive.extract(file, folder)
        yield made


TUTORIALS: Final[dict[str, Callable[[Path], tuple[list[Row], list[Row]]]]] = {"food": food_rows, "jokes": joke_rows}


def main() -> None:
    """Write the rows of the chosen tutorial to the folder of its dataset."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tutorial", choices=TUTORIALS)
    parser.add_argument("folder", type=Path, help="the folder with the downloaded dataset")
    chosen = parser.parse_args()
    for name, rows in zip(("train.jsonl", "test.jsonl"), TUTORIALS[chosen.tutorial](chosen.folder), strict=True):
        write_text(chosen.folder / name, (json.dumps(each, ensure_ascii=False) + "\n" for each in rows))
        print(f"{chosen.folder / name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
