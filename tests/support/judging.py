"""Evaluations of stub models without weights; a file in each model's directory lists what it forgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.support.lessons import SYSTEM, one_turn, photo
from training.data.llava import Lesson, write_rows
from training.evaluation_jobs import Candidate, EvaluationJob, Rated, TasteJob
from training.gate.broken_answers import measure
from training.gate.evaluated_models import AnsweredQuestions
from training.gate.factual_set import LOOKS, FactualQuestion, QuestionSet
from training.gate.forgetting import Examination, Examined, Forgetting
from training.gate.judge_candidate import evaluate
from training.gate.judge_taste import test as judge_taste
from training.gate.local_model import LogProbability
from training.gate.report import Report
from training.job import Outcome, Progress
from training.run_folder import CANDIDATE


def forgetting(
    questions: int, *, lost: int = 0, gained: int = 0, allowed: float = 2.0, answer: str = "right"
) -> Forgetting:
    """Return the comparison of a candidate and the live model on two sets of `questions` questions each.

    `lost` and `gained` apply to the factual and the leading questions alike.

    Args:
        questions: The number of questions in each set.
        lost: The number of questions that only the live model answers correctly.
        gained: The number of questions that only the candidate answers correctly.
        allowed: The points that may be lost on factual questions; on leading questions, the limit is the
            same, but at least 5.
        answer: The text of every answer of the candidate, correct or not.
    """
    live = [_question(number, right=number >= gained) for number in range(questions)]
    candidate = [_question(number, right=number < questions - lost) for number in range(questions)]
    of_live, of_candidate = (
        AnsweredQuestions(tuple(live), ("fine",) * questions),
        AnsweredQuestions(tuple(candidate), (answer,) * questions),
    )
    facts, leading = (
        Examined(None, each.loss(questions, of_candidate, of_live), of_candidate, of_live)
        for each in (Examination(numbered(Path(), (questions,)), points) for points in (allowed, max(5.0, allowed)))
    )
    return Forgetting(facts, leading, measure(of_live, of_candidate))


def _question(number: int, *, right: bool) -> FactualQuestion:
    return FactualQuestion("cup.jpg", f"Question {number}?", lambda _: right, "a cup", str(number))


LIKED = "A cup."


class Forgetful:
    """A `LocalModel` that answers "right", or "wrong" to the questions listed in a file in its directory.

    Attributes:
        loads: Names of the model directories, in the order of loading.
        asked: Number of questions that each model has answered, by directory name.
    """

    loads: ClassVar[list[str]] = []
    asked: ClassVar[dict[str, int]] = {}

    def __init__(self, directory: Path, **_: object) -> None:
        self._name = directory.name
        self._wrong = set((directory / "forgets").read_text().split())
        self.loads.append(self._name)

        self._trained = False

    def apply(self, _: object) -> None:
        """Merge an adapter into the model, after which it prefers the liked answer."""
        self._trained = True

    def restore(self) -> None:
        """Undo `apply`."""
        self._trained = False

    def log_probabilities(self, lessons: Sequence[Lesson], _: Path) -> list[LogProbability]:
        """Return a higher log probability for the liked answer only if an adapter is merged into this model."""
        knows = self._trained
        return [LogProbability(-1.0 if knows and each.turns[-1].text == LIKED else -2.0, 1) for each in lessons]

    def generate(
        self, lessons: Sequence[Lesson], *_: object, on_batch: Callable[[list[str]], None]
    ) -> list[tuple[str, bool]]:
        """Return answers that differ from the liked one, and whether each ended by itself."""
        on_batch(["A mug."] * len(lessons))
        return [("A mug.", True) for _ in lessons]

    def answers(self, lessons: Sequence[Lesson], *_: object, on_batch: Callable[[list[str]], None]) -> list[str]:
        """Return "right" for every question except the forgotten ones, in batches of 100."""
        questions = [each.turns[0].text for each in lessons]
        self.asked[self._name] = self.asked.get(self._name, 0) + sum(each != "What?" for each in questions)
        texts = ["wrong" if each in self._wrong else "right" for each in questions]
        for start in range(0, len(texts), 100):
            on_batch(texts[start : start + 100])
        return texts


class Bench:
    """A folder with models and rated answers, for evaluations of the candidate.

    Attributes:
        progress: The progress of the two jobs of the last evaluation.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.progress: list[Progress] = []
        self.folder = folder
        self.rated = [Rated(str(number), True, 0, 0, 0.8, 0.8, 64, 0) for number in range(8)]
        self.fields: dict[str, Any] = {
            "run": "1",
            "live": str(folder / "live"),
            "base": str(folder / "base"),
            "data": str(folder / "judged.json"),
            "images": str(folder),
            "work": str(folder),
            "system": SYSTEM,
            "answers": str(folder / "answers"),
        }
        (folder / "cup.jpg").write_bytes(photo())
        write_rows([one_turn(str(number), "What?", LIKED, "cup.jpg") for number in range(8)], folder / "judged.json")
        Forgetful.loads, Forgetful.asked = [], {}
        monkeypatch.setattr("training.gate.local_model.LocalModel", Forgetful)
        monkeypatch.setattr("training.gate.local_model.Adapter", lambda directory: directory)
        monkeypatch.setattr("training.gate.prompt_parity.disagreement", lambda *_: "")
        monkeypatch.setattr("training.gate.forgetting.drawn_set", lambda _: numbered(folder))
        monkeypatch.setattr("training.gate.forgetting.leading_set", lambda _: numbered(folder, name="lead"))
        monkeypatch.setattr("training.gate.run_comparison_sheet.write", lambda *_: None)

    def model(self, name: str, *forgotten: int) -> None:
        """Create the directory of a model that forgets the questions numbered `forgotten`."""
        (self.folder / name).mkdir(exist_ok=True)
        # The name distinguishes models that forget the same questions.
        (self.folder / name / "forgets").write_text(" ".join([name, *(f"q{number}" for number in forgotten)]))

    def judge(self, **changes: Any) -> Report:
        """Evaluate the candidate and return the report; `changes` override fields of both jobs."""
        Forgetful.loads, Forgetful.asked = [], {}
        self.progress = []
        tested = self.test(**changes)
        Candidate(tested=tested.steps).write(self.folder / CANDIDATE)
        assert tested.ok and self.decide(**changes).ok
        return Report.read(self.folder / "report.json")

    def test(self, **changes: Any) -> Outcome:
        """Run the taste test."""
        fields = {**self.fields, **changes}
        return judge_taste(TasteJob(**fields, adapter="adapter", rated=self.rated), self.progress.append)

    def decide(self, **changes: Any) -> Outcome:
        """Run the job that waits for the candidate and the taste test, and decides."""
        judging = EvaluationJob(**{**self.fields, **changes}, candidate=str(self.folder / "candidate"))
        return evaluate(judging, self.progress.append)


def numbered(folder: Path, looks: Sequence[int] = LOOKS, name: str = "q") -> QuestionSet:
    """Return questions about one picture that `Forgetful` answers correctly unless it has forgotten them."""
    asked = [f"{name}{number}" for number in range(looks[-1])]
    made = (
        FactualQuestion("cup.jpg", each, lambda answer: not answer.startswith("wrong"), "a cup", each) for each in asked
    )
    return QuestionSet(folder, made, looks)
