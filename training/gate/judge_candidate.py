"""Worker: decide whether a candidate follows the votes without having forgotten anything.

    python -m training.gate.judge_candidate JOB.json

The worker is started when the merge begins, prepares the questions and the sheet, and waits for `candidate.json` and
`evidence.json` in the job's directory. It writes `report.json`, `sheet.html` and `sheet.png` into this directory. The
candidate is accepted if the gains of its run are shown to follow the votes (`training.gate.judge_taste`), if it has
demonstrably not lost facts or begun to give broken answers (`training.gate.forgetting`), and if its
prompts have the same token IDs as the live model's. A model is loaded only if no engine serves it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Final

from storage.translatable_reason import Reason, join
from training.data.row_parser import read_lessons
from training.evaluation_jobs import Candidate, EvaluationJob, RunningEngine
from training.gate import run_comparison_sheet
from training.gate.answer_backend import AnswerBackend, greedy
from training.gate.evaluated_models import EvaluatedModels
from training.gate.forgetting import Examinations, Forgetting
from training.gate.remote_model import ModelQuestion, RemoteModels
from training.gate.report import Decision, Report, Taste
from training.gate.taste import judge
from training.job import Outcome, ignore
from training.plots import draw_gains
from training.run_folder import CANDIDATE, GAINS, REPORT, TASTE
from training.worker import Say, StageProgress, wait_for, work

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

    Everything that does not depend on the candidate is prepared before waiting for it.

    Raises:
        TrainingError: The data is unusable.
    """
    from training.gate.prompt_parity import disagreement

    folder, images = Path(job.work), Path(job.images)
    judging = list(read_lessons(Path(job.data), images, system=job.system))
    shown = run_comparison_sheet.choose_rows([each for each in judging if each.liked])
    of_live, of_candidate = (
        [ModelQuestion(Path(directory), lesson, images, greedy(SHOWN_TOKENS)) for lesson in shown]
        for directory in (job.live, job.candidate)
    )

    def may_load() -> bool:
        wait_for(folder / TASTE, say)  # until then, the taste test needs the memory
        wait((differing,))  # transformers 4.57's lazy imports fail if two threads import at once
        return True

    ended = Event()
    with Examinations.of(job) as examinations, ThreadPoolExecutor() as background, ExitStack() as stack:
        stack.callback(ended.set)  # after an error, no thread waits any longer
        replying = background.submit(_replies, folder, job.engines, of_live, ended)
        background.submit(run_comparison_sheet.prepare, shown, images)
        drawing = background.submit(_draw_gains, folder, ended)
        examinations.prepare(job.system)
        wait_for(folder / CANDIDATE, say)
        begun, ready = time.monotonic(), Candidate.read(folder / CANDIDATE)
        prompts = [each.prompt for each in judging]
        job = replace(job, engines=ready.engines)
        steps = StageProgress(say, "evaluating", 0, ready.tested)
        models = EvaluatedModels(job, AnswerBackend(job, may_load=may_load), steps)
        candidate = models.of(Path(job.candidate))
        differing = background.submit(disagreement, Path(job.live), Path(job.candidate), job.system, prompts)
        steps.more(2 * len(shown))
        models.expect(openings := examinations.openings(candidate))
        new = models.answer(openings, of_candidate)
        wait_for(folder / TASTE, say)
        # The taste test may have added answers of these models.
        live = models.of(Path(job.live))
        base = models.of(Path(job.base)) if job.base else live
        models.expect(openings := examinations.openings(base, live))
        replies = replying.result()
        left = [number for number, text in enumerate(replies) if text is None]
        if answered := len(replies) - len(left):
            steps.add(answered)
        others = iter(models.answer(openings, [of_live[number] for number in left]))
        old = [next(others) if text is None else text for text in replies]
        forgetting = examinations.examine(models, candidate, live, base)
    models.close()
    report = verdict(Taste.read(folder / TASTE), forgetting, differing.result())
    report = replace(report, seconds=ready.spent + time.monotonic() - begun, effort=ready.effort)
    report.write(folder / REPORT)
    try:
        drawing.result()
        run_comparison_sheet.write(job, report, shown, old, new)
    except Exception:  # noqa: BLE001 - a missing sheet must not discard hours of training
        traceback.print_exc()
    return Outcome(ok=True)


def _replies(
    folder: Path, engines: Sequence[RunningEngine], asked: Sequence[ModelQuestion], ended: Event
) -> list[str | None]:
    """Ask the live model's engines, once no other job asks them; the rest of their capacity is for users."""
    if not all(wait_for(folder / each, ignore, ended) for each in (CANDIDATE, TASTE)):
        return []
    return RemoteModels(engines).answers(asked, lambda *_: None)


def _draw_gains(folder: Path, ended: Event) -> None:
    if wait_for(folder / TASTE, ignore, ended) and (taste := Taste.read(folder / TASTE)).answers:
        draw_gains(taste, folder / GAINS)


if __name__ == "__main__":
    work(EvaluationJob, evaluate)
