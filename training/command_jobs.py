"""The jobs of commands: `thumbtune import` and `thumbtune compare`."""

from __future__ import annotations

from dataclasses import dataclass

from training.job import WorkerJob


@dataclass(frozen=True, slots=True)
class ImportJob(WorkerJob):
    """Import the LLaVA file `file`, with pictures under `images`, as the source `name` in the directory `out`.

    Its rows are validated with the tokenizer of `base` and for `max_length` tokens, or the limit of the user's
    configuration `recipe`, which is empty for none. `repeat_times` is how often the source is used, or None for a share
    of the replay.
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
