"""Examinations: questions with known answers on which a candidate must not be inferior to earlier models.

A candidate passes if the upper bound of what it loses lies below what may be lost, against the base and against the
live model. Each comparison errs in at most 5 % of cases, and both must pass, so both together do (intersection-union
test; Berger 1982, Technometrics 24:295). If the answers so far leave a comparison open, more questions are asked, as
long as the set has any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.translatable_reason import Reason
from training.evidence.facts import ERROR, decided, smallest_decidable_loss, upper_bound
from training.gate.factual_set import QuestionSet
from training.gate.report import Loss
from training.gate.respondent import Asked, Respondent
from training.number_format import points

if TYPE_CHECKING:
    from training.gate.scoring import ModelSlot


@dataclass(frozen=True, slots=True)
class Examined:
    """The result of an examination.

    Attributes:
        against_base: What the candidate loses against the base; None if the live model is the base.
        against_live: What it loses against the live model.
        candidate: The candidate's answers.
        live: The live model's answers to the same questions.
    """

    against_base: Loss | None
    against_live: Loss
    candidate: Asked
    live: Asked

    def reasons(self, complaint: Reason) -> list[Reason]:
        """Return why the losses speak against the candidate.

        `complaint` still lacks its values: the `bound`, the `model` compared with, and the points `allowed`.
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
    """Questions, and how many points a candidate may lose on them."""

    questions: QuestionSet
    allowed: float

    @property
    def opening(self) -> int:
        """The number of questions after which a candidate that loses none can pass: fewer questions decide nothing."""
        looks = self.questions.looks
        alpha = ERROR / len(looks)
        enough = (each for each in looks if smallest_decidable_loss(each, alpha) < self.allowed / 100)
        return next(enough, looks[-1])

    def open(self, model: Respondent, slot: ModelSlot) -> None:
        """Have the model answer the first questions while it is in memory."""
        model.answer(self.questions, self.opening, slot)

    def examine(self, candidate: Respondent, live: Respondent, base: Respondent, slot: ModelSlot) -> Examined:
        """Compare the candidate with the base and with the live model, which may be the same."""
        losses: dict[Respondent, Loss] = {}
        open_still = list(dict.fromkeys((base, live)))
        for look in self.questions.looks:
            for model in (candidate, *open_still):
                model.expect(self.questions, look)
            answered = candidate.answer(self.questions, look, slot)
            for model in open_still:
                losses[model] = self.loss(look, answered, model.answer(self.questions, look, slot))
            open_still = [each for each in open_still if losses[each].passed is None]
            if not open_still or any(each.passed is False for each in losses.values()):
                break
        compared = losses[live].questions
        return Examined(
            None if base is live else losses[base],
            losses[live],
            candidate.answer(self.questions, compared, slot),
            live.answer(self.questions, compared, slot),
        )

    def loss(self, look: int, candidate: Asked, reference: Asked) -> Loss:
        """Compare the answers of two models to the first `look` questions."""
        pairs = list(zip(reference.right, candidate.right, strict=True))
        lost, gained = pairs.count((True, False)), pairs.count((False, True))
        looks = self.questions.looks
        return Loss(
            questions=look,
            correct=sum(candidate.right) / look,
            reference=sum(reference.right) / look,
            lost=lost,
            gained=gained,
            bound=100 * upper_bound(look, lost, gained, ERROR / len(looks)),
            allowed=self.allowed,
            passed=decided(looks, look, lost, gained, self.allowed / 100),
        )
