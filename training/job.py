"""What the training workers are told and what they report: JSON files and JSON lines.

Standard library only: both sides of the process border import it. The parent writes `finetune.json` into the
run's directory and starts `python -m training.xtuner.finetune finetune.json`; the worker prints one JSON `Progress` a
line on standard output and writes `finetune.outcome.json` beside the job. `training.merge` and `training.gate.evaluate`
work the same way with their own job, and the evaluation writes a `Report`. Knows nothing about XTuner or the ledger.

The error family::

    TrainingError            no training, or no model came of it; the text tells the next step
    ├── TooFewPairs          (selection) too little to train on
    ├── RowError             (llava) a row of the data that would teach something else than it says
    │   └── TooLong          (encoding) one with more tokens than a training takes, and good otherwise
    ├── RegressionSetError   (regression) the factual questions to judge by are not there or not usable
    ├── OutOfMemory          (runner) a training that had begun found too little memory
    ├── RunFailed            (pipeline) a run ended without a model
    └── EndNotSaved          (pipeline) a run ended, and the ledger could not be told
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from training.gate.report import Effort
from training.json_record import Record

RATED: Final = "liked answers"
"""What a run's own data is called among the sources that it was taught with."""


class TrainingError(Exception):
    """Base of everything the training room raises on purpose. The text tells the next step."""


@dataclass(frozen=True, slots=True)
class Job(Record):
    """One fine-tuning run. Paths are absolute. Counts are samples, `max_length` is tokens, `epochs` passes.

    `data` is a LLaVA JSON file whose `image` entries are relative to `images`; `work` the run's directory.
    `sources` are other LLaVA files to mix in: `path`, `images` and `repeat_times` each, the last None where the source
    shares in `replay` samples for each row of `data`. None of their rows about a picture of `held_out`, a file like
    `data`, is taken. The file `notes` remembers which pictures are whole; empty: nothing does.
    `system` is the persona of rows that name none; `former` an earlier run's log of losses, to lie under this one's
    curve, empty without one. `tiles` and `threads` 0 mean: as the model says, all cores. `processes` is how many train
    together and `deepspeed` the stage of ZeRO, 0 for none; `split` above 1 computes smaller batches, and more of them
    in a step. `features_gigabytes` bounds what is kept of the pictures on disk while the run lasts. `courtesy` is the
    file that says when an engine on the same machine goes first (`inference.serving.pressure`); empty for none. The
    names from `method` on are those of `training.xtuner.hyperparameters.Recipe`; where `recipe`, a file, is given it
    has the numbers.
    """

    run: str
    base: str
    data: str
    images: str
    work: str
    system: str
    sources: list[dict[str, Any]] = field(default_factory=list)
    replay: float = 1.0
    held_out: str = ""
    notes: str = ""
    former: str = ""
    device: str = "auto"
    threads: int = 0
    seed: int = 0
    tiles: int = 0
    processes: int = 1
    deepspeed: int = 0
    split: int = 1
    features_gigabytes: float = 20.0
    courtesy: str = ""
    recipe: str = ""
    method: str = "qlora"
    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    targets: str = ""
    vision_rank: int = 0
    projector: bool = True
    epochs: float = 6
    batch: int = 4
    accumulation: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 3e-5
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.05
    clip: float = 1.0
    warmup: float = 0.03
    max_length: int = 8192
    checkpointing: bool | str = "auto"
    save_steps: int = 200
    keep_checkpoints: int = 2


@dataclass(frozen=True, slots=True)
class MergeJob(Record):
    """Fill `out`, an empty directory, with a complete checkpoint made from `base` and `adapter`.

    `system` is the persona that the chat template speaks when a request has none; `work` the run's directory.
    `tiles` above 0 becomes the checkpoint's own number of tiles a picture: the one it was trained with.
    """

    run: str
    base: str
    adapter: str
    out: str
    work: str
    system: str
    threads: int = 0
    tiles: int = 0


@dataclass(frozen=True, slots=True)
class EvaluationJob(Record):
    """Judge `candidate` against `live`, both checkpoint directories.

    `data` holds the held-out liked answers (LLaVA JSON, pictures under `images`). `regression` is a folder with
    `questions.json`; empty for the drawn shapes. `max_loss_points` is in hundredths of correctness. For the report and
    the sheet: the two models' names, the picture of the loss (empty: none) and what the candidate took so far.
    `courtesy` is as in a `Job`.
    """

    run: str
    candidate: str
    live: str
    data: str
    images: str
    work: str
    system: str
    regression: str = ""
    device: str = "auto"
    threads: int = 0
    tiles: int = 0
    max_loss_points: float = 2.0
    max_new_tokens: int = 64
    live_name: str = "live"
    candidate_name: str = "candidate"
    curve: str = ""
    courtesy: str = ""
    effort: Effort = field(default_factory=Effort)


@dataclass(frozen=True, slots=True)
class ImportJob(Record):
    """Make the LLaVA file `file`, its pictures under `images`, the source `name` in the directory `out`.

    Its rows are checked with the tokenizer of `base` and for `max_length` tokens, or as many as the configuration
    `recipe` takes, empty for none. `system` is the persona of rows that name none; `repeat_times` how often the source
    will be taken, None for its share. `work` is for job and outcome.
    """

    name: str
    file: str
    images: str
    out: str
    base: str
    work: str
    system: str
    repeat_times: float | None = None
    threads: int = 0
    tiles: int = 0
    recipe: str = ""
    max_length: int = 8192


@dataclass(frozen=True, slots=True)
class CompareJob(Record):
    """Let every model answer every question, and lay the answers side by side on the page `out`.

    `models` are (name, checkpoint directory); `asked` (picture file under `images`, its caption, question).
    """

    models: list[tuple[str, str]]
    asked: list[tuple[str, str, str]]
    images: str
    work: str
    out: str
    system: str
    device: str = "auto"
    threads: int = 0
    tiles: int = 0
    max_new_tokens: int = 512


WorkerJob = Job | MergeJob | EvaluationJob | ImportJob | CompareJob


@dataclass(frozen=True, slots=True)
class Progress(Record):
    """One line on the worker's standard output. `seconds_left` is an estimate, None while unknown; `loss` is the mean
    over the last tenth of a training's steps.
    """

    stage: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome(Record):
    """How a worker ended. `adapter` is a PEFT directory, `scalars` XTuner's loss log; None unless `ok`.

    `reason` is empty when `ok`; otherwise one sentence an operator can act on. `too_large` says that the same job with
    a greater `split` may succeed. `log` is the file that tells more than the reason, which names it; empty without one.
    `peak_memory` is in bytes. `samples` says how many were trained on of which source.
    """

    ok: bool
    reason: str = ""
    too_large: bool = False
    log: str = ""
    adapter: str | None = None
    scalars: str | None = None
    curve: str | None = None
    steps: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    samples: dict[str, int] = field(default_factory=dict)


def outcome_file(job_file: Path) -> Path:
    """Where the outcome of a job file is written."""
    return job_file.with_suffix(".outcome.json")


def ignore(progress: Progress) -> None:
    """What to do with progress that nobody watches."""


class Trainer(Protocol):
    """Run jobs: in child processes, or a fake in tests."""

    async def run(self, job: WorkerJob, on_progress: Callable[[Progress], None] = ignore) -> Outcome:
        """Carry out one job; cancelling the awaiting task ends it.

        Failed work does not raise: the outcome has its reason.
        """
        ...
