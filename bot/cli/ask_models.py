"""A child process in which models answer questions, for `thumbtune compare`, `evaluate` and `finetune`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bot.cli.terminal import run_worker
from bot.config import Settings
from inference.internvl2.checkpoint_check import problems
from inference.internvl2.tiny import CHECKPOINT
from inference.settings import TINY
from storage.learning_records import BASE
from storage.ledger import FILE_NAME, Ledger
from training.command_jobs import AskingJob
from training.job import TrainingError

Job = TypeVar("Job", bound=AskingJob)


async def ask(
    settings: Settings,
    kind: type[Job],
    models: Sequence[tuple[str, Path]],
    out: Path,
    prepare: Callable[[Path], dict[str, Any]],
) -> Job:
    """Have models answer questions, write the result to `out`, and return the finished job.

    Args:
        settings: The bot's settings.
        kind: The kind of job.
        models: The name and the checkpoint directory of each model.
        out: The file to write.
        prepare: A function that may write files into a temporary folder, and returns the remaining fields
            of the job.

    Raises:
        TrainingError: `out` cannot be written, or the job fails.
    """
    if not out.absolute().parent.is_dir():
        raise TrainingError(f"{out.absolute().parent} is not a folder: create it, or choose another file with --out")
    work = Path(tempfile.mkdtemp(prefix=f"thumbtune-{kind.worker[0]}-"))
    kept = False
    try:
        job = kind(
            models=[(name, str(directory)) for name, directory in models],
            out=str(out.absolute()),
            work=str(work),
            **settings.answering,
            **prepare(work),
        )
        outcome = await run_worker(settings.training, job, "loading")
        if not outcome.ok:
            kept = bool(outcome.log)  # the error message names it
            raise TrainingError(outcome.reason)
    finally:
        if not kept:
            shutil.rmtree(work)
    return job


async def directories_of(settings: Settings, models: Sequence[str]) -> list[tuple[str, Path]]:
    """Return the name and the directory of each of `models`, which are given as in `directory_of`."""
    return [(model, await directory_of(settings, model)) for model in models]


async def directory_of(settings: Settings, model: str) -> Path:
    """Return the directory of `model`, given as the ID of a stored model or the path of any checkpoint.

    Raises:
        TrainingError: `model` is neither a stored model nor a directory, or its checkpoint is incomplete.
    """
    known = {BASE: settings.inference.checkpoint(), TINY: CHECKPOINT}
    if (settings.storage.dir / FILE_NAME).is_file():
        async with Ledger.open(settings.storage.dir) as ledger:
            models = await ledger.models.all()
        known |= {each.id: Path(each.directory) for each in models if each.directory}
        if any(each.id == model and each.pruned for each in models):
            raise TrainingError(
                f"only the adapter of {model} is kept: merge it again with `thumbtune promote {model}`, then compare it"
            )
    directory = known.get(model, Path(model)).absolute()
    if model not in known and not directory.is_dir():
        raise TrainingError(
            f"{model} is neither a stored model ({', '.join(known)}) nor a folder: "
            "`thumbtune models` lists the stored models"
        )
    if wrong := problems(directory):
        raise TrainingError(f"{model}: {directory} is not a complete checkpoint: {'; '.join(wrong)}")
    return directory
