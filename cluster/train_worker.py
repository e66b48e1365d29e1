"""One worker of a training job on a Ray cluster, which runs the same fine-tuning as a process without Ray."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference.process.yapf_import import import_yapf
from training.job import Job, Outcome, Progress, TrainingError, outcome_file
from training.worker import rank
from training.xtuner.finetune import finetune


def train(given: dict[str, Any]) -> None:
    """Run the job in the file `given["job"]`, and put its progress on the queue `given["progress"]`.

    Ray Train calls this function on each worker, and again after an unexpected error, such as the loss of a
    worker or its node; the job then resumes from its last checkpoint.

    Raises:
        RuntimeError: The job failed, for the reason in its outcome. Ray Train stops the other workers.
    """
    import_yapf()
    job_file = Path(given["job"])
    if outcome_file(job_file).exists():
        return
    begun = time.monotonic()

    def say(progress: Progress) -> None:
        if rank() == 0:
            given["progress"].put(progress.to_json())

    with redirect_stdout(sys.stderr):
        try:
            outcome = finetune(Job.read(job_file), say)
        except TrainingError as error:
            outcome = Outcome(ok=False, reason=str(error))
    if rank() == 0 or not outcome.ok:
        replace(outcome, seconds=time.monotonic() - begun).write(outcome_file(job_file))
    if not outcome.ok:
        raise RuntimeError(outcome.reason)
