"""Worker: decide whether a candidate follows the votes without having forgotten anything.

    python -m training.gate.judge_candidate JOB.json

The worker reads `evidence.json`, and writes `report.json`, `sheet.html` and `sheet.png` into the job's directory. The
candidate is accepted if the gains of its run are shown to follow the votes (`training.gate.judge_taste`), if it has
demonstrably not lost facts or begun to give broken answers (`training.gate.forgetting`), and if its
prompts have the same token IDs as the live model's. A model is loaded only if no engine serves it.
"""

from __future__ import annotations

import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

from storage.translatable_reason import Reason, join
from training.data.row_parser import read_lessons
from training.evaluation_jobs import EvaluationJob
from training.gate import run_comparison_sheet
from training.gate.answer_backend import AnswerBackend, greedy
from training.gate.evaluated_models import EvaluatedModels
from training.gate.forgetting import Examinations, Forgetting
from training.gate.remote_model import ModelQuestion
from training.gate.report import Decision, Report, Taste
from training.gate.taste import judge
from training.job import Outcome
from training.run_folder import REPORT, TASTE
from training.worker import Say, StageProgress, work

SHOWN_TOKENS: Final = 128
"""The maximum number of tokens in an answer on the sheet."""


def verdict(taste: Taste, forgetting: Forgetting, differs: str = "") -> Report:
    """Return a report with the decision and every reason against the candidate.

    `differs` says where the candidate's prompts differ from the live model's; it is empty if none differ.
    """
    harm = forgetting.reasons()
    if differs:
        harm.append(Reason("its token IDs differ from the engine's: {difference}", difference=differs))
    decision, doubt = judge(taste)
    reasons = [*([doubt] if doubt else []), *harm]
    return Report(
        decision=Decision.REJECTED if harm else decision,
        reason=join(reasons) if reasons else "",
        harmful=bool(harm),
        taste=taste,
        **forgetting.numbers(),
    )


def evaluate(job: EvaluationJob, say: Say) -> Outcome:
    """Judge the candidate, and write the report and the sheet.

    Raises:
        TrainingError: The data is unusable.
    """
    begun = time.monotonic()
    images = Path(job.images)
    judging = list(read_lessons(Path(job.data), images, system=job.system))
    from training.gate.prompt_parity import disagreement

    shown = run_comparison_sheet.choose_rows([each for each in judging if each.liked])
    backend, steps = AnswerBackend(job), StageProgress(say, "evaluating", 0, job.tested)
    models = EvaluatedModels(job, backend, steps)
    live, candidate = models.of(Path(job.live)), models.of(Path(job.candidate))
    base = models.of(Path(job.base)) if job.base else live
    replies = [
        ModelQuestion(each.directory, lesson, images, greedy(SHOWN_TOKENS))
        for each in (live, candidate)
        for lesson in shown
    ]
    with Examinations.of(job) as examinations, ThreadPoolExecutor(1) as background:
        prompts = [each.prompt for each in judging]
        differing = background.submit(disagreement, live.directory, candidate.directory, job.system, prompts)
        background.submit(run_comparison_sheet.load_pictures, shown, images)
        steps.more(len(replies))
        models.expect(openings := examinations.openings(base, live, candidate))
        answers = models.answer(openings, replies)
        forgetting = examinations.examine(models, candidate, live, base)
    models.close()
    report = verdict(Taste.read(Path(job.work) / TASTE), forgetting, differing.result())
    report = replace(report, seconds=job.spent + time.monotonic() - begun, effort=job.effort)
    report.write(Path(job.work) / REPORT)
    try:
        run_comparison_sheet.write(job, report, shown, answers[: len(shown)], answers[len(shown) :])
    except Exception:  # noqa: BLE001 - a missing sheet must not discard hours of training
        traceback.print_exc()
    return Outcome(ok=True)


if __name__ == "__main__":
    work(EvaluationJob, evaluate)
