"""One worker of a training on a Ray cluster, which runs the same fine-tuning as a training process on one machine."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from inference.process.yapf_import import import_yapf
from training.job import Job, Progress, outcome_file
from training.worker import attempt, rank
from training.xtuner.finetune import finetune


def train(given: dict[str, Any]) -> None:
    """Carry out the job of the file `given["job"]`, and put its progress into the queue `given["progress"]`.

    Ray Train calls it on each worker, and again when a worker or its node was lost: the training then
    resumes from its last checkpoint, unless it had failed for a reason of its own.

    Raises:
        RuntimeError: The job failed. Ray Train then ends the other workers.
    """
    import_yapf()
    job_file = Path(given["job"])
    if outcome_file(job_file).exists():
        return

    def say(progress: Progress) -> None:
        if rank() == 0:
            given["progress"].put(progress.to_json())

    with redirect_stdout(sys.stderr):
        outcome = attempt(job_file, Job, finetune, say)
    if not outcome.ok:
        raise RuntimeError(outcome.reason)
