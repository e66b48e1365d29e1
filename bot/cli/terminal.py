"""Terminal output and confirmation: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from training.number_format import clock

WIDE: Final = 1000

results: Final = Console(width=None if sys.stdout.isatty() else WIDE)
"""For results. In a pipe or a file, lines are neither cut nor wrapped."""

notes: Final = Console(stderr=True)
"""For errors, questions and progress."""


class CommandRefused(Exception):
    """A command is refused. The text says why and what to do; the exit code is 1."""


def confirm(question: str, *, yes: bool) -> None:
    """Ask the operator, unless --yes was given. Raises `CommandRefused` for a no, or if there is no terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandRefused(
            f"{question} Nothing was done: there is no terminal to confirm it. Use --yes to skip the question."
        )
    if not typer.confirm(question, err=True):
        raise CommandRefused("Nothing was done.")


def progress_bar() -> Progress:
    """Return a progress bar on standard error for work counted in steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TimeElapsedColumn(), console=notes)


def progress_text(stage: str, loss: float | None, seconds_left: float | None) -> str:
    """Describe the stage of a run in progress: its name, its average loss, the time left."""
    text = stage if loss is None else f"{stage}, average loss {loss:.3f}"
    return text if seconds_left is None else f"{text}, {clock(seconds_left)} left"
