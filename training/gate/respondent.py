"""A model that answers questions with known answers: it is loaded only for those that it has not answered before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storage.model_store import content_hash
from training.gate.factual_set import Question, QuestionSet
from training.gate.kept_answers import KeptAnswers
from training.job import EvaluationJob
from training.worker import StageProgress

if TYPE_CHECKING:
    from training.gate.scoring import ModelSlot


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions with a model's answers, and whether each is right."""

    questions: tuple[Question, ...]
    answers: tuple[str, ...]

    def __add__(self, other: Asked) -> Asked:
        return Asked(self.questions + other.questions, self.answers + other.answers)

    @property
    def right(self) -> list[bool]:
        """For each question, whether its answer is right."""
        return [each.right(answer) for each, answer in zip(self.questions, self.answers, strict=True)]


class Respondent:
    """A checkpoint directory that answers the questions of one evaluation."""

    def __init__(self, directory: Path, kept: KeptAnswers, job: EvaluationJob, steps: StageProgress) -> None:
        """`steps` is the progress of the evaluation, in answers."""
        self.directory = directory
        self._kept = kept
        self._job = job
        self._steps = steps

    def expect(self, questions: QuestionSet, number: int) -> None:
        """Add to the evaluation's progress those of the first questions that the model has not answered before."""
        self._steps.more(len(self._missing(questions, number)))

    def answer(self, questions: QuestionSet, number: int, slot: ModelSlot) -> Asked:
        """Answer the first `number` questions. The model is loaded if it has not answered all of them before."""
        from training.gate.scoring import greedy

        if missing := self._missing(questions, number):
            lessons = [each.lesson(questions.folder, self._job.system) for each in missing.values()]
            sampling = greedy(self._job.max_new_tokens)
            said = slot.load(self.directory).answers(lessons, questions.folder, sampling, on_batch=self._steps.add)
            self._kept.add(dict(zip(missing, said, strict=True)))
        asked = questions.first(number)
        return Asked(tuple(asked), tuple(self._kept.answers[each.identity] for each in asked))

    def _missing(self, questions: QuestionSet, number: int) -> dict[str, Question]:
        kept = self._kept.answers
        return {each.identity: each for each in questions.first(number) if each.identity not in kept}


class Respondents:
    """The models of an evaluation. Directories with the same files are one model, which answers once."""

    def __init__(self, job: EvaluationJob, device: str, steps: StageProgress) -> None:
        self._job = job
        self._device = device
        self._steps = steps
        self._known: dict[str, tuple[Respondent, KeptAnswers]] = {}

    def of(self, directory: Path) -> Respondent:
        """Return the model of a directory. Raises `StorageError` for an empty or unreadable one."""
        job, content = self._job, content_hash(directory)
        if content not in self._known:
            folder = Path(job.answers) if job.answers else None
            kept = KeptAnswers(folder, content, job.system, job.tiles, job.max_new_tokens, self._device)
            self._known[content] = (Respondent(directory, kept, job, self._steps), kept)
        return self._known[content][0]

    def close(self) -> None:
        """Tidy the folder of kept answers."""
        for _, kept in self._known.values():
            kept.close()
