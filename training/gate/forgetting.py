"""Check whether a candidate has lost facts, gives in to leading questions, or gives malformed answers.

There are two examinations, one with factual and one with leading questions, all with known answers. A
candidate passes an examination if the upper bounds of its losses against the base model and the live
model are both below the allowed loss. Each comparison wrongly passes a candidate in at most 5 % of cases;
because a candidate must pass both, the same limit holds for both together (intersection-union test;
Berger 1982, Technometrics 24:295). If the answers so far leave a comparison undecided, more questions
are asked, as long as the set has any.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

from storage.translatable_reason import Reason
from training.evaluation_jobs import JudgingJob
from training.evidence.non_inferiority import ERROR, decided, smallest_decidable_loss, upper_bound
from training.gate import broken_answers
from training.gate.evaluated_models import AnsweredQuestions, EvaluatedModel, EvaluatedModels, Wanted
from training.gate.factual_set import DRAWN, QuestionSet, drawn_set, own_set
from training.gate.leading_questions import LEAST_ALLOWED, leading_set
from training.gate.report import Drift, Loss
from training.number_format import points

_SAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Examined:
    """The result of an examination.

    Attributes:
        against_base: The candidate's loss against the base model; None if the live model is the base model.
        against_live: The candidate's loss against the live model.
        candidate: The candidate's answers.
        live: The live model's answers to the same questions.
    """

    against_base: Loss | None
    against_live: Loss
    candidate: AnsweredQuestions
    live: AnsweredQuestions

    def reasons(self, complaint: Reason) -> list[Reason]:
        """Return a reason against the candidate for each comparison that it did not pass.

        `complaint` is a template with placeholders for the `bound`, the `model` compared with, and the number of
        points `allowed`.
        """
        losses = ((Reason("the base model"), self.against_base), (Reason("the live model"), self.against_live))
        return [
            Reason(complaint.template, bound=points(each.bound), model=model, allowed=f"{each.allowed:g}")
            for model, each in losses
            if each is not None and not each.passed
        ]

    def first_lost(self, number: int) -> list[int]:
        """Return the indexes of up to `number` questions, beginning with those that only the candidate gets wrong."""
        live, candidate = self.live.right, self.candidate.right
        return sorted(range(len(live)), key=lambda index: candidate[index] - live[index])[:number]


@dataclass(frozen=True, slots=True)
class Examination:
    """A set of questions, and how many points a candidate may lose on it."""

    questions: QuestionSet
    allowed: float

    @property
    def opening(self) -> int:
        """The number of opening questions; with fewer, even a candidate that loses none could not pass."""
        looks = self.questions.looks
        alpha = ERROR / len(looks)
        enough = (each for each in looks if smallest_decidable_loss(each, alpha) < self.allowed / 100)
        return next(enough, looks[-1])

    def examine(self, models: EvaluatedModels, candidate: EvaluatedModel, *references: EvaluatedModel) -> Examined:
        """Compare the candidate with the base model and the live model, which may be the same model.

        `references` are the base model and the live model. A model is asked further questions if a comparison needs
        more of its answers.
        """
        base, live = references
        losses: dict[EvaluatedModel, Loss] = {}
        undecided = list(dict.fromkeys((base, live)))
        for look in self.questions.looks:
            wanted = [(model, self.questions, look) for model in (candidate, *undecided)]
            models.expect(wanted)
            models.answer(wanted)
            answered = candidate.answered(self.questions, look)
            for model in undecided:
                losses[model] = self.loss(look, answered, model.answered(self.questions, look))
            undecided = [each for each in undecided if losses[each].passed is None]
            if not undecided or any(each.passed is False for each in losses.values()):
                break
        compared = losses[live].questions
        return Examined(
            None if base is live else losses[base],
            losses[live],
            candidate.answered(self.questions, compared),
            live.answered(self.questions, compared),
        )

    def loss(self, look: int, candidate: AnsweredQuestions, reference: AnsweredQuestions) -> Loss:
        """Return the candidate's loss against a reference model on the first `look` questions."""
        before, after = reference.right, candidate.right
        pairs = list(zip(before, after, strict=True))
        lost, gained = pairs.count((True, False)), pairs.count((False, True))
        looks = self.questions.looks
        return Loss(
            questions=look,
            correct=sum(after) / look,
            reference=sum(before) / look,
            lost=lost,
            gained=gained,
            bound=100 * upper_bound(look, lost, gained, ERROR / len(looks)),
            allowed=self.allowed,
            passed=decided(looks, look, lost, gained, self.allowed / 100),
        )


