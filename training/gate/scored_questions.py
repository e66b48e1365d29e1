"""Worker: have models answer questions with known answers, and save whether each answer is right.

    python -m training.gate.scored_questions JOB.json

The models are loaded one after the other and decode greedily. The result is a list with an entry for each
question: the question, the right answer, each model's answer, and whether it is right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from storage.atomic_files import write_text
from training.command_jobs import ScoringJob
from training.data.row_parser import read_lessons
from training.gate.factual_set import contains
from training.job import Outcome, TrainingError
from training.worker import Say, StageProgress, use_device, work

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
    "contains": is_contained,
    "exact": is_equal,
    "choice": is_choice,
}
"""The ways to compare an answer with the right one."""


def score(job: ScoringJob, say: Say) -> Outcome:
    """Ask every model every question and write the result to `job.out`.

    Raises:
        TrainingError: A row or a picture is invalid, the file has no rows, or a model cannot be loaded.
    """
    device = use_device(job.device, job.threads)
    from training.gate.scoring import LocalModel, greedy

    images = Path(job.images)
    lessons = list(read_lessons(Path(job.data), images, system=job.system))
    if not lessons:
        raise TrainingError(f"{job.data} has no questions")
    steps = StageProgress(say, "answering", len(job.models) * len(lessons))
    is_right = SCORES[job.score]
    entries = [
        {"question": each.turns[-2].text, "right": each.turns[-1].text, "answers": {}, "scores": {}} for each in lessons
    ]
    for name, directory in job.models:
        try:
            model = LocalModel(Path(directory), device=device, tiles=job.tiles)
        except Exception as error:  # transformers and safetensors raise many kinds for a broken directory
            raise TrainingError(f"{name} cannot be loaded from {directory}: {error}") from error
        answers = model.answers(lessons, images, greedy(job.max_new_tokens), on_batch=steps.add)
        del model  # frees the memory before the next one is loaded
        for entry, lesson, answer in zip(entries, lessons, answers, strict=True):
            entry["answers"][name] = answer  # type: ignore[index]
            entry["scores"][name] = is_right(answer, lesson.turns[-1].text)  # type: ignore[index]
    write_text(Path(job.out), json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    return Outcome(ok=True)


if __name__ == "__main__":
    work(ScoringJob, score)
