"""Combine the rows of a run: the rated answers, if any, and rows drawn from other sources with the run's seed.

Each row of a source with `repeat_times` is taken that many times, which need not be a whole number. The other
sources share the replay: together they contribute `replay` samples for each liked answer, and all their rows
are equally likely to be drawn. All rows of all sources are validated, whether they are drawn or not. A liked
answer that is too long does not cause an error, because an operator cannot correct it, but is left out and
counted. A conversation that used to fit may become too long when another user's earlier turns are erased: the
prompt that the model saw can then no longer be found, and is replaced with a part of the conversation that
may be longer (`training.data.seen_prompt`). The drawn rows are saved in the run's directory (`checked.jsonl`,
`mixture.json`) so that the run can be inspected and repeated.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from storage.atomic_files import write_text
from storage.translatable_reason import Reason
from training.data.llava import image_files
from training.data.row_parser import RowError, read_rows
from training.data.validation import Rules, Validator, ValidRow
from training.job import DISLIKED, RATED, Job, Progress, TrainingError
from training.run_folder import CHECKED, MIXTURE, PROBLEMS
from training.xtuner.encoding import TooLong

_SHOWN: Final = 10
_MIN_REPORTED: Final = 1000
"""The number of rows above which a file's progress is reported."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The combined rows that a run trains on.

    Attributes:
        file: The file that XTuner reads.
        samples: The number of samples from each source.
        longest: The number of tokens in the longest sample.
        pictures: The names of all pictures, without duplicates.
    """

    file: Path
    samples: dict[str, int]
    longest: int
    pictures: list[str]

    @property
    def rows(self) -> int:
        """The total number of samples."""
        return sum(self.samples.values())


def draw(rows: int, times: float, random: Random) -> list[int]:
    """Draw row numbers, counted from 0, so that each row occurs `times` times, and return them in order.

    If `times` is 2.5, every row occurs twice, and a random half of the rows occur once more.
    """
    if not rows:
        return []
    whole, rest = divmod(int(rows * times + 0.5), rows)
    return sorted([*list(range(rows)) * whole, *random.sample(range(rows), rest)])


def draw_all(rows: Sequence[int], times: Sequence[float | None], shared: int, seed: int) -> list[list[int]]:
    """Draw row numbers from several sources.

    Args:
        rows: The number of rows of each source.
        times: How many times each row of a source is taken; None for a source whose rows are drawn together with those
            of other sources.
        shared: How many rows those sources contribute in total.
        seed: The random seed.

    Returns:
        The row numbers drawn from each source.
    """
    pool = [(source, row) for source, each in enumerate(times) if each is None for row in range(rows[source])]
    drawn: list[list[int]] = [[] for _ in rows]
    for number in draw(len(pool), shared / max(len(pool), 1), Random(seed)):
        source, row = pool[number]
        drawn[source].append(row)
    for source, each in enumerate(times):
        if each is not None:
            drawn[source] = draw(rows[source], each, Random(f"{seed} {source}"))
    return drawn


def mix(job: Job, base: Path, say: Callable[[Progress], None]) -> Mixture:
    """Validate all rows of the job's data and sources, draw rows, and write the file that XTuner reads.

    Source rows that share a picture with a judging answer are left out and counted. Tokens are counted with
    the tokenizer of `base`.

    Raises:
        TrainingError: A row is invalid, a file has no rows, or all liked answers are too long.
    """
    rated, too_long, others = _validate(job, base, say)
    judged = _digests(Path(job.judged)) if job.judged else frozenset[str]()
    kept = [[each for each in rows if judged.isdisjoint(each.digests)] for rows in others]
    times = [each["repeat_times"] for each in job.sources]
    liked = sum(each.liked for each in rated)
    drawn = draw_all([len(rows) for rows in kept], times, int(job.replay * liked + 0.5), job.seed)
    taken = [rated, *([rows[number] for number in numbers] for rows, numbers in zip(kept, drawn, strict=True))]
    samples = Counter[str]()
    for name, rows in zip([RATED, *(each["path"] for each in job.sources)], taken, strict=True):
        samples[name] += len(rows)
    if disliked := len(rated) - liked:
        samples[RATED] = liked
        samples[DISLIKED] = disliked
    if not job.data:
        del samples[RATED]
    sources = [
        {**source, "rows": len(rows), "about_judged_pictures": len(rows) - len(left), "samples": len(numbers)}
        for source, rows, left, numbers in zip(job.sources, others, kept, drawn, strict=True)
    ]
    account = {"seed": job.seed, "replay": job.replay, RATED: len(rated), "too_long": too_long, "sources": sources}
    write_text(Path(job.work) / MIXTURE, json.dumps(account, ensure_ascii=False, indent=1) + "\n")
    file = Path(job.work) / CHECKED
    write_text(file, (each.line + "\n" for rows in taken for each in rows))
    pictures = dict.fromkeys(name for rows in taken for each in rows for name in each.pictures)
    return Mixture(file, dict(samples), max(each.length for rows in taken for each in rows), list(pictures))


def _validate(
    job: Job, base: Path, say: Callable[[Progress], None]
) -> tuple[list[ValidRow], int, list[list[ValidRow]]]:
    """Return the valid rated answers, the number that were too long, and each source's valid rows.

    Raises:
        TrainingError: A row is invalid, a file has no rows, or all liked answers are too long.
    """

    def progress(done: int, rows: int) -> None:
        if rows > _MIN_REPORTED:
            say(Progress("checking", done, rows))

    home = Path(job.images)
    rules = Rules(base, home, Path(job.notes) if job.notes else None, job.system, job.tiles, job.max_length)
    files = [(Path(each["path"]), Path(each["images"])) for each in job.sources]
    with Validator(rules, job.threads or len(os.sched_getaffinity(0))) as validator:
        results = list(validator.rows(Path(job.data), home, progress)) if job.data else []
        from_sources = [list(validator.rows(file, images, progress)) for file, images in files]
    if job.first:
        del results[job.first :]
    short = [each for each in results if not isinstance(each, TooLong)]
    too_long = len(results) - len(short)
    problems: list[str] = []
    rated, *others = (valid_rows(rows, problems) for rows in (short, *from_sources))
    if problems:
        raise RowError(summarize(problems, Path(job.work) / PROBLEMS))
    if too_long and not short:
        raise TrainingError(
            Reason(
                "all {number} liked answers are longer than {most} tokens: raise max_length",
                number=too_long,
                most=job.max_length,
            )
        )
    names = [job.data, *(each["path"] for each in job.sources)]
    for name, found in zip(names, (rated, *others), strict=True):
        if name and not found:
            raise TrainingError(f"{name} has no rows")
    return rated, too_long, others


def valid_rows(rows: Iterable[ValidRow | RowError], problems: list[str]) -> list[ValidRow]:
    """Return the valid rows, and append the reason for each invalid row to `problems`."""
    valid = []
    for each in rows:
        if isinstance(each, ValidRow):
            valid.append(each)
        else:
            problems.append(str(each))
    return valid


def summarize(problems: Sequence[str], file: Path) -> str:
    """Return the problems as a single string.

    If there are many, all of them are written to `file`, and the string contains only the first few and the
    name of `file`.
    """
    if len(problems) <= _SHOWN:
        return "\n".join(problems)
    write_text(file, (each + "\n" for each in problems))
    return "\n".join([*problems[:_SHOWN], f"… and {len(problems) - _SHOWN} more: all {len(problems)} are in {file}"])


def _digests(file: Path) -> frozenset[str]:
    """Return the digests of all pictures in a file of judging rows, in which pictures are named by digest."""
    return frozenset(Path(name).name for _, row in read_rows(file) for name in image_files(row))
