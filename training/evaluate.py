"""Worker: is the candidate better than the live model on what people liked, and has it forgotten nothing?

    python -m training.evaluate JOB.json

Writes `report.json` into the job's directory. The candidate is accepted when it finds the held-out liked answers
likelier than the live model does, loses few points on the factual questions, says nothing empty and nothing in loops,
and reads prompts as the same token ids. Both models are asked the same, greedily, one after the other in memory.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from training.job import EvaluationJob, Outcome, Progress, Report, TrainingError
from training.llava import read_lessons
from training.regression import Question, draw_set, read_set
from training.worker import Say, work

if TYPE_CHECKING:
    from training.scoring import Likelihood

REPORT: Final = "report.json"

_SHOWN: Final = 5
_REPEATED: Final = re.compile(r"(.{4,60}?)\1{3,}|(.{2,3}?)\2{6,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Marks:
    """What one model achieved: likelihood of the liked answers, and its answers to the factual questions."""

    likelihood: Likelihood
    spoken: list[str]
    right: list[bool]

    @property
    def correct(self) -> float:
        """Share of right answers, 0 to 1."""
        return sum(self.right) / len(self.right)


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
            "it is no better on the liked answers that were kept apart "
            f"({candidate.likelihood.mean:.3f} nats a token, the live model {live.likelihood.mean:.3f})"
        )
    lost = 100 * (live.correct - candidate.correct)
    if lost > max_loss_points + 1e-9:
        reasons.append(
            f"it answers {candidate.correct:.1%} of the factual questions right, the live model {live.correct:.1%}"
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
    differing = sorted(range(len(questions)), key=lambda place: candidate.right[place] - live.right[place])[:_SHOWN]
    return Report(
        accepted=not reasons,
        reason="; ".join(reasons),
        tokens=live.likelihood.tokens,
        live_nll=live.likelihood.mean,
        nll=candidate.likelihood.mean,
        questions=len(questions),
        live_correct=live.correct,
        correct=candidate.correct,
        broken=silent[:_SHOWN],
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
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from training.agreement import disagreement
    from training.scoring import Speaker

    if job.threads:
        torch.set_num_threads(job.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = Path(job.images)
    held_out = list(read_lessons(Path(job.data), images, system=job.system))
    if not held_out:
        raise TrainingError(f"{job.data} has no rows: there is nothing to judge by")
    folder = Path(job.regression) if job.regression else Path(job.work) / "questions"
    questions = read_set(folder) if job.regression else draw_set(folder)
    asked = [each.lesson(folder, job.system) for each in questions]

    def marks(directory: str, before: int) -> Marks:
        speaker = Speaker(Path(directory), device=device, tiles=job.tiles)
        likelihood = speaker.likelihood(held_out, images)
        total = 2 * len(asked)
        spoken = speaker.answers(
            asked,
            folder,
            most_tokens=job.max_new_tokens,
            on_batch=lambda done: say(Progress("evaluating", before + done, total)),
        )
        return Marks(likelihood, spoken, [each.right(said) for each, said in zip(questions, spoken, strict=True)])

    say(Progress("evaluating", 0, 2 * len(asked)))
    live = marks(job.live, 0)
    candidate = marks(job.candidate, len(asked))
    differs = disagreement(Path(job.live), Path(job.candidate), job.system, [each.prompt for each in held_out])
    report = verdict(live, candidate, questions, max_loss_points=job.max_loss_points, differs=differs)
    seconds = time.monotonic() - begun
    replace(report, held_out=len(held_out), seconds=seconds).write(Path(job.work) / REPORT)
    return Outcome(ok=True)


if __name__ == "__main__":
    work(EvaluationJob, evaluate)
