"""Worker: decide whether the candidate is better than the live model on liked answers without losing facts.

    python -m training.gate.evaluate JOB.json

Writes `report.json`, `sheet.html` and `sheet.png` into the job's directory. The candidate is accepted if it gives the
held-out liked answers a higher likelihood than the live model, is shown to have forgotten and broken nothing
(`training.gate.forgetting`), and reads prompts as the same token ids. The models are loaded one after the other and
decode greedily; one is loaded again only if a comparison needs more of its answers.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from storage.translatable_reason import Reason, join
from training.data.llava import read_lessons
from training.gate import run_summary_sheet
from training.gate.forgetting import Examinations, Forgetting
from training.gate.report import Report
from training.gate.respondent import Respondents
from training.job import EvaluationJob, Outcome, TrainingError
from training.run_folder import REPORT
from training.worker import Say, StageProgress, use_device, work

if TYPE_CHECKING:
    from training.gate.scoring import Likelihood, LocalModel

SHOWN_TOKENS: Final = 256
"""Tokens of the longest answer on the sheet."""


@dataclass(frozen=True, slots=True)
class Replies:
    """What a model gives for the held-out liked answers: their likelihood, and its own answers for the sheet."""

    likelihood: Likelihood
    shown: list[str]


def verdict(live: Likelihood, candidate: Likelihood, forgetting: Forgetting, differs: str = "") -> Report:
    """Compare the results, and name every reason against the candidate; `differs` says where the prompts differ."""
    reasons = []
    if not candidate.mean < live.mean:
        reasons.append(
            Reason(
                "it is no better on the held-out liked answers (loss per token {new}, live model {live})",
                new=f"{candidate.mean:.3f}",
                live=f"{live.mean:.3f}",
            )
        )
    reasons += forgetting.reasons()
    if differs:
        reasons.append(Reason("its token IDs differ from the engine's: {difference}", difference=differs))
    return Report(
        accepted=not reasons,
        reason=join(reasons) if reasons else "",
        tokens=live.tokens,
        live_nll=live.mean,
        nll=candidate.mean,
        **forgetting.numbers(),
    )


def evaluate(job: EvaluationJob, say: Say) -> Outcome:
    """Judge the candidate and write the report and the sheet. Raises `TrainingError` if the data is unusable."""
    begun = time.monotonic()
    images = Path(job.images)
    held_out = list(read_lessons(Path(job.data), images, system=job.system))
    if not held_out:
        raise TrainingError(f"{job.data} has no rows: there is nothing to judge by")
    device = use_device(job.device, job.threads)
    from training.gate.prompt_parity import disagreement
    from training.gate.scoring import PHOTO_BATCH, ModelSlot, greedy
    from training.xtuner.gpu_yield import GpuYield

    gpu_yield = GpuYield.open(job.courtesy)
    shown = run_summary_sheet.choose_rows(held_out)
    steps = StageProgress(say, "evaluating", 2 * len(shown))
    slot = ModelSlot(device=device, tiles=job.tiles, gpu_yield=gpu_yield)
    models = Respondents(job, device, steps)
    live, candidate = models.of(Path(job.live)), models.of(Path(job.candidate))
    base = models.of(Path(job.base)) if job.base else live

    def replies(model: LocalModel) -> Replies:
        answers = model.answers(shown, images, greedy(SHOWN_TOKENS), batch_size=PHOTO_BATCH, on_batch=steps.add)
        return Replies(model.likelihood(held_out, images), answers)

    with TemporaryDirectory(prefix="questions-", dir=job.work) as drawn:
        examinations = Examinations.of(job, Path(drawn))
        examinations.expect({base, live, candidate})
        examinations.open(base, slot)
        of_live = replies(slot.load(live.directory))
        examinations.open(live, slot)
        of_candidate = replies(slot.load(candidate.directory))
        examinations.open(candidate, slot)
        forgetting = examinations.examine(candidate, live, base, slot)
    models.close()
    differs = disagreement(live.directory, candidate.directory, job.system, [each.prompt for each in held_out])
    report = verdict(of_live.likelihood, of_candidate.likelihood, forgetting, differs)
    seconds = time.monotonic() - begun
    report = replace(report, held_out=len(held_out), seconds=seconds, effort=job.effort)
    report.write(Path(job.work) / REPORT)
    try:
        run_summary_sheet.write(job, report, shown, of_live.shown, of_candidate.shown)
    except Exception:  # noqa: BLE001 - hours of training are worth more than their sheet
        traceback.print_exc()
    return Outcome(ok=True)


if __name__ == "__main__":
    work(EvaluationJob, evaluate)
