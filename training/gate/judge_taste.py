"""Worker: test whether what a run learned follows the votes.

    python -m training.gate.judge_taste JOB.json

The worker writes `evidence.json` into the job's directory. It does the part of an evaluation that needs the live model
or the base model in memory but not the merged one: it computes the scores of the taste test (`training.gate.taste`)
and, unless an engine serves the model, answers the first questions with known answers
(`training.gate.opening_answers`). They are kept for `training.gate.judge_candidate`. At most one model is loaded at a
time.
"""

from __future__ import annotations

from pathlib import Path

from training.data.row_parser import read_lessons
from training.evaluation_jobs import TasteJob
from training.gate.answer_backend import AnswerBackend
from training.gate.evaluated_models import EvaluatedModels
from training.gate.forgetting import Examinations
from training.gate.run_comparison_sheet import choose_rows
from training.gate.taste import TasteTest
from training.job import Outcome
from training.run_folder import TASTE
from training.worker import Say, StageProgress, work


def test(job: TasteJob, say: Say) -> Outcome:
    """Run the taste test, and write the evidence.

    Raises:
        TrainingError: The data is unusable.
    """
    lessons = list(read_lessons(Path(job.data), Path(job.images), system=job.system))
    backend, steps = AnswerBackend(job), StageProgress(say, "evaluating", 0)
    models = EvaluatedModels(job, backend, steps)
    live = models.of(Path(job.live))
    base = models.of(Path(job.base)) if job.base else live
    taste = TasteTest(job, lessons, steps)
    with Examinations.of(job) as examinations:
        # The candidate's answers and those for the sheet follow in the next job.
        steps.more(examinations.opening + 2 * len(choose_rows([each for each in lessons if each.liked])))
        of_live, of_base = (
            examinations.openings(each) if not backend.served(each.directory) else [] for each in (live, base)
        )
        models.expect(of_live if live is base else [*of_live, *of_base])
        if taste.answers:
            taste.open(backend.slot.load(live.directory))
        models.answer(of_live)
        if taste.answers:
            taste.judge(base.directory, backend.slot)
        models.answer(of_base)
    models.close()
    taste.result().write(Path(job.work) / TASTE)
    return Outcome(ok=True, steps=steps.done)


if __name__ == "__main__":
    work(TasteJob, test)
