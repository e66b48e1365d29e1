"""Worker: decide whether a candidate follows the votes without having forgotten anything.

    python -m training.gate.judge_candidate JOB.json

The worker writes `report.json`, `sheet.html` and `sheet.png` into the job's directory. The candidate is
accepted if the gains of its run are shown to follow the votes (`training.gate.taste`), if it has
demonstrably not lost facts or begun to give broken answers (`training.gate.forgetting`), and if its
prompts have the same token IDs as the live model's. Only one model is loaded at a time.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from storage.translatable_reason import Reason, join
from training.data.row_parser import read_lessons
from training.gate import run_summary_sheet
from training.gate.forgetting import Examinations, Forgetting
from training.gate.report import Decision, Report, Taste
from training.gate.respondent import Respondents
from training.gate.taste import TasteTest, judge
from training.job import EvaluationJob, Outcome
from training.run_folder import REPORT
from training.worker import Say, StageProgress, use_device, work

if TYPE_CHECKING:
    from training.gate.local_model import LocalModel

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
    device = use_device(job.device, job.threads)
    from training.gate.local_model import ModelSlot, greedy
    from training.gate.prompt_parity import disagreement
    from training.xtuner.gpu_yield import GpuYield

    gpu_yield = GpuYield.open(job.courtesy)
    shown = run_summary_sheet.choose_rows([each for each in judging if each.liked])
    steps = StageProgress(say, "evaluating", 2 * len(shown))
    slot = ModelSlot(device=device, tiles=job.tiles, gpu_yield=gpu_yield)
    models = Respondents(job, device, steps)
    live, candidate = models.of(Path(job.live)), models.of(Path(job.candidate))
    base = models.of(Path(job.base)) if job.base else live
    test = TasteTest(job, judging, steps)

    def replies(model: LocalModel) -> list[str]:
        return model.answers(shown, images, greedy(SHOWN_TOKENS), on_batch=steps.add)

    with TemporaryDirectory(prefix="questions-", dir=job.work) as drawn:
        examinations = Examinations.of(job, Path(drawn))
        examinations.expect({base, live, candidate})
        test.open(slot.load(live.directory))
        of_live = replies(slot.load(live.directory))
        examinations.open(live, slot)
        examinations.open(base, slot)
        test.judge_blocks(base.directory, slot)
        test.judge_candidate(slot.load(candidate.directory))
        of_candidate = replies(slot.load(candidate.directory))
        examinations.open(candidate, slot)
        forgetting = examinations.examine(candidate, live, base, slot)
    models.close()
    differs = disagreement(live.directory, candidate.directory, job.system, [each.prompt for each in judging])
    report = verdict(test.result(), forgetting, differs)
    report = replace(report, seconds=time.monotonic() - begun, effort=job.effort)
    report.write(Path(job.work) / REPORT)
    try:
        run_summary_sheet.write(job, report, shown, of_live, of_candidate)
    except Exception:  # noqa: BLE001 - a missing sheet must not discard hours of training
        traceback.print_exc()
    return Outcome(ok=True)


if __name__ == "__main__":
    work(EvaluationJob, evaluate)
