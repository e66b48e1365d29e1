"""Worker: test whether what a run learned follows the votes.

    python -m training.gate.judge_taste JOB.json

The worker writes `evidence.json` into the job's directory. It does all the work of an evaluation that needs the
weights of models: the scores of the taste test (`training.gate.taste`), and the answers of models that no
engine serves to the first questions with known answers, which are kept for `training.gate.judge_candidate`. Only one
model is loaded at a time.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from training.data.row_parser import read_lessons
from training.evaluation_jobs import TasteJob
from training.gate.answering_models import AnsweringModels
from training.gate.forgetting import Examinations
from training.gate.respondent import Respondents
from training.gate.run_summary_sheet import choose_rows
from training.gate.taste import TasteTest
from training.job import Outcome
from training.run_folder import TASTE
from training.worker import Say, StageProgress, work


def test(job: TasteJob, say: Say) -> Outcome:
    """Test the taste, and write the evidence.

    Raises:
        TrainingError: The data is unusable.
    """
    lessons = list(read_lessons(Path(job.data), Path(job.images), system=job.system))
    models, steps = AnsweringModels(job), StageProgress(say, "evaluating", 0)
    respondents = Respondents(job, models, steps)
    live = respondents.of(Path(job.live))
    base = respondents.of(Path(job.base)) if job.base else live
    taste = TasteTest(job, lessons, steps)
    with TemporaryDirectory(prefix="questions-", dir=job.work) as drawn:
        examinations = Examinations.of(job, Path(drawn))
        # The candidate's answers, and those of engines, follow in the next job.
        steps.more(examinations.opening + 2 * len(choose_rows([each for each in lessons if each.liked])))
        examinations.expect({live, base})
        unserved = [each for each in (live, base) if not models.has_engine(each.directory)]
        if taste.answers:
            taste.open(models.slot.load(live.directory))
        if live in unserved:
            examinations.open(live)
        if taste.answers:
            taste.judge(base.directory, models.slot)
        if base in unserved:
            examinations.open(base)
    respondents.close()
    taste.result().write(Path(job.work) / TASTE)
    return Outcome(ok=True, steps=steps.done)


if __name__ == "__main__":
    work(TasteJob, test)
