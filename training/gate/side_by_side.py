"""Worker: write an HTML page with several models' answers to the same questions, side by side.

    python -m training.gate.side_by_side JOB.json

The models are loaded one after the other and decode greedily.
"""

from __future__ import annotations

from pathlib import Path

from training.command_jobs import CompareJob
from training.data.row_parser import open_question
from training.gate.answers_by_model import answers_by_model
from training.gate.comparison_sheet import Row, Sheet
from training.job import Outcome
from training.worker import Say, work


def compare(job: CompareJob, say: Say) -> Outcome:
    """Ask every model every question and write the page.

    Raises:
        TrainingError: A picture or a model cannot be loaded; the error message says which one.
    """
    images = Path(job.images)
    lessons = [open_question(picture, question, job.system, images) for picture, _, question in job.asked]
    columns = [answers for _, answers, _ in answers_by_model(job, lessons, say)]
    rows = [
        Row(question, answers, (images / picture,), caption=caption)
        for (picture, caption, question), answers in zip(job.asked, zip(*columns, strict=True), strict=True)
    ]
    names = tuple(name for name, _ in job.models)
    Sheet(f"{' · '.join(names)}: the same questions", names, tuple(rows)).write(Path(job.out))
    return Outcome(ok=True)


if __name__ == "__main__":
    work(CompareJob, compare)
