"""Worker: make somebody's LLaVA file a source of ours, all of it or nothing.

    python -m training.data.importing JOB.json

Checks every row as a training does, with its pictures re-encoded into a folder as those that people send are, writes
the rows beside them, and gives the folder its name at the end. With a bad row nothing is imported, and every bad row is
in the reason.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.data.llava import RowError
from training.data.mixture import sorted_out
from training.data.sources import PICTURES, ROWS, UNDER_WAY, About
from training.data.validation import FOREIGN, Checked, Inspection, Rules
from training.job import ImportJob, Outcome, Progress, TrainingError
from training.whole import write_whole
from training.worker import Say, explained, work


def take_in(job: ImportJob, say: Say) -> Outcome:
    """Clean, check, name. Raises `TrainingError`."""
    folder = Path(job.out) / job.name
    if folder.exists():
        raise TrainingError(f"{folder} is there already: choose another --name, or remove the folder")
    part = folder.with_name(job.name + UNDER_WAY)
    shutil.rmtree(part, ignore_errors=True)
    try:
        (part / PICTURES).mkdir(parents=True)
        good = _checked(job, part / PICTURES, say)
        write_whole(part / ROWS, _rows(good))
        pictures = {digest for each in good for digest in each.digests}
        About(job.file, len(good), len(pictures), job.repeat_times, clean=True).write(part)
        os.sync()
        part.rename(folder)
    except ImportError as error:
        raise explained(error) from error
    except OSError as error:
        raise TrainingError(f"{job.file} was not imported: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Outcome(ok=True, steps=len(good))


def _checked(job: ImportJob, home: Path, say: Say) -> list[Checked]:
    max_length = job.max_length
    if job.recipe:
        from training.xtuner.user_config import user_max_length

        max_length = user_max_length(job.recipe)
    rules = Rules(Path(job.base), home, None, job.system, job.tiles, max_length, clean=True)
    problems: list[str] = []
    with Inspection(rules, job.threads or len(os.sched_getaffinity(0))) as inspection:
        rows = inspection.rows(
            Path(job.file), Path(job.images), lambda done, total: say(Progress("checking", done, total))
        )
        good = sorted_out(rows, problems)
    if problems:
        many = f"{len(problems)} rows are bad, nothing was imported:\n" if len(problems) > 1 else ""
        raise RowError(many + "\n".join(problems))
    if not good:
        raise TrainingError(f"{job.file} has no rows")
    return good


def _rows(good: Sequence[Checked]) -> Iterator[str]:
    """The rows as lines of the source, which name the clean pictures."""
    for each in good:
        row: dict[str, Any] = json.loads(each.line)
        del row["length"], row["origin"]
        row["id"] = row["id"].removeprefix(FOREIGN)
        if not each.persona:
            # It has the persona of the day, as the chat has.
            del row["system"]
        if each.digests:
            names = [f"{digest[:2]}/{digest}" for digest in each.digests]
            row["image"] = names[0] if len(names) == 1 else names
        yield json.dumps(row, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    work(ImportJob, take_in)
