"""The child side of the training workers: reading the job, printing progress and writing the outcome.

The parent side is `training.launcher`. A worker may consist of several processes started by torchrun
or Ray Train. Rank 0 reports progress. If all processes succeed, it also writes the outcome; otherwise, the first
process to fail does.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Final, TypeVar

from inference.process import stack_dump
from inference.process.parent_watch import watch_parent
from inference.process.yapf_import import import_yapf
from storage.translatable_reason import Reason
from training.job import Outcome, Progress, TrainingError, WorkerJob, outcome_file

Say = Callable[[Progress], None]
AnyJob = TypeVar("AnyJob", bound=WorkerJob)


class StageProgress:
    """A reporter of the progress of a stage with `steps` steps, which also estimates the remaining time.

    `before` is the number of further steps of the stage that another worker has completed. If `steps` is 0, the number
    is not known yet, and `more` must add all steps before the first one is reported.

    Attributes:
        done: The number of completed steps, including `before`.
    """

    def __init__(self, say: Say, stage: str, steps: int, before: int = 0) -> None:
        self._say = say
        self._stage = stage
        self._steps = before + steps
        self._before = self.done = before
        self._started = time.monotonic()
        if steps:
            say(Progress(stage, before, self._steps))

    def more(self, steps: int) -> None:
        """Add steps to the stage's total."""
        self._steps += steps

    def add(self, done: int) -> None:
        """Report that `done` more steps are finished."""
        self.done += done
        left = (time.monotonic() - self._started) / (self.done - self._before) * (self._steps - self.done)
        self._say(Progress(self._stage, self.done, self._steps, seconds_left=round(left, 1)))


_NO_ROOM: Final = Reason(
    "not enough memory: stop other programs on the GPU, set training.while_training to pause, or lower "
    "inference.lmdeploy.blocks"
)


_POLL_SECONDS: Final = 0.02
_REPORT_SECONDS: Final = 10.0


def wait_for(file: Path, say: Say, stopped: Event | None = None) -> bool:
    """Wait until another process has written a file atomically, and report every ten seconds that this worker is alive.

    If the other process fails, the parent ends this worker.

    Returns:
        Whether the file exists: False if `stopped` was set before.
    """
    reported = time.monotonic()
    while not file.exists():
        if stopped is not None and stopped.is_set():
            return False
        time.sleep(_POLL_SECONDS)
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            say(Progress("waiting"))
    return True


def rank() -> int:
    """Return the rank of this process among the training processes, or 0 if it is the only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def use_device(device: str, threads: int) -> str:
    """Choose and return "cuda" or "cpu", and set the number of CPU threads (0 for torch's default).

    Call this function before torch is imported.

    Raises:
        TrainingError: `device` is "cuda", but there is no GPU.
    """
    if device == "cpu":
        # CUDA reads this when it is initialized, and hides the GPUs from all libraries.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise TrainingError("training.device is cuda, but torch sees no GPU: run make install-gpu, or choose cpu")
    return "cpu"


def too_little_memory(trouble: Reason) -> TrainingError:
    """Return the error to raise when training runs out of memory, naming settings that reduce memory use."""
    return TrainingError(
        Reason(
            "{trouble}: set training.while_training to pause, or in training.knobs choose method qlora, optimizer "
            "paged_adamw_8bit, or a lower max_length or rank",
            trouble=trouble,
        )
    )


def diverged() -> TrainingError:
    """Return the error to raise when the loss or the weights are no longer finite."""
    return TrainingError(Reason("the training diverged: lower training.knobs.learning_rate"))


def explained(error: ImportError | RuntimeError) -> Exception:
    """Return a `TrainingError` that says what to do next if the error is a known one, else the error itself."""
    text = str(error)
    if isinstance(error, ImportError):
        return TrainingError(f"a part of the trainer is missing or incompatible ({text}): run make install again")
    if "non-finite" in text:  # torch.nn.utils.clip_grad_norm_
        return diverged()
    if "DataLoader timed out" in text:
        return TrainingError(Reason("the processes that read the pictures have stopped; see finetune.log"))
    if is_out_of_memory(error):
        return too_little_memory(Reason("not enough memory to load the model"))
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error means that a GPU or CPU allocator is out of memory."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def attempt(kind: type[AnyJob], file: Path, do: Callable[[AnyJob, Say], Outcome], say: Say) -> Outcome:
    """Run `do` on the job in a file, with standard output redirected to standard error, and return the outcome.

    A `TrainingError` becomes the outcome's reason. Out of memory, the reason says what frees some.
    """
    begun = time.monotonic()
    with redirect_stdout(sys.stderr):
        try:
            outcome = do(kind.read(file), say)
        except TrainingError as error:
            outcome = Outcome(ok=False, reason=str(error))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            traceback.print_exc()
            outcome = Outcome(ok=False, reason=_NO_ROOM)
    return replace(outcome, seconds=time.monotonic() - begun)


def work(kind: type[AnyJob], do: Callable[[AnyJob, Say], Outcome]) -> None:
    """Run `do` on the job named on the command line and write its outcome.

    This is the main function of every worker. The process ends when its parent does, and writes its stacks to
    standard error on a signal. An exception raised by `do` becomes the outcome's reason; if it is unexpected,
    its traceback goes to standard error. Standard output carries only progress; the output of libraries goes to
    standard error. If one of several processes fails, it exits with status 1, and torchrun ends the others.
    """
    watch_parent()
    stack_dump.enable()
    import_yapf()
    lines = sys.stdout

    def say(progress: Progress) -> None:
        if rank() == 0:
            lines.write(progress.to_json() + "\n")
            lines.flush()

    job_file = Path(sys.argv[1]).resolve()
    try:
        outcome = attempt(kind, job_file, do, say)
    except Exception as error:  # noqa: BLE001 - the parent needs a reason for every error
        traceback.print_exc()
        outcome = Outcome(ok=False, reason=f"{type(error).__name__}: {error}")
    if not outcome.ok and world_size() > 1:
        _write_first(outcome, outcome_file(job_file))
        sys.exit(1)
    if rank() == 0:
        outcome.write(outcome_file(job_file))


def _write_first(outcome: Outcome, file: Path) -> None:
    """Write the outcome unless another process has already written one.

    The first process to fail knows the cause; the others merely lose contact with it.
    """
    own = file.with_suffix(f".{rank()}")
    outcome.write(own)
    with suppress(FileExistsError):
        os.link(own, file)
    own.unlink()
