"""One worker of a training job on a Ray cluster, which runs the same fine-tuning as a process without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.process.yapf_import import import_yapf
from training.job import Job, Progress, outcome_file
from training.worker import attempt, rank
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

    def say(progress: Progress) -> None:
        if rank() == 0:
            given["progress"].put(progress.to_json())

    outcome = attempt(Job, job_file, finetune, say)
    if rank() == 0 or not outcome.ok:
        outcome.write(outcome_file(job_file))
    if not outcome.ok:
        raise RuntimeError(outcome.reason)
