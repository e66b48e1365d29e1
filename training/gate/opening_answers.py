"""Worker: collect models' answers to the first questions with known answers while other workers of the run are busy.

    python -m training.gate.opening_answers JOB.json

The answers come only from engines that are running already, and are kept for the other jobs of the evaluation.
"""

from __future__ import annotations

from pathlib import Path

from training.evaluation_jobs import OpeningJob
from training.gate.answer_backend import AnswerBackend
from training.gate.evaluated_models import EvaluatedModels
from training.gate.forgetting import Examinations
from training.job import Outcome
from training.worker import Say, StageProgress, work


def answer(job: OpeningJob, say: Say) -> Outcome:
    """Have the models that an engine serves answer the opening questions.

    Raises:
        TrainingError: The questions are invalid, or an engine does not answer.
    """
    backend, steps = AnswerBackend(job, may_load=lambda: False), StageProgress(say, "evaluating", 0)
    models = EvaluatedModels(job, backend, steps)
    with Examinations.of(job) as examinations:
        openings = examinations.openings(*(models.of(Path(each.directory)) for each in job.engines))
        models.expect(openings)
        models.answer(openings)
    models.close()
    return Outcome(ok=True, steps=steps.done)


if __name__ == "__main__":
    work(OpeningJob, answer)
