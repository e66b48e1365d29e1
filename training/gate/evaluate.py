"""Worker: decide whether the candidate is better than the live model on liked answers without losing facts.

    python -m training.gate.evaluate JOB.json

Writes `report.json`, `sheet.html` and `sheet.png` into the job's directory. The candidate is accepted if it gives the
held-out liked answers a higher likelihood than the live model, loses few points on the factual questions, gives no
empty or looping answers, and reads prompts as the same token ids. The models are loaded one after the other and decode
greedily.

Both models answer the same factual questions, so those that exactly one of them answers correctly are compared. A loss
counts only if a sign test rejects chance. Where the drawn questions leave that open, more are asked.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Final

from storage.translatable_reason import Reason, join
from training.data.llava import read_lessons
from training.gate import run_summary_sheet
from training.gate.factual_set import DRAWN, Question, draw_set, read_set
from training.gate.report import Report
from training.job import EvaluationJob, Outcome, TrainingError
from training.run_folder import QUESTIONS, REPORT
from training.worker import Say, StageProgress, use_device, work

if TYPE_CHECKING:
    from training.gate.scoring import Likelihood

CHANCE: Final = 0.02
"""The level of the sign test: of candidates as good as the live model one in fifty is rejected, at the cost of a
repeated run. At 0.05 it would be one in twenty; at 0.001 nine lost questions and none gained would pass."""

MORE: Final = 300
"""Further drawn questions, for a loss that may be chance. A model that loses 5 points is rejected half of the time by
150 questions, and six times of seven with these (simulated; each model alone is right on another 1.5 % of the
questions)."""

SHOWN_TOKENS: Final = 256
"""Tokens of the longest answer on the sheet."""

_SAMPLES: Final = 5
_REPEATED: Final = re.compile(r"(.{4,60}?)\1{3,}|(.{2,3}?)\2{6,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Marks:
    """A model's results: the likelihood of the liked answers, and its answers to the factual questions."""

    likelihood: Likelihood
    answers: list[str]
    right: list[bool]

    @classmethod
    def of(cls, likelihood: Likelihood, questions: Sequence[Question], answers: list[str]) -> Marks:
        """Mark the answers to the questions."""
        right = [each.right(answer) for each, answer in zip(questions, answers, strict=True)]
        return cls(likelihood, answers, right)

    @property
    def correct(self) -> float:
        """The share of right answers, 0 to 1."""
        return sum(self.right) / len(self.right)


@dataclass(frozen=True, slots=True)
class Facts:
    """Count the factual questions that exactly one of two models answers correctly."""

    questions: int
    live_alone: int
    candidate_alone: int

    @classmethod
    def of(cls, live: Marks, candidate: Marks) -> Facts:
        """Count over the answers of both models."""
        pairs = list(zip(live.right, candidate.right, strict=True))
        return cls(len(pairs), pairs.count((True, False)), pairs.count((False, True)))

    @property
    def lost(self) -> float:
        """The points of correctness that the candidate loses, in hundredths of the questions."""
        return 100 * (self.live_alone - self.candidate_alone) / self.questions

    @property
    def chance(self) -> float:
        """The p-value of the one-sided sign test over the questions that exactly one model answers correctly."""
        count = self.live_alone + self.candidate_alone
        return sum(comb(count, lost) for lost in range(self.live_alone, count + 1)) / (1 << count)

    def too_many(self, max_loss_points: float) -> bool:
        """Return whether the candidate loses more points than allowed, by chance or not."""
        return self.lost > max_loss_points + 1e-9

    def doubtful(self, max_loss_points: float) -> bool:
        """Return whether the loss is too large, but may be chance."""
        return self.too_many(max_loss_points) and self.chance >= CHANCE


def broken(answer: str) -> bool:
    """Return whether an answer is empty or loops: it repeats one phrase four times, or a very short one seven times."""
    if not re.search(r"\w", answer):
        return True
    # Laughter repeats single characters, and rulers of tables repeat punctuation; loops repeat words.
    return any(re.search(r"\w", found[0]) for found in _REPEATED.finditer(answer))


