"""What one run is trained on: the liked answers, and with them rows of other sources, drawn by the run's seed.

A source with `repeat_times` is taken as often as that says, fractions included. All those without share what replays
one to one, or as `replay` says: together they give so many samples for each liked answer, each row as often as any
other. Every row of every source is checked, drawn or not: a file is good or it is mended. A liked answer that is too
long is left out and counted: nobody can mend what people said, and it grows where somebody else's words before it go.
What was drawn is frozen into the run's directory (`checked.jsonl`, `mixture.json`), so that a run can be looked into
and done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from training.data.llava import RowError, read_rows
from training.data.validation import Checked, Inspection, Refused, Rules
from training.job import RATED, Job, Progress, TrainingError
from training.run_folder import CHECKED, MIXTURE, PROBLEMS
from training.whole import write_whole

_SHOWN: Final = 10
_LONG: Final = 1000
"""A check of more rows than this is worth a progress bar."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A frozen mixture: XTuner's data file, and how many samples it has of each source.

    `longest` is the number of tokens of the longest sample, `pictures` are the names of all pictures, each once.
    """

    file: Path
    samples: dict[str, int]
    longest: int
    pictures: list[str]

    @property
    def rows(self) -> int:
        """Samples in all."""
        return sum(self.samples.values())


def draw(rows: int, times: float, dice: Random) -> list[int]:
    """Row numbers from 0, ascending, each `times` times: 2.5 is every row twice and half of them once more."""
    if not rows:
        return []
    whole, rest = divmod(int(rows * times + 0.5), rows)
    return sorted([*list(range(rows)) * whole, *dice.sample(range(rows), rest)])


def draw_all(rows: Sequence[int], times: Sequence[float | None], shared: int, seed: int) -> list[list[int]]:
    """What is drawn of each source, by their numbers of rows; those with `times` None give `shared` rows together."""
    pool = [(place, row) for place, each in enumerate(times) if each is None for row in range(rows[place])]
    drawn: list[list[int]] = [[] for _ in rows]
    for number in draw(len(pool), shared / max(len(pool), 1), Random(seed)):
        place, row = pool[number]
        drawn[place].append(row)
    for place, each in enumerate(times):
        if each is not None:
            drawn[place] = draw(rows[place], each, Random(f"{seed} {place}"))
    return drawn


def mix(job: Job, base: Path, say: Callable[[Progress], None]) -> Mixture:
    """Check every row of the job's data and sources, draw, and write what XTuner reads. Raises `TrainingError`.

    `base` has the tokenizer. Rows of sources with a picture that is held out to judge by are left out, and counted.
    """

    def progress(done: int, rows: int) -> None:
        if rows > _LONG:
            say(Progress("checking", done, rows))

    home = Path(job.images)
    notes = Path(job.notes) if job.notes else None
    rules = Rules(base, home, notes, job.system, job.tiles, job.max_length)
    files = [(Path(job.data), home), *((Path(each["path"]), Path(each["images"])) for each in job.sources)]
    problems: list[str] = []
    with Inspection(rules, job.threads or len(os.sched_getaffinity(0))) as inspection:
        looked = [list(inspection.rows(file, images, progress)) for file, images in files]
    short = [each for each in looked[0] if isinstance(each, Checked) or not each.too_long]
    too_long = len(looked[0]) - len(short)
    good = [sorted_out(rows, problems) for rows in (short, *looked[1:])]
    if problems:
        raise RowError(in_short(problems, Path(job.work) / PROBLEMS))
    if too_long and not short:
        raise TrainingError(f"all {too_long} liked answers have more than {job.max_length} tokens: raise max_length")
    for (file, _), found in zip(files, good, strict=True):
        if not found:
            raise TrainingError(f"{file} has no rows")

    rated, *others = good
    held_out = _pictures(Path(job.held_out)) if job.held_out else frozenset[str]()
    kept = [[each for each in rows if held_out.isdisjoint(each.digests)] for rows in others]
    times = [each["repeat_times"] for each in job.sources]
    drawn = draw_all([len(rows) for rows in kept], times, int(job.replay * len(rated) + 0.5), job.seed)
    taken = [rated, *([rows[number] for number in numbers] for rows, numbers in zip(kept, drawn, strict=True))]
    names = [RATED, *(each["path"] for each in job.sources)]
    samples = {
        name: sum(len(rows) for other, rows in zip(names, taken, strict=True) if other == name) for name in names
    }
    told = [
        {**source, "rows": len(rows), "about_held_out_pictures": len(rows) - len(left), "samples": len(numbers)}
        for source, rows, left, numbers in zip(job.sources, others, kept, drawn, strict=True)
    ]
    account = {"seed": job.seed, "replay": job.replay, RATED: len(rated), "too_long": too_long, "sources": told}
    write_whole(Path(job.work) / MIXTURE, json.dumps(account, ensure_ascii=False, indent=1) + "\n")
    checked = Path(job.work) / CHECKED
    write_whole(checked, (each.line + "\n" for rows in taken for each in rows))
    pictures = dict.fromkeys(name for rows in taken for each in rows for name in each.pictures)
    return Mixture(checked, samples, max(each.length for rows in taken for each in rows), list(pictures))


def sorted_out(rows: Iterable[Checked | Refused], problems: list[str]) -> list[Checked]:
    """The good rows; what is wrong with the others is added to `problems`."""
    good = []
    for each in rows:
        if isinstance(each, Checked):
            good.append(each)
        else:
            problems.append(each.why)
    return good


def in_short(problems: Sequence[str], file: Path) -> str:
    """The problems, or the first of many with the name of the file that has them all."""
    if len(problems) <= _SHOWN:
        return "\n".join(problems)
    write_whole(file, (each + "\n" for each in problems))
    return "\n".join([*problems[:_SHOWN], f"… and {len(problems) - _SHOWN} more: all {len(problems)} are in {file}"])


def _pictures(file: Path) -> frozenset[str]:
    """The digests of all pictures of a LLaVA file of ours, whose pictures are named by them."""
    return frozenset(Path(name).name for _, row in read_rows(file) for name in _images(row))


def _images(row: dict[str, Any]) -> list[str]:
    """The names of a row's pictures."""
    given: str | list[str] = row.get("image") or []
    return [given] if isinstance(given, str) else given
