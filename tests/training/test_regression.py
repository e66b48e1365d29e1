"""The factual questions and the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from scipy.stats import binomtest

from inference.internvl2.tiny.manner import MANNERS
from inference.internvl2.tiny.shapes import Scene
from tests.support.lessons import SYSTEM, one_turn, photo
from tools.tiny.answers import reference
from training.data.llava import Lesson, write_rows
from training.gate.evaluate import Facts, Marks, broken, evaluate, verdict
from training.gate.factual_set import DRAWN, Question, RegressionSetError, draw_set, matches, read_set
from training.gate.report import Report
from training.gate.scoring import Likelihood
from training.job import EvaluationJob, ignore


def entry(**changes: Any) -> dict[str, Any]:
    """Return a valid question."""
    return {"image": "cup.jpg", "question": "Which colour is it?", "expect": [["red", "红"]], **changes}


def marks(nats: float, *answers: str, right: int) -> Marks:
    """Return results with a likelihood over ten tokens and answers, of which the first `right` are right."""
    return Marks(Likelihood(nats, 10), list(answers), [place < right for place in range(len(answers))])


def asked(count: int) -> list[Question]:
    """Return a number of questions."""
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
    """Words match whole and in any case, a forbidden word makes an answer wrong, style does not matter."""
    assert matches(answer, [["red", "红"]], ["blue"]) is right


def test_every_list_needs_one_of_its_words() -> None:
    """All lists of `expect` must match."""
    expect = [["two", "2"], ["star", "stars"]]
    assert matches("I see 2 stars.", expect, ())
    assert not matches("I see stars.", expect, ())


def test_a_folder_is_read(tmp_path: Path) -> None:
    """A folder's questions become lessons without an answer, with the sizes of their pictures."""
    (tmp_path / "questions.json").write_text(json.dumps([entry(), entry(forbid=["blue"])]))
    (tmp_path / "cup.jpg").write_bytes(photo("red", (40, 30)))
    first, second = read_set(tmp_path)
    assert first.right("Red or blue") and not second.right("Red or blue")
    lesson = first.lesson(tmp_path, SYSTEM)
    assert (lesson.sizes, lesson.system, lesson.turns[-1].text) == (((40, 30),), SYSTEM, "")


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
    """The error has the number of the entry."""
    (tmp_path / "questions.json").write_text(content)
    with pytest.raises(RegressionSetError, match=complaint):
        read_set(tmp_path)


def test_the_drawn_set_is_fixed_and_fair(tmp_path: Path) -> None:
    """The drawn questions are always the same, and a right answer is right in both manners."""
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
def test_empty_and_looping_answers_are_broken(answer: str, expected: bool) -> None:
    """Laughter and tables are not."""
    assert broken(answer) is expected


def test_a_better_model_is_accepted() -> None:
    """It has a higher likelihood and is as correct; the report has all numbers."""
    answers = [f"answer {number}" for number in range(100)]
    report = verdict(marks(5.0, *answers, right=97), marks(2.0, *answers, right=95), asked(100), max_loss_points=2)
    assert report.accepted and not report.reason
    assert (report.live_nll, report.nll, report.tokens) == (0.5, 0.2, 10)
    assert (report.live_correct, report.correct, report.questions) == (0.97, 0.95, 100)
    assert (report.live_alone, report.alone) == (2, 0)


@pytest.mark.parametrize(
    ("nats", "right", "answer", "differs", "complaint"),
    [
        (5.0, 97, "fine", "", "no better on the held-out liked answers"),
        (float("nan"), 97, "fine", "", "no better on the held-out liked answers"),
        (2.0, 90, "fine", "", "90.0% of the 100 factual questions correctly, the live model 97.0%: a bigger"),
        (2.0, 97, " ", "", "1 of its answers are empty or repeat themselves"),
        (2.0, 97, "fine", "the tokenizers differ", "token IDs differ from the engine's: the tokenizers differ"),
    ],
)
def test_a_worse_model_is_rejected(nats: float, right: int, answer: str, differs: str, complaint: str) -> None:
    """Each of the four ways to be worse is enough, and is the reason."""
    answers = [f"answer {number}" for number in range(99)]
    candidate = marks(nats, *answers, answer, right=right)
    report = verdict(marks(5.0, *answers, "fine", right=97), candidate, asked(100), max_loss_points=2, differs=differs)
    assert not report.accepted
    assert complaint in report.reason
    assert report.reason.count(";") == 0


def test_every_reason_is_named() -> None:
    """The reason has all failures, and the report has samples of wrong answers."""
    answers = ["blue"] * 7
    live = marks(1.0, "red", *answers, right=8)
    report = verdict(live, marks(2.0, "", *answers, right=0), asked(8), max_loss_points=2)
    assert report.reason.count(";") == 2
    assert report.broken == ["Question 0? → "]
    assert {"question": "Question 1?", "live": "blue", "candidate": "blue"} in report.samples


