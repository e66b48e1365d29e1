"""The factual questions and the verdict that rests on them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from inference.tiny.answers import reference
from inference.tiny.manner import MANNERS
from inference.tiny.shapes import Scene
from tests.lessons import SYSTEM, photo
from training.evaluate import Marks, broken, verdict
from training.regression import DRAWN, Question, RegressionSetError, draw_set, matches, read_set
from training.scoring import Likelihood


def entry(**changes: Any) -> dict[str, Any]:
    """A question with nothing wrong."""
    return {"image": "cup.jpg", "question": "Which colour is it?", "expect": [["red", "红"]], **changes}


def marks(nats: float, *answers: str, right: int) -> Marks:
    """A model's marks: likelihood over ten tokens, its answers, of which the first `right` are right."""
    return Marks(Likelihood(nats, 10), list(answers), [place < right for place in range(len(answers))])


def asked(count: int) -> list[Question]:
    """So many questions."""
    return [Question("cup.jpg", f"Question {number}?", lambda answer: True) for number in range(count)]


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
    """A word counts whole and in any case, a forbidden one spoils the answer, style does not matter."""
    assert matches(answer, [["red", "红"]], ["blue"]) is right


def test_every_expected_fact_must_be_there() -> None:
    """Of several lists each needs one of its words."""
    expect = [["two", "2"], ["star", "stars"]]
    assert matches("I see 2 stars.", expect, ())
    assert not matches("I see stars.", expect, ())


def test_a_folder_is_read(tmp_path: Path) -> None:
    """A folder's questions become lessons with an open answer, their pictures found and measured."""
    (tmp_path / "questions.json").write_text(json.dumps([entry(), entry(forbid=["blue"])]))
    (tmp_path / "cup.jpg").write_bytes(photo("red", (40, 30)))
    first, second = read_set(tmp_path)
    assert first.right("Red or blue") and not second.right("Red or blue")
    lesson = first.lesson(tmp_path, SYSTEM)
    assert (lesson.sizes, lesson.system, lesson.turns[-1].text) == (((40, 30),), SYSTEM, "")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "cannot be read"),
        ("[]", "must be a list"),
        (json.dumps([entry(), entry(expect=[])]), "entry 2: expect"),
        (json.dumps([entry(expect=["red"])]), "entry 1: expect"),
        (json.dumps([entry(forbid="blue")]), "entry 1: forbid"),
        (json.dumps([entry(question=" ")]), "entry 1: image and question"),
        (json.dumps([entry(answer="red")]), "entry 1 must have"),
    ],
)
def test_flaws_of_a_folder_are_named(tmp_path: Path, content: str, complaint: str) -> None:
    """What is wrong with a set is said with the entry's number."""
    (tmp_path / "questions.json").write_text(content)
    with pytest.raises(RegressionSetError, match=complaint):
        read_set(tmp_path)


def test_the_drawn_set_is_fixed_and_fair(tmp_path: Path) -> None:
    """The drawn questions are the same every time, and both manners of a right answer are right."""
    first, again = draw_set(tmp_path / "a", 12), draw_set(tmp_path / "b", 12)
    assert [each.text for each in first] == [each.text for each in again]
    for each in first:
        assert (tmp_path / "a" / each.image).read_bytes() == (tmp_path / "b" / each.image).read_bytes()
    scene = Scene("red", "star", 3)
    question = Question("x", "Which colour?", first[0].right)
    for manner in MANNERS:
        said = [reference("colour", "en", manner, scene, Random(seed)) for seed in range(5)]
        assert len({question.right(answer) for answer in said}) == 1
    assert DRAWN >= 100, "two points must be more than one question"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", True),
        ("!? …", True),
        ("A red cup.", False),
        ("Wow, wow, so red! Ha ha ha!", False),
        ("哈哈哈哈哈哈，红色！", False),
        ("| a | b |\n|-----|-----|\n| 1 | 2 |\n---------------------", False),
        ("red red red red red red red", True),
        ("It is a cup. It is a cup. It is a cup. It is a cup. It is a cup.", True),
        ("aaaaaaaaaaaaaaaaaaaaaa", True),
        ("是的，是的，是的，是的，是的，是的，是的，是的", True),
        ("A long answer that was cut before it could say all it", False),
    ],
)
def test_empty_and_looping_answers_are_seen(answer: str, expected: bool) -> None:
    """Nothing said, or one thing again and again, is broken; laughter and tables are not."""
    assert broken(answer) is expected


def test_a_better_model_is_accepted() -> None:
    """Likelier on the liked answers and as correct: accepted, with all numbers in the report."""
    answers = [f"answer {number}" for number in range(100)]
    report = verdict(marks(5.0, *answers, right=97), marks(2.0, *answers, right=95), asked(100), max_loss_points=2)
    assert report.accepted and not report.reason
    assert (report.live_nll, report.nll, report.tokens) == (0.5, 0.2, 10)
    assert (report.live_correct, report.correct, report.questions) == (0.97, 0.95, 100)


@pytest.mark.parametrize(
    ("nats", "right", "answer", "differs", "complaint"),
    [
        (5.0, 97, "fine", "", "no better on the liked answers"),
        (float("nan"), 97, "fine", "", "no better on the liked answers"),
        (2.0, 94, "fine", "", "94.0% of the factual questions right, the live model 97.0%"),
        (2.0, 97, " ", "", "1 of its answers are empty or in loops"),
        (2.0, 97, "fine", "the tokenizers differ", "other tokens than the engine: the tokenizers differ"),
    ],
)
def test_a_worse_model_is_refused(nats: float, right: int, answer: str, differs: str, complaint: str) -> None:
    """Each of the four ways to be worse is enough, and is the reason."""
    answers = [f"answer {number}" for number in range(99)]
    candidate = marks(nats, *answers, answer, right=right)
    report = verdict(marks(5.0, *answers, "fine", right=97), candidate, asked(100), max_loss_points=2, differs=differs)
    assert not report.accepted
    assert complaint in report.reason
    assert report.reason.count(";") == 0


def test_every_reason_is_told() -> None:
    """A model that fails in several ways hears of all of them, and the report shows what it got wrong."""
    live = marks(1.0, "red", "blue", right=2)
    report = verdict(live, marks(2.0, "", "blue", right=0), asked(2), max_loss_points=2)
    assert report.reason.count(";") == 2
    assert report.broken == ["Question 0? → "]
    assert {"question": "Question 1?", "live": "blue", "candidate": "blue"} in report.samples
