"""What the evaluation found about a candidate, and what it took to make one. Standard library only.

Knows the numbers and what they mean; the verdict is evaluate.py's, and how it is shown to people run_sheet.py's and the
bot's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from training.json_record import Record


@dataclass(frozen=True, slots=True)
class Effort(Record):
    """What a run was taught with, and what that took: times in seconds, sizes in bytes.

    `taught` says how many samples of which source the candidate was trained on; `pairs` are the liked answers alone,
    with `votes` thumbs up of `raters` people, `too_long` those that the trainer left out. Of `liked` answers `cut` were
    cut off at the longest answer, and taught nothing. `corrections` of the pairs are better answers that people showed.
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


@dataclass(frozen=True, slots=True)
class Report(Record):
    """The evaluation's findings. `accepted` and its `reason` are the verdict; the rest is what it rests on.

    `live_nll` and `nll` are mean negative log-likelihoods in nats per answer token over the held-out liked answers.
    `live_correct` and `correct` are shares of the factual questions answered right, 0 to 1; `live_alone` and `alone`
    count those that only one of the two models got right. `broken` lists answers of the candidate that are empty or in
    loops. `samples` has some questions with both models' answers. `seconds` is what judging took, `effort` what
    came before.
    """

    accepted: bool
    reason: str = ""
    held_out: int = 0
    tokens: int = 0
    live_nll: float = 0.0
    nll: float = 0.0
    questions: int = 0
    live_correct: float = 0.0
    correct: float = 0.0
    live_alone: int = 0
    alone: int = 0
    broken: list[str] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    effort: Effort = field(default_factory=Effort)
