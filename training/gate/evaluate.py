"""Worker: is the candidate better than the live model on what people liked, and has it forgotten nothing?

    python -m training.gate.evaluate JOB.json

Writes `report.json`, `sheet.html` and `sheet.png` into the job's directory. The candidate is accepted when it finds the
held-out liked answers likelier than the live model does, loses few points on the factual questions, says nothing empty
and nothing in loops, and reads prompts as the same token ids. Both models are asked the same, greedily, one after the
other in memory.

Both were asked the same questions, so what counts for the facts are those that one of them alone answers right. As
many either way would be no loss; a loss is held against the candidate only when it is more than chance, by a sign test.
Where the drawn questions leave that open, more are asked.
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

from training.data.llava import read_lessons
from training.gate import run_sheet
from training.gate.factual_set import DRAWN, Question, draw_set, read_set
from training.gate.report import Report
from training.job import EvaluationJob, Outcome, TrainingError
from training.run_folder import QUESTIONS, REPORT
from training.worker import Say, Steps, use_device, work

if TYPE_CHECKING:
    from training.gate.scoring import Likelihood

CHANCE: Final = 0.02
"""A loss that a candidate as good as the live model shows more often than this is not held against it. Refusing one of
fifty good candidates costs a repeated run; at 0.05 it would be one of twenty, and at 0.001 nine questions lost and none
gained would pass."""

MORE: Final = 300
"""So many more drawn questions are asked when the first leave open whether a loss is real. A model that truly loses 5
points would be refused by 150 questions half of the time, with these on top six times of seven (simulated, each model
alone being right on another 1.5 % of the questions)."""

SHOWN_TOKENS: Final = 256
"""The longest answer on the sheet."""

_SAMPLES: Final = 5
_REPEATED: Final = re.compile(r"(.{4,60}?)\1{3,}|(.{2,3}?)\2{6,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Marks:
    """What one model achieved: likelihood of the liked answers, and its answers to the factual questions."""

    likelihood: Likelihood
    spoken: list[str]
    right: list[bool]

    @classmethod
    def of(cls, likelihood: Likelihood, questions: Sequence[Question], spoken: list[str]) -> Marks:
        """Judge the answers to the questions."""
        right = [each.right(said) for each, said in zip(questions, spoken, strict=True)]
        return cls(likelihood, spoken, right)

    @property
    def correct(self) -> float:
        """Share of right answers, 0 to 1."""
        return sum(self.right) / len(self.right)


@dataclass(frozen=True, slots=True)
class Facts:
    """How two models' answers to the same factual questions compare: how many each of them alone got right."""

    questions: int
    live_alone: int
    candidate_alone: int

    @classmethod
    def of(cls, live: Marks, candidate: Marks) -> Facts:
        """Count."""
        pairs = list(zip(live.right, candidate.right, strict=True))
        return cls(len(pairs), pairs.count((True, False)), pairs.count((False, True)))

    @property
    def lost(self) -> float:
        """Points of correctness that the candidate loses, in hundredths of the questions."""
        return 100 * (self.live_alone - self.candidate_alone) / self.questions

    @property
    def chance(self) -> float:
        """How often a candidate as good as the live model does so badly, 0 to 1.

        One-sided sign test: each question that one model alone gets right is a toss of a coin.
        """
        tossed = self.live_alone + self.candidate_alone
        return sum(comb(tossed, heads) for heads in range(self.live_alone, tossed + 1)) / (1 << tossed)

    def too_many(self, max_loss_points: float) -> bool:
        """Whether more points are lost than may be, real or not."""
        return self.lost > max_loss_points + 1e-9

    def doubtful(self, max_loss_points: float) -> bool:
        """Whether too many points are lost, but chance may be to blame."""
        return self.too_many(max_loss_points) and self.chance >= CHANCE


def broken(answer: str) -> bool:
    """Whether an answer says nothing, or one thing again and again: four times, or seven of a very short one."""
    if not re.search(r"\w", answer):
        return True
    # Laughter repeats single characters and rulers repeat marks; a loop repeats words.
    return any(re.search(r"\w", found[0]) for found in _REPEATED.finditer(answer))


