"""`thumbtune finetune`: train a model on a LLaVA file, without a bot or votes, and show what it learned.

The command fills a folder::

    run/          the training files, as in a run of the bot (`training.run_folder`)
    model/        the new model, a complete checkpoint
    sheet.html    both models' answers to the test questions, if any, side by side
    answers.json  the same answers as JSON

If the command is interrupted, repeating it continues from the last training checkpoint.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from bot.cli.ask_models import ask
from bot.cli.evaluate import print_scores
from bot.cli.fetch import REPO, download_checkpoint
from bot.cli.terminal import notes, results, run_worker
from bot.config import ConfigError, Settings
from inference.hub.listing import Hub
from inference.internvl2.checkpoint_check import problems
from inference.settings import TINY
from storage.model_store import ModelStore
from training.base_model_check import trainer_missing, untrainable
from training.command_jobs import ScoringJob, ScoringMethod
from training.data.row_parser import RowError, parse_row, read_lessons, read_rows
from training.job import Outcome, TrainingError, checked, outcome_file
from training.job_specs import JobSpecs, TrainingPaths
from training.merged_models import publish_merged
from training.run_plan import check_disk
from training.settings import Source, TrainingSettings
from training.xtuner.resume import has_adapter

RUN: Final = "run"
MODEL: Final = "model"
SHEET: Final = "sheet.html"
ANSWERS: Final = "answers.json"

_SHOWN: Final = 10
"""The maximum number of invalid rows to list."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Test questions for the base model and the new one.

    Attributes:
        file: The LLaVA file. The last answer of each row is the right one.
        images: The folder of the pictures.
        score: How an answer is compared with the right one.
    """

    file: Path
    images: Path
    score: ScoringMethod


def with_options(settings: Settings, recipe: str | None, model: str | None) -> Settings:
    """Return the settings for supervised fine-tuning, with another recipe and base model if given.

    Raises:
        ConfigError: The recipe is unknown, or does not fit the other settings.
    """
    values = {**settings.training.model_dump(), "objective": "sft", "recipe": recipe or settings.training.recipe}
    try:
        training = TrainingSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"--recipe {values['recipe']}: {error.errors()[0]['msg']}") from error
    inference = settings.inference.model_copy(update={"model": model or settings.inference.model})
    return settings.model_copy(update={"training": training, "inference": inference})


async def finetune(settings: Settings, rows: Source, test: Questions | None, out: Path) -> None:
    """Train the base model on the LLaVA file `rows`, and fill the folder `out`.

    The base model is downloaded if its directory does not exist. The answers to `test` are printed as a table
    and written to a page.

    Args:
        settings: The settings, which name the base model and the recipe.
        rows: The file to train on, and the folder of its pictures.
        test: The test questions, if there are any.
        out: The folder to fill.

    Raises:
        TrainingError: `out` is not empty, a row or a picture is invalid, or the training fails.
        HubError: The base model cannot be downloaded.
        StorageError: The new model cannot be written.
    """
    _check_folder(out)
    shown = check_rows(rows.path, rows.folder, settings.persona)
    if test:
        _check_test(test, settings.persona, shown)
    base = settings.inference.checkpoint().absolute()
    if settings.inference.model != TINY and not base.exists():
        await download_checkpoint(base, Hub.HUGGING_FACE, REPO, "")
    _check_base(base)

    run, store = out / RUN, ModelStore(out)
    run.mkdir(exist_ok=True)
    store.tidy()
    specs = JobSpecs(
        settings.training,
        TrainingPaths(base=base.resolve(), runs=run, sources=run),
        images=run,
        system=settings.persona,
        tiles=settings.inference.tiles or 0,
    )
    check_disk(specs, out)
    trained = await _train(specs, rows, run)
    merging = specs.merge(run, run, trained)
    model = await publish_merged(store, MODEL, merging, lambda job: run_worker(settings.training, job, "merging"))
    results.print(
        f"{model}: trained on {sum(trained.samples.values())} rows in {trained.steps} steps and {trained.seconds:.0f} s"
    )
    if not test:
        return
    fields = {
        "data": str(test.file),
        "images": str(test.images),
        "score": test.score,
        "sheet": str(out / SHEET),
        "curve": trained.curve or "",
    }
    asking = await ask(settings, ScoringJob, [("base", base), ("finetuned", model)], out / ANSWERS, lambda _: fields)
    print_scores(asking)
    results.print(f"{asking.sheet}: the answers of both models, side by side")


def check_rows(data: Path, images: Path, system: str) -> set[Path]:
    """Check the rows of `data` as far as possible without a tokenizer, and return the files of their pictures.

    The training worker checks all rows again, including their length in tokens, before it loads the model.

    Raises:
        TrainingError: The file has no rows, or invalid ones. The message names the first ten of them.
    """
    if not images.is_dir():
        raise TrainingError(f"{images} is not a folder: pass the folder of the pictures with --images")
    wrong: list[str] = []
    shown = set[Path]()
    number = 0
    for number, content in read_rows(data):
        where = f"{data} row {number}"
        try:
            pictures = {images / name for name in parse_row(content, where=where, system=system).pictures}
        except RowError as error:
            wrong.append(str(error))
            continue
        wrong += [f"{where}: the picture {each} is missing" for each in sorted(pictures) if not each.is_file()]
        shown |= pictures
    if not number:
        raise TrainingError(f"{data} has no rows")
    if wrong:
        more = [f"… and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        raise RowError("\n".join([*wrong[:_SHOWN], *more, "Nothing was trained: fix or remove these rows"]))
    return shown


def _check_folder(out: Path) -> None:
    """Check that `out` does not exist or contains only an interrupted training run."""
    if (out / MODEL).exists():
        raise TrainingError(
            f"{out / MODEL} already exists: choose another folder with --out, or evaluate the model with "
            f"`thumbtune evaluate BASE {out / MODEL} --set FILE`"
        )
    begun = (out / RUN / "finetune.json").is_file()
    if out.exists() and not begun and not (out.is_dir() and {each.name for each in out.iterdir()} <= {RUN}):
        raise TrainingError(f"{out} contains something else: use --out to choose a folder that does not exist yet")


def _check_test(test: Questions, system: str, trained: set[Path]) -> None:
    """Check the test questions and their pictures, and print a note if some are in the training data."""
    lessons = list(read_lessons(test.file, test.images, system=system))
    if not lessons:
        raise TrainingError(f"{test.file} has no questions")
    known = {each.resolve() for each in trained}
    same = sum(any((test.images / name).resolve() in known for name in each.pictures) for each in lessons)
    if same:
        notes.print(
            f"{same} of {len(lessons)} test questions are about pictures in the training data: gains on them "
            "say little about other pictures"
        )


def _check_base(base: Path) -> None:
    """Raise TrainingError if the base model is incomplete or cannot be trained, or if the trainer is missing."""
    if wrong := problems(base):
        raise TrainingError(f"{base} is not a complete checkpoint: {'; '.join(wrong)}")
    if reason := untrainable(base) or trainer_missing():
        raise TrainingError(reason)


async def _train(specs: JobSpecs, rows: Source, run: Path) -> Outcome:
    """Train on `rows` in the folder `run`, unless an interrupted command has finished the same training there."""
    job = specs.finetune_on([rows], run)
    finished = outcome_file(run / f"{job.worker[0]}.json")
    if finished.is_file() and await asyncio.to_thread(has_adapter, job):
        outcome = Outcome.read(finished)
        if outcome.ok:
            return outcome
    try:
        return checked(await run_worker(specs.settings, job, "checking"))
    except asyncio.CancelledError:
        notes.print("Interrupted: repeat the command to continue from the last checkpoint.")
        raise
