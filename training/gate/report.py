"""The report of an evaluation: the verdict, its numbers, and what it took to train the candidate."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from storage.translatable_reason import Reason
from training.json_record import Record

EARLIER: Final = (
    Reason(
        "it answers {new} of the {questions} factual questions correctly, the live model {live}: a bigger drop than "
        "chance explains"
    ),
    Reason("it is no better on the held-out liked answers (loss per token {new}, live model {live})"),
)
"""Reasons that occur only in reports and models of earlier versions, listed here so that they stay translatable."""


@dataclass(frozen=True, slots=True)
class Effort(Record):
    """The data that a run was trained on, and the time, memory and disk space that it took.

    Attributes:
        pairs: Liked answers that were trained on.
        raters: Users who gave their thumbs up.
        steps: Optimizer steps.
        training_seconds: The duration of the training.
        merging_seconds: The duration of the merge.
        peak_memory: The most memory that the training took, in bytes.
        adapter_bytes: The size of the adapter.
        taught: Samples of each source.
        too_long: Selected answers that the trainer left out.
        votes: Thumbs up of the pairs.
        liked: Liked answers, selected or not.
        cut: Liked answers that reached `chat.max_new_tokens` and were not selected.
        corrections: Pairs that are corrections by users.
        largest_share: The largest share of the pairs that counts for one rater, 0 to 1.
        over_share: Liked answers that were not selected because they are beyond one rater's share.
    """

    pairs: int = 0
    raters: int = 0
    steps: int = 0
    training_seconds: float = 0.0
    merging_seconds: float = 0.0
    peak_memory: int = 0
    adapter_bytes: int = 0
    taught: dict[str, int] = field(default_factory=dict)
    too_long: int = 0
    votes: int = 0
    liked: int = 0
    cut: int = 0
    corrections: int = 0
    largest_share: float = 0.0
    over_share: int = 0


class Decision(StrEnum):
    """The verdict on a candidate. The values are stored."""

    ACCEPTED = "accepted"
    UNDECIDED = "undecided"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Taste(Record):
    """The evidence on whether a run's gains follow the votes (`training.gate.taste`).

    Attributes:
        answers: Rated answers that judge.
        liked: How many of them are liked; the others are disliked.
        raters: The number of raters they are attributed to.
        shown: Answers of the live model to these people's questions, unrated ones included.
        liked_of_shown: How many of them are liked.
        agreement: The chance that a liked answer gained more than another answer to the same question, or a disliked
            one less, 0 to 1.
        low, high: Its 95 % interval.
        p_value: The chance of such gains if votes carry no taste.
        alpha: The largest p-value that counts as evidence.
        further: About how many more rated answers would decide, or None if that cannot be estimated.
        likes: For each answer, whether it is liked.
        gains: For each answer, how much likelier the model that it judges finds it than the live model does, in nats
            per token; negative for a disliked answer that became less likely.
        contrasts: The mean of the same for other answers of the live model to the same question.
    """

    answers: int = 0
    liked: int = 0
    raters: int = 0
    shown: int = 0
    liked_of_shown: int = 0
    agreement: float = 0.5
    low: float = 0.0
    high: float = 1.0
    p_value: float = 1.0
    alpha: float = 0.05
    further: int | None = None
    likes: list[bool] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    contrasts: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Loss(Record):
    """The loss of a candidate against another model on questions with known answers.

    Attributes:
        questions: The number of questions that both answered; 0 if they were not compared.
        correct: The share that the candidate answers correctly, 0 to 1.
        reference: The share that the other model answers correctly.
        lost: Questions that only the other model answers correctly.
        gained: Questions that only the candidate answers correctly.
        bound: The upper bound of the loss, in hundredths of the questions.
        allowed: What may be lost.
        passed: Whether the loss is shown to be smaller; None if the questions leave it open.
    """

    questions: int = 0
    correct: float = 0.0
    reference: float = 0.0
    lost: int = 0
    gained: int = 0
    bound: float = 0.0
    allowed: float = 0.0
    passed: bool | None = None


@dataclass(frozen=True, slots=True)
class Drift(Record):
    """The differences in form between a candidate's answers and the live model's.

    Attributes:
        answers: The number of questions that both answered; 0 if they were not compared.
        facts: The number of different facts that they ask for.
        broken: Answers of the candidate that are empty or loop.
        live_broken: The live model's.
        broken_chance: The p-value of the test that the candidate has more of them.
        length: The candidate's mean length, in bytes.
        live_length: The live model's.
        length_chance: The p-value of the test that the candidate's answers are longer.
        distinct: Different answers of the candidate.
        live_distinct: The live model's.
        distinct_chance: The p-value of the test that the candidate repeats more answers.
    """

    answers: int = 0
    facts: int = 0
    broken: int = 0
    live_broken: int = 0
    broken_chance: float = 1.0
    length: float = 0.0
    live_length: float = 0.0
    length_chance: float = 1.0
    distinct: int = 0
    live_distinct: int = 0
    distinct_chance: float = 1.0

    @property
    def times_longer(self) -> float:
        """The candidate's mean length, as a multiple of the live model's."""
        return self.length / max(1.0, self.live_length)


_FORMER: Final = frozenset({"accepted", "held_out", "tokens", "live_nll", "nll"})
"""Numbers in reports of earlier versions, which judged by the likelihood of held-out answers."""


@dataclass(frozen=True, slots=True)
class Report(Record):
    """The verdict on a candidate and its numbers.

    Attributes:
        decision: The verdict.
        reason: Why it was not accepted.
        harmful: Whether it was shown to forget or to break something; then it never answers anyone.
        taste: Whether it follows the votes.
        questions: The number of factual questions on which the live model and the candidate are compared.
        live_correct: The share that the live model answers correctly, 0 to 1.
        correct: The share that the candidate answers correctly.
        live_alone: Questions that only the live model answers correctly.
        alone: Questions that only the candidate answers correctly.
        facts: The loss on factual questions against the live model.
        facts_base: The same against the base, unless it is the live model.
        leading: The loss on leading questions against the live model.
        leading_base: The same against the base, unless it is the live model.
        drift: How the answers to all these questions differ in form.
        broken: Some answers of the candidate that are empty or loop.
        samples: Some questions with both models' answers.
        seconds: The duration of the evaluation.
        effort: What it took to train the candidate.
    """

    decision: Decision
    reason: str = ""
    harmful: bool = False
    taste: Taste = field(default_factory=Taste)
    questions: int = 0
    live_correct: float = 0.0
    correct: float = 0.0
    live_alone: int = 0
    alone: int = 0
    facts: Loss = field(default_factory=Loss)
    facts_base: Loss = field(default_factory=Loss)
    leading: Loss = field(default_factory=Loss)
    leading_base: Loss = field(default_factory=Loss)
    drift: Drift = field(default_factory=Drift)
    broken: list[str] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    effort: Effort = field(default_factory=Effort)

    @property
    def accepted(self) -> bool:
        """Whether the model may answer."""
        return self.decision is Decision.ACCEPTED

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Return the report with these values; those of an earlier version are translated."""
        if "accepted" in values:
            values = {**values, "decision": Decision.ACCEPTED if values["accepted"] else Decision.REJECTED}
        values = {**values, "decision": Decision(values["decision"])}
        return super(Report, cls).from_values({name: value for name, value in values.items() if name not in _FORMER})
