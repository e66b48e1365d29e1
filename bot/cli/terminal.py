"""Terminal output and confirmation: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from training.job import Outcome, WorkerJob
from training.job import Progress as WorkerProgress
from training.launcher import ChildTrainer
from training.number_format import clock
from training.settings import TrainingSettings

WIDE: Final = 1000

results: Final = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, soft_wrap=True)
"""The console for results. Lines are not wrapped, so that they can be copied, and a pipe or file gets wide tables."""

notes: Final = Console(stderr=True, highlight=False)
"""The console for errors, questions and progress."""


class CommandRefused(Exception):
    """A command was refused. The message says why and what to do; the exit code is 1."""


def confirm(question: str, *, yes: bool) -> None:
    """Ask the operator for confirmation, unless `yes` is true.

    Raises:
        CommandRefused: The operator declines, or there is no terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandRefused(
            f"{question} Nothing was done: confirming needs a terminal. Use --yes to skip the question."
        )
    if not typer.confirm(question, err=True):
        raise CommandRefused("Nothing was done.")


def progress_bar() -> Progress:
    """Return a progress bar on standard error for work counted in steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TimeElapsedColumn(), console=notes)


async def run_worker(settings: TrainingSettings, job: WorkerJob, first_stage: str) -> Outcome:
    """Run a worker with a progress bar, initially labelled `first_stage`, and return the outcome."""
    with progress_bar() as bar:
        task = bar.add_task(first_stage, total=None)

        def show(progress: WorkerProgress) -> None:
            text = progress_text(progress.stage, progress.loss, progress.seconds_left)
            bar.update(task, description=text, completed=progress.step, total=progress.steps)

        return await ChildTrainer(settings).run(job, show)


def progress_text(stage: str, loss: float | None, seconds_left: float | None) -> str:
    """Describe the progress of a run: its stage, its average loss, and the time left."""
    text = stage if loss is None else f"{stage}, average loss {loss:.3f}"
    return text if seconds_left is None else f"{text}, {clock(seconds_left)} left"
