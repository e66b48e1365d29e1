"""The report of an evaluation: the verdict, its numbers, and the effort spent on training the candidate."""

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
    Reason("{few}; about {number} more would"),
    Reason("another model went live during the run, and its answers were to judge the new one"),
    Reason("the training diverged, {name} is not finite: lower training.knobs.learning_rate"),
    Reason("not enough memory: one pair at a time takes about {needed} GB of the card's, computed for a large picture"),
    Reason(
        "Only {free} GB are free on the disk of {directory}, but a run needs {needed} GB: remove old models, or lower "
        "training.min_free_gigabytes"
    ),
    Reason("Its answers are liked no less often."),
    Reason("another model went live during the run, so the answers of the former one cannot judge the new model"),
    Reason("its answers have {times} times the length of the live model's"),
)
"""Reasons that only earlier versions stored in reports, models and runs, listed so that they stay translatable."""


@dataclass(frozen=True, slots=True)
class Effort(Record):
    """The training data of a run, and the time, memory and disk space that the run took.

    Attributes:
        pairs: Liked answers that were trained on.
        raters: Users who liked the pairs.
        steps: Optimizer steps.
        training_seconds: The duration of the training, in seconds.
        merging_seconds: The duration of the merge, in seconds.
        peak_memory: The peak memory use of the training, in bytes.
        adapter_bytes: The size of the adapter, in bytes.
        taught: The number of samples from each source.
        too_long: Selected answers that the trainer left out as too long.
        votes: Thumbs up on the pairs.
        liked: Liked answers, whether selected or not.
        cut: Liked answers that reached `chat.max_new_tokens` and were not selected.
        corrections: Pairs that are corrections by users.
        largest_share: The largest share of the pairs that counts for one rater, from 0 to 1.
        over_share: Liked answers that were not selected because they exceed one rater's share.
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
    """The verdict on a candidate; the values are stored in reports."""

    ACCEPTED = "accepted"
    UNDECIDED = "undecided"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Taste(Record):
    """The evidence on whether a run's gains follow the votes (`training.gate.taste`).

    Attributes:
        answers: The number of rated answers used to evaluate the run.
        liked: How many of the rated answers are liked; the rest are disliked.
        raters: The number of raters that these answers count for.
        shown: The number of answers that the live model gave to these raters, including unrated ones.
        liked_of_shown: How many of the answers in `shown` are liked.
        agreement: The probability that a liked answer gained more than another answer to the same question,
            or a disliked one less, from 0 to 1.
        low, high: The 95 % confidence interval of `agreement`.
        p_value: The probability of such gains if votes express no taste.
        alpha: The largest p-value that counts as evidence.
        further: An estimate of how many more rated answers would settle the verdict, or None if there is no
            estimate.
        likes: For each rated answer, whether it is liked.
        gains: For each rated answer, how much likelier it is under the model evaluated on it than under the
            live model, in nats per token; negative for an answer that became less likely.
        contrasts: For each rated answer, the mean gain of other answers of the live model to the same
            question.
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
        questions: The number of questions that both models answered; 0 if the models were not compared.
        correct: The share of questions that the candidate answers correctly, from 0 to 1.
        reference: The share of questions that the other model answers correctly, from 0 to 1.
        lost: The number of questions that only the other model answers correctly.
        gained: The number of questions that only the candidate answers correctly.
        bound: The upper bound of the loss, in percentage points.
        allowed: The allowed loss, in percentage points.
        passed: Whether the loss is shown to be below `allowed`; None if more questions are needed to decide.
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
        answers: The number of questions that both models answered; 0 if the models were not compared.
        facts: The number of different facts that the questions ask for.
        broken: The number of the candidate's answers that are empty or loop.
        live_broken: The number of the live model's answers that are empty or loop.
        broken_chance: The p-value of the test that the candidate has more broken answers.
        length: The mean length of the candidate's answers, in bytes.
        live_length: The mean length of the live model's answers, in bytes.
        length_chance: The p-value of the test that the candidate's answers are longer.
        distinct: The number of different answers of the candidate.
        live_distinct: The number of different answers of the live model.
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
        """The mean length of the candidate's answers, as a multiple of the live model's mean length."""
        return self.length / max(1.0, self.live_length)


_FORMER: Final = frozenset({"accepted", "held_out", "tokens", "live_nll", "nll"})
"""Numbers in reports of earlier versions, which judged by the likelihood of held-out answers."""


@dataclass(frozen=True, slots=True)
class Report(Record):
    """The verdict on a candidate and the numbers behind it.

    Attributes:
        decision: The verdict.
        reason: Why the candidate was not accepted; empty if it was accepted.
        harmful: Whether the candidate was shown to forget or break something; such a candidate never answers
            users.
        taste: The evidence on whether the run's gains follow the votes.
        questions: The number of factual questions on which the live model and the candidate were compared.
        live_correct: The share of factual questions that the live model answers correctly, from 0 to 1.
        correct: The share of factual questions that the candidate answers correctly, from 0 to 1.
        live_alone: The number of factual questions that only the live model answers correctly.
        alone: The number of factual questions that only the candidate answers correctly.
        facts: The loss on factual questions against the live model.
        facts_base: The loss on factual questions against the base model, unless the live model is the base
            model.
        leading: The loss on leading questions against the live model.
        leading_base: The loss on leading questions against the base model, unless the live model is the base
            model.
        drift: How the answers to the factual and leading questions differ in form.
        broken: Some of the candidate's answers that are empty or loop.
        samples: Some factual questions with both models' answers.
        seconds: The duration of the evaluation, in seconds.
        effort: The data and resources used to train the candidate.
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
        """Whether the candidate was accepted and may answer users."""
        return self.decision is Decision.ACCEPTED

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Return the report with the given values, converting values from an earlier version."""
        if "accepted" in values:
            values = {**values, "decision": Decision.ACCEPTED if values["accepted"] else Decision.REJECTED}
        values = {**values, "decision": Decision(values["decision"])}
        return super(Report, cls).from_values({name: value for name, value in values.items() if name not in _FORMER})
