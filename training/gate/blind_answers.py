"""Worker: have two models answer the same questions, and write their answers as JSON.

    python -m training.gate.blind_answers JOB.json

The models are loaded one after the other and decode greedily.
"""

from __future__ import annotations

import json
from pathlib import Path

from training.command_jobs import BlindJob
from training.data.row_parser import open_question
from training.gate.answers_by_model import answers_by_model
from training.job import Outcome
from training.worker import Say, work


def answer(job: BlindJob, say: Say) -> Outcome:
    """Ask every model every question, and write a list of the models' answers for each question.

    Raises:
        TrainingError: A picture or a model cannot be loaded; the error message says which one.
    """
    images = Path(job.images)
    lessons = [open_question(picture, question, job.system, images) for picture, question in job.asked]
    columns = [answers for _, answers, _ in answers_by_model(job, lessons, say)]
    Path(job.out).write_text(json.dumps([*zip(*columns, strict=True)]), encoding="utf-8")
    return Outcome(ok=True)


if __name__ == "__main__":
    work(BlindJob, answer)
