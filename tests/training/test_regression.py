"""Factual questions, whose answers a new model must not have forgotten."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from inference.internvl2.tiny.answer_checks import MANNERS
from inference.internvl2.tiny.shapes import Scene
from tests.support.lessons import SYSTEM, photo
from tools.tiny.answers import reference
from training.gate.factual_set import (
    FactualQuestion,
    check_decidable,
    drawn_set,
    matches,
    own_set,
    read_set,
)
from training.job import TrainingError


def entry(**changes: Any) -> dict[str, Any]:
    """Return a valid entry of `questions.json` with `changes` applied."""
    return {"image": "cup.jpg", "question": "Which colour is it?", "expect": [["red", "红"]], **changes}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It is RED!", True),
        ("红色的杯子", True),
        ("It is blue.", False),
        ("A hundred cups.", False),
        ("Red or blue.", False),
    ],
)
def test_answers_are_judged_by_their_facts(answer: str, right: bool) -> None:
    """An answer is right if it has an expected word and no forbidden one, whatever its style.

    Only whole words match, regardless of case.
    """
    assert matches(answer, [["red", "红"]], ["blue"]) is right


def test_every_list_needs_one_of_its_words() -> None:
    """An answer must contain at least one word of every list in `expect`."""
    expect = [["two", "2"], ["star", "stars"]]
    assert matches("I see 2 stars.", expect, ())
    assert not matches("I see stars.", expect, ())


def test_a_folder_is_read(tmp_path: Path) -> None:
    """The questions in a folder become lessons without an answer, with the sizes of their pictures."""
    (tmp_path / "questions.json").write_text(json.dumps([entry(), entry(forbid=["blue"])]))
    (tmp_path / "cup.jpg").write_bytes(photo("red", (40, 30)))
    questions = own_set(tmp_path)
    first, second = questions.first(2)
    assert first.right("Red or blue") and not second.right("Red or blue")
    lesson = questions.lesson(first, SYSTEM)
    assert (lesson.sizes, lesson.system, lesson.turns[-1].text) == (((40, 30),), SYSTEM, "")
    (tmp_path / "cup.jpg").unlink()
    assert questions.lesson(first, SYSTEM) is lesson, "its picture is decoded only once"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "Invalid JSON"),
        ("[]", "at least 1 item"),
        (json.dumps([entry(), entry(expect=[])]), "entry 2: expect"),
        (json.dumps([entry(expect=["red"])]), "entry 1: expect"),
        (json.dumps([entry(forbid="blue")]), "entry 1: forbid"),
        (json.dumps([entry(question=" ")]), "entry 1: question: String should have at least 1 character"),
        (json.dumps([entry(answer="red")]), "entry 1: answer: Extra inputs"),
    ],
)
def test_flaws_of_a_folder_are_named(tmp_path: Path, content: str, complaint: str) -> None:
    """An error in `questions.json` is reported with the number of the entry."""
    (tmp_path / "questions.json").write_text(content)
    with pytest.raises(TrainingError, match=complaint):
        read_set(tmp_path)


def test_the_drawn_set_is_fixed_and_fair(tmp_path: Path) -> None:
    """The drawn questions are always the same, and no more are drawn than requested.

    A right answer is accepted in both manners, playful and plain.
    """
    sets = [drawn_set(tmp_path / "a"), drawn_set(tmp_path / "b")]
    assert len(sets[1].first(5)) == 5
    first, again = (each.first(12) for each in sets)
    assert [each.text for each in first] == [each.text for each in again]
    for each in first:
        assert (tmp_path / "a" / each.image).read_bytes() == (tmp_path / "b" / each.image).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 12, "no more are drawn than are asked for"
    emptied = tmp_path / "a" / first[0].image
    expected = emptied.read_bytes()
    emptied.write_bytes(b"")  # as a power failure may leave it
    assert drawn_set(tmp_path / "a").first(1)[0].identity == first[0].identity
    assert emptied.read_bytes() == expected
    scene = Scene("red", "star", 3)
    question = FactualQuestion("x", "Which colour?", first[0].right, "red", "")
    for manner in MANNERS:
        said = [reference("colour", "en", manner, scene, Random(seed)) for seed in range(5)]
        assert len({question.right(answer) for answer in said}) == 1


@pytest.mark.parametrize(("questions", "allowed"), [(135, 2.0), (53, 5.0), (0, 2.0), (0, 0.4)])
def test_large_sets_can_decide(tmp_path: Path, questions: int, allowed: float) -> None:
    """An operator's set of n questions can show that a model loses less than a share of about 2.7 / n.

    The 1,500 drawn questions, used if `questions` is 0, can show an even smaller loss.
    """
    check_decidable(own_questions(tmp_path, questions) if questions else None, allowed)


@pytest.mark.parametrize(
    ("questions", "allowed", "advice"),
    [
        (132, 2.0, "to at least 2.1, or add questions until there are 133"),
        (40, 2.0, "to at least 6.4, or add questions until there are 133"),
        (1, 5.0, "to at least 73.1, or add questions until there are 52"),
        (40, 0.0, "40 factual questions can't show that a model loses less than 0 points: .* to at least 6.4"),
        (0, 0.3, "1500 factual questions can't show that a model loses less than 0.3 points: .* to at least 0.4"),
    ],
)
def test_a_set_that_cannot_decide_is_refused(tmp_path: Path, questions: int, allowed: float, advice: str) -> None:
    """A set that is too small for the allowed loss raises an error that names the smallest loss it can decide.

    If that loss is allowed, the set is accepted.
    """
    folder = own_questions(tmp_path, questions) if questions else None
    with pytest.raises(TrainingError, match=advice) as refused:
        check_decidable(folder, allowed)
    smallest = float(re.findall(r"at least ([\d.]+\d)", str(refused.value))[0])
    check_decidable(folder, smallest)
    with pytest.raises(TrainingError, match=r"set training\.max_loss_points"):
        check_decidable(folder, smallest - 0.1)


def own_questions(folder: Path, count: int) -> Path:
    """Write `count` questions about one picture to `folder`, as an operator would, and return the folder."""
    (folder / "cup.jpg").write_bytes(photo())
    (folder / "questions.json").write_text(json.dumps([entry(question=f"Is it {number}?") for number in range(count)]))
    return folder
