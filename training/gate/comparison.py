"""Worker: let several models answer the same questions about the same pictures, and lay them side by side.

    python -m training.gate.comparison JOB.json

Writes one HTML page. The models are in memory one after the other, answers are greedy. Knows no runs and no verdicts.
"""

from __future__ import annotations

from pathlib import Path

from training.data.llava import open_question
from training.gate.sheet import Row, Sheet
from training.job import CompareJob, Outcome, TrainingError
from training.worker import Say, Steps, use_device, work


def compare(job: CompareJob, say: Say) -> Outcome:
    """Ask every model everything and write the page. Raises `TrainingError`, which names the model that fails."""
    device = use_device(job.device, job.threads)
    from training.gate.scoring import PHOTOS, Speaker

    images = Path(job.images)
    lessons = [open_question(picture, question, job.system, images) for picture, _, question in job.asked]
    steps = Steps(say, "answering", len(job.models) * len(lessons))
    columns = []
    for name, directory in job.models:
        try:
            speaker = Speaker(Path(directory), device=device, tiles=job.tiles)
        except Exception as error:  # the libraries that read its files raise almost anything
            raise TrainingError(f"{name} cannot be loaded from {directory}: {error}") from error
        columns.append(
            speaker.answers(lessons, images, most_tokens=job.max_new_tokens, rows=PHOTOS, on_batch=steps.add)
        )
        del speaker  # before the next one is in memory
    rows = [
        Row(question, answers, (images / picture,), caption=caption)
        for (picture, caption, question), answers in zip(job.asked, zip(*columns, strict=True), strict=True)
    ]
    names = tuple(name for name, _ in job.models)
    Sheet(f"{' · '.join(names)}: the same questions", names, tuple(rows)).write(Path(job.out))
    return Outcome(ok=True)


if __name__ == "__main__":
    work(CompareJob, compare)
