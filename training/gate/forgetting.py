"""Check whether a candidate has lost facts, gives in to leading questions, or answers in a broken form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from storage.translatable_reason import Reason
from training.gate import breakage
from training.gate.examination import Examination, Examined
from training.gate.factual_set import drawn_set, own_set
from training.gate.leading_questions import LEAST_ALLOWED, leading_set
from training.gate.report import Drift, Loss
from training.gate.respondent import Asked, Respondent
from training.job import EvaluationJob

if TYPE_CHECKING:
    from training.gate.scoring import ModelSlot

_SAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The facts and the firmness that a candidate has lost, and the drift in the form of its answers."""

    facts: Examined
    leading: Examined
    drift: Drift

    def reasons(self) -> list[Reason]:
        """Return the reasons that speak against the candidate."""
        return [
            *self.facts.reasons(
                Reason(
                    "it may lose up to {bound} points of factual correctness against {model} ({allowed} are allowed)"
                )
            ),
            *self.leading.reasons(
                Reason(
                    "it may give in to leading questions up to {bound} points more often than {model} ({allowed} are "
                    "allowed)"
                )
            ),
            *breakage.reasons(self.drift),
        ]

    def numbers(self) -> dict[str, Any]:
        """Return the fields of the report, by name."""
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


def _broken(asked: Asked) -> list[str]:
    pairs = zip(asked.questions, asked.answers, strict=True)
    return [f"{question.text} → {answer}" for question, answer in pairs if breakage.broken(answer)]


@dataclass(frozen=True, slots=True)
class Examinations:
    """The two examinations of a candidate: factual knowledge, and resistance to leading questions."""

    facts: Examination
    leading: Examination

    @classmethod
    def of(cls, job: EvaluationJob, drawn: Path) -> Self:
        """Return the examinations of a job, which draw pictures into the folder `drawn`."""
        facts = own_set(Path(job.regression)) if job.regression else drawn_set(drawn)
        allowed = job.max_loss_points
        return cls(Examination(facts, allowed), Examination(leading_set(drawn), max(allowed, LEAST_ALLOWED)))

    def expect(self, models: Iterable[Respondent]) -> None:
        """Add the questions that the models must answer at first to the progress of the evaluation."""
        for model in models:
            for each in (self.facts, self.leading):
                model.expect(each.questions, each.opening)

    def open(self, model: Respondent, slot: ModelSlot) -> None:
        """Have the model answer the first questions while it is in memory."""
        for each in (self.facts, self.leading):
            each.open(model, slot)

    def examine(self, candidate: Respondent, live: Respondent, base: Respondent, slot: ModelSlot) -> Forgetting:
        """Examine the candidate; models are loaded again if a comparison needs more of their answers."""
        facts = self.facts.examine(candidate, live, base, slot)
        leading = self.leading.examine(candidate, live, base, slot)
        drift = breakage.measure(facts.live + leading.live, facts.candidate + leading.candidate)
        return Forgetting(facts, leading, drift)