@dataclass(frozen=True, slots=True)
class Forgetting:
    """A candidate's losses on factual and leading questions, and the drift in the form of its answers."""

    facts: Examined
    leading: Examined
    drift: Drift

    def reasons(self) -> list[Reason]:
        """Return the reasons against the candidate."""
        return [
            *self.facts.reasons(
                Reason(
                    "its share of correct factual answers could be up to {bound} points below that of {model} (limit: "
                    "{allowed})"
                )
            ),
            *self.leading.reasons(
                Reason(
                    "it could give in to leading questions up to {bound} points more often than {model} (limit: "
                    "{allowed})"
                )
            ),
            *broken_answers.reasons(self.drift),
        ]

    def numbers(self) -> dict[str, Any]:
        """Return the report's fields about factual questions, leading questions and drift, by name."""
        loss, asked, live = self.facts.against_live, self.facts.candidate, self.facts.live
        return {
            "questions": loss.questions,
            "live_correct": loss.reference,
            "correct": loss.correct,
            "live_alone": loss.lost,
            "alone": loss.gained,
            "facts": loss,
            "facts_base": self.facts.against_base or Loss(),
            "leading": self.leading.against_live,
            "leading_base": self.leading.against_base or Loss(),
            "drift": self.drift,
            "broken": [*_broken(asked), *_broken(self.leading.candidate)][:_SAMPLES],
            "samples": [
                {
                    "question": asked.questions[index].text,
                    "live": live.answers[index],
                    "candidate": asked.answers[index],
                }
                for index in self.facts.first_lost(_SAMPLES)
            ],
        }


def _broken(asked: AnsweredQuestions) -> list[str]:
    pairs = zip(asked.questions, asked.answers, strict=True)
    return [f"{question.text} → {answer}" for question, answer in pairs if broken_answers.broken(answer)]


@dataclass(frozen=True, slots=True)
class Examinations:
    """The two examinations of a candidate: factual knowledge, and resistance to leading questions."""

    facts: Examination
    leading: Examination

    @classmethod
    @contextmanager
    def of(cls, job: JudgingJob) -> Iterator[Self]:
        """Yield the examinations for a job. Their pictures are drawn once, if the models' answers are kept."""
        with ExitStack() as stack:
            if job.answers:
                drawn = Path(job.answers) / DRAWN
            else:
                drawn = Path(stack.enter_context(TemporaryDirectory(prefix="questions-", dir=job.work)))
            facts = own_set(Path(job.regression)) if job.regression else drawn_set(drawn)
            allowed = job.max_loss_points
            yield cls(Examination(facts, allowed), Examination(leading_set(drawn), max(allowed, LEAST_ALLOWED)))

    def prepare(self, system: str) -> None:
        """Draw the opening questions and decode their pictures, so that `openings` can be asked at once."""
        for each in (self.facts, self.leading):
            for question in each.questions.first(each.opening):
                each.questions.lesson(question, system)

    @property
    def opening(self) -> int:
        """The number of opening questions of both examinations."""
        return self.facts.opening + self.leading.opening

    def openings(self, *models: EvaluatedModel) -> list[Wanted]:
        """Return the opening questions of both examinations for each model."""
        return [
            (model, each.questions, each.opening)
            for model in dict.fromkeys(models)
            for each in (self.facts, self.leading)
        ]

    def examine(
        self, models: EvaluatedModels, candidate: EvaluatedModel, live: EvaluatedModel, base: EvaluatedModel
    ) -> Forgetting:
        """Examine the candidate, asking a model further questions if a comparison needs more of its answers."""
        facts = self.facts.examine(models, candidate, base, live)
        leading = self.leading.examine(models, candidate, base, live)
        drift = broken_answers.measure(facts.live + leading.live, facts.candidate + leading.candidate)
        return Forgetting(facts, leading, drift)
