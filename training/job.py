"""The training workers' jobs, progress and outcomes, exchanged as JSON files and lines of JSON.

The parent process writes `finetune.json` into the run's directory and starts the worker:
`python -m training.xtuner.finetune finetune.json`. The worker prints each `Progress` as a line of JSON
on standard output, and writes `finetune.outcome.json` next to the job file. The other workers handle
their own jobs in the same way; the evaluation also writes a `Report`. The parent and the workers import
this module, so it uses only the standard library.

The errors::

    TrainingError      training cannot run or yields no model; the message names the next step
    ├── RowError       (row_parser) a row is invalid
    │   └── TooLong    (encoding) a row has too many tokens, but is otherwise valid
    ├── OutOfMemory    (runner) training ran out of memory after its start
    └── EndNotSaved    (pipeline) a run has ended, but the ledger cannot record the end
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from training.json_record import Record

RATED: Final = "liked answers"
"""The name of the liked answers among a run's sources."""

DISLIKED: Final = "disliked answers"
"""The name of the disliked answers among a run's sources."""


class TrainingError(Exception):
    """The base class of this package's errors. The message says what to do next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJob(Record):
    """The fields that all jobs share. Paths are absolute.

    Attributes:
        worker: The base name of the job's files in its directory, and the module of its worker.
        work: The directory of the job and its outcome; for a job that belongs to a run, the run's directory.
        system: The system prompt for rows that have none.
        threads: The number of CPU threads; 0 for one per core.
        tiles: The maximum number of tiles per picture; 0 for the model's own limit.
    """

    worker: ClassVar[tuple[str, str]]

    work: str
    system: str
    threads: int = 0
    tiles: int = 0


@dataclass(frozen=True, slots=True)
class Job(WorkerJob):
    """A fine-tuning job.

    Attributes:
        run: The ID of the run.
        base: The checkpoint directory to train.
        data: The rated answers: a LLaVA JSON file whose `image` entries are relative to `images`; empty for
            none.
        images: The folder of users' pictures.
        sources: LLaVA files to mix in, each with `path`, `images` and `repeat_times` (None for a share of
            `replay`).
        replay: The number of samples that all the sources without `repeat_times` together add per liked row
            of `data`.
        first: The number of rows of `data` to use, counted from the first row; 0 for all rows.
        blocks: Numbers of rows. For each of them, before the training on all rows, an adapter is trained on
            that many rows from the start of `data`, in the folder `blocks/ROWS`.
        judged: A LLaVA file of the answers used to evaluate the candidate; empty for none. Source rows that show a
            picture from this file are not used.
        notes: The file of the `ImageIndex`; empty for none.
        former: The loss log of an earlier run, whose curve is drawn behind the new one; empty for none.
        device: "auto", "cpu" or "cuda".
        seed: The random seed.
        processes: The number of processes that train together.
        deepspeed: The stage of DeepSpeed's ZeRO; 0 to train without DeepSpeed.
        split: The number by which the batch size is divided; each step then accumulates more batches.
        features_gigabytes: The maximum disk space for the vision cache, in gigabytes.
        courtesy: The file through which an engine on the same GPU asks for priority
            (`inference.serving.first_token_signal`); empty for none.
        recipe: The user's XTuner configuration, which sets the hyperparameters; empty for none. The fields
            from `objective` on are those of `training.xtuner.recipes.Recipe`.
    """

    worker = ("finetune", "training.xtuner.finetune")

    run: str
    base: str
    data: str
    images: str
    sources: list[dict[str, Any]] = field(default_factory=list)
    replay: float = 1.0
    first: int = 0
    blocks: list[int] = field(default_factory=list)
    judged: str = ""
    notes: str = ""
    former: str = ""
    device: str = "auto"
    seed: int = 0
    processes: int = 1
    deepspeed: int = 0
    split: int = 1
    features_gigabytes: float = 20.0
    courtesy: str = ""
    recipe: str = ""
    objective: str = "sft"
    kl_penalty: float = 0.1
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
class MergeJob(WorkerJob):
    """A job that fills the empty directory `out` with a complete checkpoint made from `base` and `adapter`.

    `system` becomes the default system prompt of the chat template. If `tiles` is above 0, it becomes the
    checkpoint's limit on tiles per picture, as in training.
    """

    worker = ("merge", "training.merge")

    run: str
    base: str
    adapter: str
    out: str


@dataclass(frozen=True, slots=True)
class Progress(Record):
    """A progress report, printed as one line on a worker's standard output.

    `seconds_left` is an estimate, or None while unknown. `loss` is the mean over the most recent steps, up
    to a tenth of the steps of the training.
    """

    stage: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome(Record):
    """The result of a worker.

    Attributes:
        ok: Whether the worker succeeded.
        reason: A sentence that an operator can act on; empty if `ok`.
        too_large: Whether the same job may succeed with a larger `split`.
        log: The log that `reason` refers to; empty if there is none.
        adapter: The adapter directory; None unless a fine-tuning job succeeded.
        scalars: The log of losses; None unless a fine-tuning job succeeded.
        curve: The loss curve; None unless a fine-tuning job succeeded.
        steps: The number of optimizer steps or, for a taste test, of the evaluation's completed steps.
        seconds: The duration of the job, in seconds.
        peak_memory: The peak memory use, in bytes.
        samples: The number of samples from each source that were trained on.
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


def checked(outcome: Outcome) -> Outcome:
    """Return `outcome` if the worker succeeded.

    Raises:
        TrainingError: The worker failed; the message is the outcome's reason.
    """
    if not outcome.ok:
        raise TrainingError(outcome.reason)
    return outcome


def outcome_file(job_file: Path) -> Path:
    """Return the path of the outcome file that belongs to a job file."""
    return job_file.with_suffix(".outcome.json")


def ignore(progress: Progress) -> None:
    """Ignore a progress report."""


class Trainer(Protocol):
    """A runner of worker jobs, such as `training.launcher.ChildTrainer`."""

    async def run(self, job: WorkerJob, on_progress: Callable[[Progress], None] = ignore) -> Outcome:
        """Carry out one job and return its outcome.

        Cancelling the awaiting task ends the job. A job that fails raises no exception; its outcome contains the
        reason.
        """
        ...
