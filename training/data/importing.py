"""Worker: import a LLaVA file as a source, completely or not at all.

    python -m training.data.importing JOB.json

The worker validates every row as a training run does and re-encodes the pictures in the same way as
pictures that users send. The source's folder gets its final name only at the end. If any row is invalid,
nothing is imported, and the error names every invalid row.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from storage.atomic_files import PART, write_text
from training.command_jobs import ImportJob
from training.data.imported_sources import ABOUT, PICTURES, ROWS, SourceInfo
from training.data.llava import image_entry
from training.data.mixture import valid_rows
from training.data.row_parser import RowError
from training.data.validation import FOREIGN, Rules, Validator, ValidRow
from training.job import Outcome, Progress, TrainingError
from training.worker import Say, explained, work


def import_source(job: ImportJob, say: Say) -> Outcome:
    """Import the LLaVA file that the job names.

    Raises:
        TrainingError: The source already exists, a row is invalid, or a file cannot be read or written.
    """
    folder = Path(job.out) / job.name
    if folder.exists():
        raise TrainingError(f"{folder} already exists: choose another --name, or remove the folder")
    part = folder.with_name(job.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    try:
        (part / PICTURES).mkdir(parents=True)
        good = _validate(job, part / PICTURES, say)
        write_text(part / ROWS, _rows(good))
        pictures = {digest for each in good for digest in each.digests}
        SourceInfo(job.file, len(good), len(pictures), job.repeat_times, clean=True).write(part / ABOUT)
        os.sync()
        part.rename(folder)
    except ImportError as error:
        raise explained(error) from error
    except OSError as error:
        raise TrainingError(f"{job.file} was not imported: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Outcome(ok=True, steps=len(good))


def _validate(job: ImportJob, home: Path, say: Say) -> list[ValidRow]:
    max_length = job.max_length
    if job.recipe:
        from training.xtuner.user_config import user_max_length

        max_length = user_max_length(job.recipe)
    rules = Rules(Path(job.base), home, None, job.system, job.tiles, max_length, clean=True)
    problems: list[str] = []
    with Validator(rules, job.threads or len(os.sched_getaffinity(0))) as validator:
        rows = validator.rows(
            Path(job.file), Path(job.images), lambda done, total: say(Progress("checking", done, total))
        )
        good = valid_rows(rows, problems)
    if problems:
        many = f"{len(problems)} rows are invalid, so nothing was imported:\n" if len(problems) > 1 else ""
        raise RowError(many + "\n".join(problems))
    if not good:
        raise TrainingError(f"{job.file} has no rows")
    return good


def _rows(good: Sequence[ValidRow]) -> Iterator[str]:
    """Yield the valid rows as lines of JSON that name the re-encoded pictures."""
    for each in good:
        row: dict[str, Any] = json.loads(each.line)
        del row["length"], row["origin"]
        row["id"] = row["id"].removeprefix(FOREIGN)
        if not each.has_system:
            # The row gets the chat's current system prompt in each training run.
            del row["system"]
        if each.digests:
            row["image"] = image_entry([f"{digest[:2]}/{digest}" for digest in each.digests])
        yield json.dumps(row, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    work(ImportJob, import_source)
