"""Worker: have models answer questions with known answers, and save whether each answer is right.

    python -m training.gate.own_questions JOB.json

The models are loaded one after the other and decode greedily. The result is a list with an entry for each
question: the question, the right answer, each model's answer, and whether it is right. A page with the
answers side by side can be written as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from storage.atomic_files import write_text
from training.command_jobs import Score, ScoringJob
from training.data.llava import Lesson
from training.data.row_parser import read_lessons
from training.evidence.right_answers import gain, share
from training.gate.asking import answers_of_each
from training.gate.factual_set import contains
from training.gate.sheet import Row, Sheet
from training.job import Outcome, TrainingError
from training.worker import Say, work

_CHOICE: Final = re.compile(r"(?<![A-Za-z])(?:[B-H](?![A-Za-z])|A(?![A-Za-z]|\s+[a-z]))")
"""A letter that stands alone, and is not the article of a following word."""


def is_equal(answer: str, right: str) -> bool:
    """Return whether two answers are equal, apart from case, spaces, and punctuation at the end."""
    return _normal(answer) == _normal(right)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".。!！")


def is_contained(answer: str, right: str) -> bool:
    """Return whether an answer contains the right one; texts in Latin letters must match whole words."""
    return contains(answer, right.strip())


def is_choice(answer: str, right: str) -> bool:
    """Return whether the first letter from A to H that stands alone is the same in both answers."""
    chosen, wanted = _CHOICE.search(answer), _CHOICE.search(right)
    return chosen is not None and wanted is not None and chosen[0] == wanted[0]


SCORES: Final[dict[str, Callable[[str, str], bool]]] = {
    Score.CONTAINS: is_contained,
    Score.EXACT: is_equal,
    Score.CHOICE: is_choice,
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
    said = dict(answers_of_each(job, lessons, say))
    is_right = SCORES.get(job.score)
    entries: list[dict[str, Any]] = []
    for number, (*_, question, right) in enumerate(each.turns for each in lessons):
        answers = {name: each[number] for name, each in said.items()}
        scores = {name: is_right(answer, right.text) for name, answer in answers.items()} if is_right else {}
        entries.append({"question": question.text, "right": right.text, "answers": answers, "scores": scores})
    write_text(Path(job.out), json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    if job.sheet:
        _write_sheet(job, lessons, said, [each["scores"] for each in entries])
    return Outcome(ok=True)


def _write_sheet(
    job: ScoringJob, lessons: Sequence[Lesson], said: dict[str, list[str]], scores: Sequence[dict[str, bool]]
) -> None:
    """Write the page with the given answers and the models', side by side."""
    rows = [
        Row.from_lesson(lesson, Path(job.images), (lesson.turns[-1].text, *answers))
        for lesson, answers in zip(lessons, zip(*said.values(), strict=True), strict=True)
    ]
    right = {name: [each[name] for each in scores] for name in said} if job.score else {}
    first = next(iter(said))
    facts = [(f"{name}, right", share(each)) for name, each in right.items()]
    facts += [(f"{name} against {first}", gain(right[first], right[name])) for name in right if name != first]
    Sheet(
        f"{' · '.join(said)}: {Path(job.data).name}",
        ("given answer", *said),
        tuple(rows),
        facts=tuple(facts),
        plots=((Path(job.curve), "the loss of each step, and its moving average"),) if job.curve else (),
    ).write(Path(job.sheet))


if __name__ == "__main__":
    work(ScoringJob, score)