@pytest.mark.parametrize(("live", "candidate"), [(0, 0), (5, 0), (6, 0), (6, 1), (9, 1), (12, 3), (0, 7), (40, 30)])
def test_chance_is_scipys_sign_test(live: int, candidate: int) -> None:
    """The p-value is that of scipy.stats.binomtest."""
    expected = binomtest(live, live + candidate, alternative="greater").pvalue if live + candidate else 1.0
    assert Facts(150, live, candidate).chance == pytest.approx(expected)


@pytest.mark.parametrize(
    ("facts", "too_many", "doubtful"),
    [
        (Facts(150, 3, 0), False, False),
        (Facts(150, 6, 1), True, True),
        (Facts(150, 6, 0), True, False),
        (Facts(150, 10, 1), True, False),
        (Facts(5000, 40, 10), False, False),
        (Facts(150, 0, 9), False, False),
    ],
)
def test_a_loss_counts_when_it_is_more_than_chance(facts: Facts, too_many: bool, doubtful: bool) -> None:
    """A loss of few points is allowed; one of many is rejected unless it may be chance."""
    assert facts.too_many(2) is too_many
    assert facts.doubtful(2) is doubtful


@pytest.mark.parametrize(("forgets", "accepted", "questions"), [(0, True, 150), (5, True, 450), (12, False, 150)])
def test_more_questions_are_asked_if_a_loss_may_be_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgets: int, accepted: bool, questions: int
) -> None:
    """5 lost of 150 may be chance, and none is lost in 300 more; 0 and 12 of 150 need no further questions."""
    monkeypatch.setattr("training.gate.scoring.LocalModel", Forgetful)
    monkeypatch.setattr("training.gate.prompt_parity.disagreement", lambda *_: "")
    monkeypatch.setattr("training.gate.evaluate.draw_set", lambda _, count=DRAWN: numbered(tmp_path, count))
    report = judged(tmp_path, f"candidate-{forgets}")
    assert (report.accepted, report.questions) == (accepted, questions), report.reason
    assert (report.live_alone, report.alone) == (forgets, 0)


def test_a_sheet_that_cannot_be_drawn_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict counts without the sheet, and the log has the error."""
    monkeypatch.setattr("training.gate.scoring.LocalModel", Forgetful)
    monkeypatch.setattr("training.gate.prompt_parity.disagreement", lambda *_: "")
    monkeypatch.setattr("training.gate.evaluate.draw_set", lambda _, count=DRAWN: numbered(tmp_path, count))

    def fails(*_: object) -> None:
        raise OSError("no ink")

    monkeypatch.setattr("training.gate.run_summary_sheet.draw", fails)
    assert judged(tmp_path, "candidate-0").accepted
    assert "no ink" in capsys.readouterr().err


def test_a_real_loss_is_found_by_more_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 of the first 150 and 20 of the others are lost: rejected, with the numbers in the reason."""
    monkeypatch.setattr("training.gate.scoring.LocalModel", Forgetful)
    monkeypatch.setattr("training.gate.prompt_parity.disagreement", lambda *_: "")
    monkeypatch.setattr("training.gate.evaluate.draw_set", lambda _, count=DRAWN: numbered(tmp_path, count))
    report = judged(tmp_path, "candidate-5-20")
    assert not report.accepted
    assert "94.4% of the 450 factual questions correctly, the live model 100.0%" in report.reason


class Forgetful:
    """A `LocalModel` whose directory says how many of the first questions and of the others it gets wrong."""

    def __init__(self, directory: Path, **_: object) -> None:
        first, others = (*map(int, directory.name.split("-")[1:]), 0, 0)[:2]
        self._wrong = {f"q{number}" for number in (*range(first), *range(DRAWN, DRAWN + others))}
        self._nats = 1.0 if directory.name == "live" else 0.5

    def likelihood(self, lessons: Sequence[Lesson], _: Path) -> Likelihood:
        """Return a better likelihood for every candidate."""
        return Likelihood(self._nats, len(lessons))

    def answers(self, lessons: Sequence[Lesson], *_: object, **__: object) -> list[str]:
        """Answer right except for the forgotten questions."""
        return ["wrong" if each.turns[0].text in self._wrong else "right" for each in lessons]


def numbered(folder: Path, count: int) -> list[Question]:
    """Return questions about one picture with the right answer "right"."""
    return [Question("cup.jpg", f"q{number}", lambda answer: answer == "right") for number in range(count)]


def judged(folder: Path, candidate: str) -> Report:
    """Return the report on a candidate of that name."""
    (folder / "questions").mkdir()
    (folder / "questions" / "cup.jpg").write_bytes(photo())
    (folder / "cup.jpg").write_bytes(photo())
    write_rows([one_turn("one", "What?", "A cup.", "cup.jpg")], folder / "held_out.json")
    job = EvaluationJob(
        run="1",
        candidate=str(folder / candidate),
        live=str(folder / "live"),
        data=str(folder / "held_out.json"),
        images=str(folder),
        work=str(folder),
        system=SYSTEM,
    )
    assert evaluate(job, ignore).ok
    return Report.read(folder / "report.json")
