"""`thumbtune evaluate` scores models on questions with known answers, without a running bot."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.samples import sample_pictures
from tests.support.bot_process import write_config
from training.command_jobs import ScoringMethod
from training.evidence.score_summary import summarize
from training.gate.score_known_answers import is_choice, is_contained, is_equal

SQUARE = "one-green-square"


def row(question: str, right: str) -> dict[str, object]:
    """Return a row of a LLaVA file with a question about the picture a.jpg."""
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": right}]
    return {"image": "a.jpg", "conversations": turns}


async def evaluate(folder: Path, *options: str, python: str = "") -> tuple[int, str]:
    """Run the command in `folder` with the worker's interpreter `python`, and return its exit code and output."""
    write_config(
        folder / "config.toml",
        {
            "storage": {"dir": str(folder / "data")},
            "training": {"device": "cpu", "threads": 1, "python": python},
            "chat": {"max_new_tokens": 24},
        },
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bot.cli.main", "evaluate", *options, "--config", str(folder / "config.toml")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": "/usr/bin", "HOME": str(folder), "COLUMNS": "120", "PYTHONPATH": str(Path.cwd())},
    )
    output, _ = await process.communicate()
    return await process.wait(), output.decode()


async def test_models_are_scored_and_compared(tmp_path: Path, warm_python: str) -> None:
    """Each model has its share of right answers with an interval, and its gain over the first model."""
    (tmp_path / "a.jpg").write_bytes(sample_pictures()[SQUARE])
    questions = [row("What colour is it?", "Green"), row("What colour is it?", "purple"), row("How many?", "one")]
    file = tmp_path / "shapes.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in questions))
    shutil.copytree(CHECKPOINT, tmp_path / "mine")
    out = tmp_path / "answers.json"
    code, output = await evaluate(
        tmp_path, "tiny", str(tmp_path / "mine"), "--set", str(file), "--out", str(out), python=warm_python
    )
    assert code == 0, output
    assert "shapes.jsonl: 3 questions, scored by “contains”" in output
    first, second = output.splitlines()[-2:]
    assert re.split(" {2,}", first.strip()) == ["tiny", "2 of 3: 67% (21% to 94%) right"]
    assert "2 of 3" in second and "+0 points (-56 to +56)" in second
    answers = json.loads(out.read_text())
    assert [each["scores"]["tiny"] for each in answers] == [True, False, True]
    assert "green" in answers[0]["answers"]["tiny"].lower()


async def test_losses_are_compared(tmp_path: Path, warm_python: str) -> None:
    """With the score `loss`, the right answers' losses are shown, which need no right answer of the model."""
    (tmp_path / "a.jpg").write_bytes(sample_pictures()[SQUARE])
    file = tmp_path / "shapes.json"
    file.write_text(
        json.dumps([row("What colour is it?", "Wow, so green! 🎉"), row("What colour is it?", "Wow, so purple! 🎉")])
    )
    answers = tmp_path / "answers.json"
    options = ("--set", str(file), "--score", "loss", "--out", str(answers))
    code, output = await evaluate(tmp_path, "tiny", *options, python=warm_python)
    assert code == 0, output
    right, wrong = (each["scores"]["tiny"] for each in json.loads(answers.read_text()))
    assert 0 < right < wrong
    assert output.splitlines()[-1].split() == ["tiny", "loss", f"{(right + wrong) / 2:.3f}"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "has no questions"),
        (json.dumps([row("Which?", "")]), "the answer is empty"),
        (json.dumps([{**row("Which?", "red"), "image": "gone.jpg"}]), "gone.jpg is missing"),
    ],
)
async def test_an_unusable_file_is_refused(tmp_path: Path, content: str, told: str) -> None:
    """A file without questions, or with an invalid row, is refused with the reason."""
    (tmp_path / "set.json").write_text(content)
    code, output = await evaluate(tmp_path, "tiny", "--set", str(tmp_path / "set.json"))
    assert (code, told in " ".join(output.split())) == (1, True), output


async def test_an_output_without_a_folder_is_refused_first(tmp_path: Path) -> None:
    """An output file in a folder that does not exist is refused before any model answers."""
    code, output = await evaluate(
        tmp_path, "tiny", "--set", str(tmp_path / "set.json"), "--out", str(tmp_path / "gone" / "answers.json")
    )
    assert (code, "is not a folder: create it" in " ".join(output.split())) == (1, True), output


@pytest.mark.parametrize(
    ("answer", "right", "found"),
    [
        ("It is a Mapo Tofu, I think.", "mapo tofu", True),
        ("Blackbird", "black", False),
        ("这是麻婆豆腐。", "麻婆豆腐", True),
        ("", "red", False),
    ],
)
def test_contains(answer: str, right: str, found: bool) -> None:
    """An answer is right if it contains the right one, as whole words in Latin letters."""
    assert is_contained(answer, right) is found


@pytest.mark.parametrize(
    ("answer", "right", "found"),
    [("Yes.", "yes", True), (" Two  cats ", "two cats", True), ("是的。", "是的", True), ("yes, two", "yes", False)],
)
def test_exact(answer: str, right: str, found: bool) -> None:
    """An answer is right if it equals the right one, apart from case, spaces and final punctuation."""
    assert is_equal(answer, right) is found


@pytest.mark.parametrize(
    ("answer", "right", "found"),
    [
        ("B", "B. Mapo tofu", True),
        ("The answer is (C).", "C", True),
        ("答案是B。", "B", True),
        ("Beef", "B", False),
        ("A", "A", True),
        ("A dog, so B", "B", True),
        ("C is right, not D.", "D", False),
        ("none", "D", False),
    ],
)
def test_choice(answer: str, right: str, found: bool) -> None:
    """An answer is right if the first letter that stands alone is that of the right one."""
    assert is_choice(answer, right) is found


def test_a_gain_has_a_paired_interval() -> None:
    """The interval of a gain is that of paired proportions: it excludes 0 where many more were gained than lost."""
    old, new = [number < 40 for number in range(100)], [number < 60 and number != 7 for number in range(100)]
    assert summarize(ScoringMethod.EXACT, {"old": old, "new": new}) == [
        ("old", "40 of 100: 40% (31% to 50%) right", ""),
        ("new", "59 of 100: 59% (49% to 68%) right", "+19 points (+11 to +28)"),
    ]


def test_lower_losses_are_counted() -> None:
    """A loss is compared question by question, so that a few large differences do not decide."""
    old, new = [1.0] * 40, [0.9] * 30 + [9.0] * 10
    assert summarize(ScoringMethod.LOSS, {"old": old, "new": new}) == [
        ("old", "loss 1.000", ""),
        ("new", "loss 2.925", "lower for 30 of 40: 75% (60% to 86%)"),
    ]