def verdict(
    live: Marks, candidate: Marks, questions: Sequence[Question], *, max_loss_points: float, differs: str = ""
) -> Report:
    """Compare the results, and name every reason against the candidate; `differs` says where the prompts differ."""
    reasons = []
    if not candidate.likelihood.mean < live.likelihood.mean:
        reasons.append(
            Reason(
                "it is no better on the held-out liked answers (loss per token {new}, live model {live})",
                new=f"{candidate.likelihood.mean:.3f}",
                live=f"{live.likelihood.mean:.3f}",
            )
        )
    facts = Facts.of(live, candidate)
    if facts.too_many(max_loss_points) and not facts.doubtful(max_loss_points):
        reasons.append(
            Reason(
                "it answers {new} of the {questions} factual questions correctly, the live model {live}: a bigger "
                "drop than chance explains",
                new=f"{candidate.correct:.1%}",
                questions=facts.questions,
                live=f"{live.correct:.1%}",
            )
        )
    silent = [
        f"{question.text} → {answer}"
        for question, answer in zip(questions, candidate.answers, strict=True)
        if broken(answer)
    ]
    if silent:
        reasons.append(Reason("{number} of its answers are empty or repeat themselves", number=len(silent)))
    if differs:
        reasons.append(Reason("its token IDs differ from the engine's: {difference}", difference=differs))
    # Questions that the candidate alone gets wrong come first.
    samples = sorted(range(len(questions)), key=lambda index: candidate.right[index] - live.right[index])[:_SAMPLES]
    return Report(
        accepted=not reasons,
        reason=join(reasons) if reasons else "",
        tokens=live.likelihood.tokens,
        live_nll=live.likelihood.mean,
        nll=candidate.likelihood.mean,
        questions=len(questions),
        live_correct=live.correct,
        correct=candidate.correct,
        live_alone=facts.live_alone,
        alone=facts.candidate_alone,
        broken=silent[:_SAMPLES],
        samples=[
            {
                "question": questions[index].text,
                "live": live.answers[index],
                "candidate": candidate.answers[index],
            }
            for index in samples
        ],
    )


def evaluate(job: EvaluationJob, say: Say) -> Outcome:
    """Judge the candidate and write the report and the sheet. Raises `TrainingError` if the data is unusable."""
    begun = time.monotonic()
    device = use_device(job.device, job.threads)
    from training.gate.prompt_parity import disagreement
    from training.gate.scoring import PHOTO_BATCH, LocalModel, greedy
    from training.xtuner.gpu_yield import GpuYield

    images = Path(job.images)
    held_out = list(read_lessons(Path(job.data), images, system=job.system))
    if not held_out:
        raise TrainingError(f"{job.data} has no rows: there is nothing to judge by")
    folder = Path(job.regression) if job.regression else Path(job.work) / QUESTIONS
    questions = read_set(folder) if job.regression else draw_set(folder)

    gpu_yield = GpuYield.open(job.courtesy)
    shown = run_summary_sheet.choose_rows(held_out)
    steps = StageProgress(say, "evaluating", 2 * (len(questions) + len(shown)))

    def load(directory: str) -> LocalModel:
        return LocalModel(Path(directory), device=device, tiles=job.tiles, gpu_yield=gpu_yield)

    def facts(model: LocalModel, asked: Sequence[Question]) -> list[str]:
        lessons = [each.lesson(folder, job.system) for each in asked]
        return model.answers(lessons, folder, greedy(job.max_new_tokens), on_batch=steps.add)

    def marks(directory: str) -> tuple[Marks, list[str]]:
        model = load(directory)
        likelihood = model.likelihood(held_out, images)
        answers = model.answers(shown, images, greedy(SHOWN_TOKENS), batch_size=PHOTO_BATCH, on_batch=steps.add)
        return Marks.of(likelihood, questions, facts(model, questions)), answers

    def more(marks: Marks, directory: str) -> Marks:
        return Marks.of(marks.likelihood, questions, marks.answers + facts(load(directory), questions[DRAWN:]))

    live, live_answers = marks(job.live)
    candidate, candidate_answers = marks(job.candidate)
    if not job.regression and Facts.of(live, candidate).doubtful(job.max_loss_points):
        questions = draw_set(folder, DRAWN + MORE)
        steps.more(2 * MORE)
        live = more(live, job.live)
        candidate = more(candidate, job.candidate)
    differs = disagreement(Path(job.live), Path(job.candidate), job.system, [each.prompt for each in held_out])
    report = verdict(live, candidate, questions, max_loss_points=job.max_loss_points, differs=differs)
    seconds = time.monotonic() - begun
    report = replace(report, held_out=len(held_out), seconds=seconds, effort=job.effort)
    report.write(Path(job.work) / REPORT)
    try:
        run_summary_sheet.write(job, report, shown, live_answers, candidate_answers)
    except Exception:  # noqa: BLE001 - hours of training are worth more than their sheet
        traceback.print_exc()
    return Outcome(ok=True)


if __name__ == "__main__":
    work(EvaluationJob, evaluate)
