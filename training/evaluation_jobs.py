"""The jobs of an evaluation: collecting the first answers, the taste test, and the verdict on the candidate.

The first collects answers to the first factual and leading questions from the live model's engine while the run
trains. The second runs while the candidate is merged; it needs the weights of the base and the live model, and
collects the answers of models without an engine. The third is started with the second, prepares the questions and
the sheet, and waits for the `Candidate`. Answers come from engines if possible: the live model's, and the one that
will serve the candidate if it is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from training.gate.report import Effort
from training.job import WorkerJob
from training.json_record import Record


@dataclass(frozen=True, slots=True)
class RunningEngine(Record):
    """An engine that serves a model and that jobs may query.

    Attributes:
        directory: The model's checkpoint directory.
        name: The model's name on the engine.
        url: The engine's address.
        key: The engine's access key, which is valid only while this engine runs.
        kind: The kind of engine.
        tiles: The maximum number of tiles per picture; None for the model's own limit.
        at_once: The maximum number of concurrent questions.
        token_timeout: The maximum time without a token, in seconds.
        first_words: The file that shows whether a user is waiting for the first token of an answer
            (`inference.serving.first_token_signal`); empty for none.
    """

    directory: str
    name: str
    url: str
    key: str
    kind: str
    tiles: int | None
    at_once: int
    token_timeout: float
    first_words: str = ""


def _engines(values: dict[str, Any]) -> list[RunningEngine]:
    return [RunningEngine(**each) for each in values.get("engines", [])]


class Engines(Protocol):
    """The engines that the jobs of an evaluation may query."""

    def of(self, model: str, directory: Path) -> list[RunningEngine]:
        """Return the running engines of a model, whose checkpoint is in `directory`."""
        ...

    def fit_beside_workers(self, directory: Path) -> bool:
        """Return whether a candidate's engine fits into memory while a worker has loaded the model in `directory`."""
        ...

    async def start(self, model: str, directory: Path) -> None:
        """Start engines for a candidate, if that is possible now."""
        ...


class NoEngines:
    """A substitute for `Engines` if no engine may be queried."""

    def of(self, model: str, directory: Path) -> list[RunningEngine]:
        """Return an empty list."""
        return []

    def fit_beside_workers(self, directory: Path) -> bool:
        """Return False."""
        return False

    async def start(self, model: str, directory: Path) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Rated(Record):
    """A rated answer used to judge a candidate.

    Attributes:
        row: The name of the answer's row.
        liked: Whether the answer was liked (True) or disliked (False).
        rater: A number for the rater that the answer counts for. It is not a user ID.
        block: The number of rows used to train the model that this answer judges; 0 for the candidate.
        temperature, top_p, top_k, max_new_tokens: The answer's sampling settings. `top_k` is None if
            unknown.
    """

    row: str
    liked: bool
    rater: int
    block: int
    temperature: float
    top_p: float
    max_new_tokens: int
    top_k: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingJob(WorkerJob):
    """The fields that the jobs of an evaluation share.

    Attributes:
        base: The model that the candidate was trained from; empty if `live` is that model.
        live: The checkpoint directory of the live model.
        data: The answers used to judge the candidate (LLaVA JSON, with pictures under `images`).
        regression: A folder with factual questions in `questions.json`; empty to ask about drawn shapes
            instead.
        answers: The folder in which models' answers to the regression questions are kept; empty to keep
            none.
        max_loss_points: The largest acceptable loss of correctness, in percentage points.
        engines: The engines that serve the models. A model without an engine is loaded by the job.
        courtesy: The file through which an engine on the same GPU asks for priority; empty for none.
    """

    run: str
    live: str
    data: str
    images: str
    base: str = ""
    regression: str = ""
    answers: str = ""
    device: str = "auto"
    max_loss_points: float = 2.0
    max_new_tokens: int = 64
    courtesy: str = ""
    engines: list[RunningEngine] = field(default_factory=list)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Return the job with the given values, as parsed from JSON."""
        return super(JudgingJob, cls).from_values({**values, "engines": _engines(values)})


@dataclass(frozen=True, slots=True)
class OpeningJob(JudgingJob):
    """A job that collects answers of models with an engine while the run trains."""

    worker = ("opening", "training.gate.opening_answers")


@dataclass(frozen=True, slots=True)
class TasteJob(JudgingJob):
    """A job that tests whether what a run learned follows the votes, and collects the reference models' answers.

    Attributes:
        adapter: The adapter of the candidate.
        rated: The ratings and sampling settings of the answers in `data`.
        attempt: The position of this run among the runs since the live model last changed, starting at 1.
        shown: The number of answers that the live model gave to the users whose ratings are in `rated`.
        liked_of_shown: The number of answers in `shown` that are liked.
    """

    worker = ("taste", "training.gate.judge_taste")

    adapter: str
    rated: list[Rated] = field(default_factory=list)
    attempt: int = 1
    shown: int = 0
    liked_of_shown: int = 0

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Return the job with the given values, as parsed from JSON."""
        return super(TasteJob, cls).from_values({**values, "rated": [Rated(**each) for each in values["rated"]]})


@dataclass(frozen=True, slots=True)
class EvaluationJob(JudgingJob):
    """A job that judges `candidate` against `live`, both checkpoint directories.

    It waits for the files `CANDIDATE` and `TASTE` (`training.run_folder`), the second of which the `TasteJob` writes.

    Attributes:
        live_name: The name of the live model in the report and the sheet.
        candidate_name: The name of the candidate in the report and the sheet.
        curve: The image file of the loss curve, for the sheet; empty for none.
    """

    worker = ("evaluate", "training.gate.judge_candidate")

    candidate: str
    live_name: str = "live"
    candidate_name: str = "candidate"
    curve: str = ""


@dataclass(frozen=True, slots=True)
class Candidate(Record):
    """A candidate that is ready to answer questions, and the run so far.

    Attributes:
        engines: The engines that serve the models, in place of those in the `EvaluationJob`.
        effort: The training data and resources that the run used, for the report and the sheet.
        tested: The number of the evaluation's steps that earlier jobs have completed.
        spent: The number of seconds that the evaluation has already taken.
    """

    engines: list[RunningEngine] = field(default_factory=list)
    effort: Effort = field(default_factory=Effort)
    tested: int = 0
    spent: float = 0.0

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Return the candidate with the given values, as parsed from JSON."""
        return super(Candidate, cls).from_values({**values, "engines": _engines(values)})
