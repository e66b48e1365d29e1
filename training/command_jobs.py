"""The worker jobs of the commands `thumbtune import`, `thumbtune compare` and `thumbtune evaluate`."""

from __future__ import annotations

from dataclasses import dataclass

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
        repeat_times: How often each row of the source is used. None: the rows are drawn with those of other
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


@dataclass(frozen=True, slots=True)
class CompareJob(WorkerJob):
    """A job that asks every model every question and writes the answers side by side to the page `out`.

    Each of the `models` is a name and a checkpoint directory. Each entry of `asked` is a picture file under
    `images`, a caption and a question.
    """

    worker = ("compare", "training.gate.side_by_side")

    models: list[tuple[str, str]]
    asked: list[tuple[str, str, str]]
    images: str
    out: str
    device: str = "auto"
    max_new_tokens: int = 512


@dataclass(frozen=True, slots=True)
class ScoringJob(WorkerJob):
    """A job that asks every model the questions of a LLaVA file and writes the scored answers to the file `out`.

    Each of the `models` is a name and a checkpoint directory. The last answer of each row of `data` is the
    right one, and `images` is the folder of the pictures. `score` is a key of `scored_questions.SCORES`.
    """

    worker = ("score", "training.gate.scored_questions")

    models: list[tuple[str, str]]
    data: str
    images: str
    score: str
    out: str
    device: str = "auto"
    max_new_tokens: int = 512
