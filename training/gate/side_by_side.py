"""Worker: write an HTML page with several models' answers to the same questions, side by side.

    python -m training.gate.side_by_side JOB.json

The models are loaded one after the other and decode greedily.
"""

from __future__ import annotations

from pathlib import Path

from training.command_jobs import CompareJob
from training.data.row_parser import open_question
from training.gate.sheet import Row, Sheet
from training.job import Outcome, TrainingError
from training.worker import Say, StageProgress, use_device, work


def compare(job: CompareJob, say: Say) -> Outcome:
    """Ask every model every question and write the page.

    Raises:
        TrainingError: A picture or a model cannot be loaded; the error message says which one.
    """
    device = use_device(job.device, job.threads)
    from training.gate.scoring import LocalModel, greedy

    images = Path(job.images)
    lessons = [open_question(picture, question, job.system, images) for picture, _, question in job.asked]
    steps = StageProgress(say, "answering", len(job.models) * len(lessons))
    columns = []
    for name, directory in job.models:
        try:
            model = LocalModel(Path(directory), device=device, tiles=job.tiles)
        except Exception as error:  # transformers and safetensors raise many kinds for a broken directory
            raise TrainingError(f"{name} cannot be loaded from {directory}: {error}") from error
        columns.append(model.answers(lessons, images, greedy(job.max_new_tokens), on_batch=steps.add))
        del model  # frees the memory before the next one is loaded
    rows = [
        Row(question, answers, (images / picture,), caption=caption)
        for (picture, caption, question), answers in zip(job.asked, zip(*columns, strict=True), strict=True)
    ]
    names = tuple(name for name, _ in job.models)
    Sheet(f"{' · '.join(names)}: the same questions", names, tuple(rows)).write(Path(job.out))
    return Outcome(ok=True)


if __name__ == "__main__":
    work(CompareJob, compare)
