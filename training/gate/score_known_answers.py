"""Worker: have models answer questions with known answers, and save whether each answer is right.

    python -m training.gate.score_known_answers JOB.json

The models are loaded one after the other and decode greedily. The result is a list with an entry for each
question: the question, the right answer, each model's answer, and whether it is right or, for the score
`loss`, the model's loss on the right answer. A page with the answers side by side can be written as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from storage.atomic_files import write_text
from training.command_jobs import ScoringJob, ScoringMethod
from training.data.row_parser import read_lessons
from training.evidence.score_summary import summarize
from training.gate.answers_by_model import answers_by_model
from training.gate.comparison_sheet import Row, Sheet
from training.gate.factual_set import contains
from training.job import Outcome, TrainingError
from training.worker import Say, work

_CHOICE: Final = re.compile(r"(?<![A-Za-z])(?:[B-H](?![A-Za-z])|A(?![A-Za-z]|\s+[a-z]))")
"""A letter from A to H that stands alone and is not an article in front of a word."""


def is_equal(answer: str, right: str) -> bool:
    """Return whether two answers are equal, apart from case, spaces, and punctuation at the end."""
    return _normal(answer) == _normal(right)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".。!！")


def is_contained(answer: str, right: str) -> bool:
    """Return whether an answer contains the right one; texts in Latin letters are matched as whole words."""
    return contains(answer, right.strip())


def is_choice(answer: str, right: str) -> bool:
    """Return whether the first letter from A to H that stands alone is the same in both answers."""
    chosen, wanted = _CHOICE.search(answer), _CHOICE.search(right)
    return chosen is not None and wanted is not None and chosen[0] == wanted[0]


SCORES: Final[dict[str, Callable[[str, str], bool]]] = {
    ScoringMethod.CONTAINS: is_contained,
    ScoringMethod.EXACT: is_equal,
    ScoringMethod.CHOICE: is_choice,
}
"""The ways to compare an answer with the right one."""


def score(job: ScoringJob, say: Say) -> Outcome:
    """Ask every model every question and write the result to `job.out`.

    Raises:
        TrainingError: A row or a picture is invalid, the file has no rows, or a model cannot be loaded.
    """
    lessons = list(read_lessons(Path(job.data), Path(job.images), system=job.system))
    if not lessons:
        raise TrainingError(f"{job.data} has no questions")
    answered, scores = dict[str, list[str]](), dict[str, Sequence[float]]()
    for name, answers, losses in answers_by_model(job, lessons, say, losses=job.score == ScoringMethod.LOSS):
        answered[name] = answers
        scores[name] = losses or [
            SCORES[job.score](answer, each.turns[-1].text) for answer, each in zip(answers, lessons, strict=True)
        ]
    entries = [
        {
            "question": each.turns[-2].text,
            "right": each.turns[-1].text,
            "answers": {name: answers[number] for name, answers in answered.items()},
            "scores": {name: scored[number] for name, scored in scores.items()},
        }
        for number, each in enumerate(lessons)
    ]
    write_text(Path(job.out), json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    if job.sheet:
        rows = zip(lessons, zip(*answered.values(), strict=True), strict=True)
        facts = [(name, "; ".join(filter(None, texts))) for name, *texts in summarize(job.score, scores)]
        Sheet(
            f"{' · '.join(answered)}: {Path(job.data).name}",
            ("given answer", *answered),
            tuple(Row.from_lesson(each, Path(job.images), (each.turns[-1].text, *answers)) for each, answers in rows),
            facts=tuple(facts),
            plots=((Path(job.curve), "The loss of each step, and its moving average."),) if job.curve else (),
        ).write(Path(job.sheet))
    return Outcome(ok=True)


if __name__ == "__main__":
    work(ScoringJob, score)
