"""The worker jobs of the commands `import`, `compare`, `evaluate` and `finetune`, and of the blind comparison."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from training.job import WorkerJob


@dataclass(frozen=True, slots=True)
class ImportJob(WorkerJob):
    """A job that imports a LLaVA file as a source.

    Attributes:
        name: The name of the source.
        file: The LLaVA file.
        images: The folder that contains the pictures.
        out: The directory in which the source's folder is created.
        base: The checkpoint whose tokenizer is used to validate the rows.
        repeat_times: How many times each row of the source is used. None: the rows are drawn with those of other
            sources (`training.data.mixture`).
        recipe: The user's XTuner configuration, whose token limit replaces `max_length`, or an empty string.
        max_length: The maximum number of tokens per row.
    """

    worker = ("importing", "training.data.importing")

    name: str
    file: str
    images: str
    out: str
    base: str
    repeat_times: float | None = None
    recipe: str = ""
    max_length: int = 8192


class ScoringMethod(StrEnum):
    """The ways in which `thumbtune evaluate` and `finetune` compare an answer with the right one.

    `LOSS` is the loss of the right answer in nats per token, regardless of what the model itself answers.
    """

    CONTAINS = "contains"
    EXACT = "exact"
    CHOICE = "choice"
    LOSS = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingJob(WorkerJob):
    """A job in which every model answers every question.

    Attributes:
        models: The name and the checkpoint directory of each model.
        images: The folder of the pictures.
        out: The file to write.
        device: The device to use.
        max_new_tokens: The maximum number of tokens in an answer.
    """

    models: list[tuple[str, str]]
    images: str
    out: str
    device: str = "auto"
    max_new_tokens: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareJob(AskingJob):
    """A job that writes the answers side by side to a page.

    Each entry of `asked` consists of a picture file, a caption and a question.
    """

    worker = ("compare", "training.gate.side_by_side")

    asked: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindJob(AskingJob):
    """A job that writes the answers as JSON: for each question, a list of the models' answers.

    Each entry of `asked` consists of a picture file and a question.
    """

    worker = ("blind", "training.gate.blind_answers")

    asked: list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringJob(AskingJob):
    """A job that scores the answers to the questions of a LLaVA file.

    Attributes:
        data: The LLaVA file. The last answer of each row is the right one.
        score: The `ScoringMethod` by which an answer is compared with the right one.
        sheet: The HTML page to write as well, with the answers side by side; empty for none.
        curve: The image file of a loss curve for the page; empty for none.
    """

    worker = ("score", "training.gate.score_known_answers")

    data: str
    score: str
    sheet: str = ""
    curve: str = ""