def verdict(
    live: Marks, candidate: Marks, questions: Sequence[Question], *, max_loss_points: float, differs: str = ""
) -> Report:
    """Compare the marks; `differs` says where prompts differ. Every reason against the candidate is named."""
    reasons = []
    if not candidate.likelihood.mean < live.likelihood.mean:
        reasons.append(
            "it is no better at the held-out liked answers "
            f"(loss {candidate.likelihood.mean:.3f} a token, the live model {live.likelihood.mean:.3f})"
        )
    facts = Facts.of(live, candidate)
    if facts.too_many(max_loss_points) and not facts.doubtful(max_loss_points):
        reasons.append(
            f"it answers {candidate.correct:.1%} of the {facts.questions} factual questions right, the live model "
            f"{live.correct:.1%}: more of a loss than chance explains"
        )
    silent = [
        f"{question.text} → {answer}"
        for question, answer in zip(questions, candidate.spoken, strict=True)
        if broken(answer)
    ]
    if silent:
        reasons.append(f"{len(silent)} of its answers are empty or in loops")
    if differs:
        reasons.append(f"it would read other tokens than the engine: {differs}")
    # Where they differ in correctness first: that is what an admin wants to see.
    differing = sorted(range(len(questions)), key=lambda place: candidate.right[place] - live.right[place])[:_SAMPLES]
    return Report(
        accepted=not reasons,
        reason="; ".join(reasons),
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
                "question": questions[place].text,
                "live": live.spoken[place],
                "candidate": candidate.spoken[place],
            }
            for place in differing
        ],
    )


def evaluate(job: EvaluationJob, say: Say) -> Outcome:
    """Judge and write the report. Raises `TrainingError` when it cannot be judged."""
    begun = time.monotonic()
    device = use_device(job.device, job.threads)
    from training.gate.prompt_parity import disagreement
    from training.gate.scoring import PHOTOS, Speaker
    from training.xtuner.gpu_yield import GpuYield

    images = Path(job.images)
    held_out = list(read_lessons(Path(job.data), images, system=job.system))
    if not held_out:
        raise TrainingError(f"{job.data} has no rows: there is nothing to judge by")
    folder = Path(job.regression) if job.regression else Path(job.work) / QUESTIONS
    questions = read_set(folder) if job.regression else draw_set(folder)

    courtesy = GpuYield.open(job.courtesy)
    shown = run_sheet.chosen(held_out)
    steps = Steps(say, "evaluating", 2 * (len(questions) + len(shown)))

    def facts(speaker: Speaker, asked: Sequence[Question]) -> list[str]:
        lessons = [each.lesson(folder, job.system) for each in asked]
        return speaker.answers(lessons, folder, most_tokens=job.max_new_tokens, on_batch=steps.add)

    def marks(directory: str) -> tuple[Marks, list[str]]:
        speaker = Speaker(Path(directory), device=device, tiles=job.tiles, courtesy=courtesy)
        likelihood = speaker.likelihood(held_out, images)
        spoken = speaker.answers(shown, images, most_tokens=SHOWN_TOKENS, rows=PHOTOS, on_batch=steps.add)
        return Marks.of(likelihood, questions, facts(speaker, questions)), spoken

    def more(marks: Marks, directory: str) -> Marks:
        speaker = Speaker(Path(directory), device=device, tiles=job.tiles, courtesy=courtesy)
        return Marks.of(marks.likelihood, questions, marks.spoken + facts(speaker, questions[DRAWN:]))

    live, live_said = marks(job.live)
    candidate, candidate_said = marks(job.candidate)
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
        run_sheet.write(job, report, shown, live_said, candidate_said)
    except Exception:  # noqa: BLE001 what took hours to train is not lost for want of its picture
        traceback.print_exc()
    return Outcome(ok=True)


if __name__ == "__main__":
    work(EvaluationJob, evaluate)
