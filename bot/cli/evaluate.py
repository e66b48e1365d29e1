"""`thumbtune evaluate`: score models on the operator's own questions with known answers.

A child process (`training.gate.own_questions`) produces the answers. The bot need not be running.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bot.cli.asking import ask
from bot.config import Settings
from training.command_jobs import Score, ScoringJob
from training.evidence.facts import upper_bound
from training.evidence.proportions import wilson_interval

_TAIL = 0.025
"""The error of each side of a 95 % interval."""


async def evaluate(  # noqa: PLR0917 - the options of a command
    settings: Settings,
    models: Sequence[str],
    questions: Path,
    images: Path | None,
    score: Score,
    out: Path | None,
    console: Console,
) -> None:
    """Score `models` on the LLaVA file `questions`, print a table, and write the answers to `out` if given.

    Args:
        settings: The bot's settings.
        models: IDs of kept models, or checkpoint directories. All are compared with the first.
        questions: The file. The last answer of each row is the right one.
        images: The folder of the pictures; by default, the file's own folder.
        score: How an answer is compared with the right one.
        out: The JSON file to write.
        console: Where to print the table.

    Raises:
        TrainingError: A model, a row or a picture is invalid, or `out` cannot be written.
        StorageError: The ledger cannot be read.
    """
    chosen = list(dict.fromkeys(models))
    fields = {
        "data": str(questions.absolute()),
        "images": str((images or questions.parent).absolute()),
        "score": score,
    }
    with tempfile.TemporaryDirectory() as folder:
        job = await ask(settings, ScoringJob, chosen, out or Path(folder) / "answers.json", lambda _: fields)
        entries = json.loads(Path(job.out).read_text(encoding="utf-8"))
    console.print(f"{questions.name}: {len(entries)} questions, scored by “{score}”; 95 % intervals")
    console.print(table(entries, chosen))


def table(entries: Sequence[dict[str, Any]], models: Sequence[str]) -> Table:
    """Return a table with the share of right answers of each model, and its gain over the first model."""
    found = Table("model", "right", "share", f"against {models[0]}", box=None, pad_edge=False)
    for name in models:
        right = [entry["scores"][name] for entry in entries]
        low, high = wilson_interval(sum(right), len(right))
        gain = "" if name == models[0] else _gain([entry["scores"][models[0]] for entry in entries], right)
        share = f"{sum(right) / len(right):.0%} ({low:.0%} to {high:.0%})"
        found.add_row(name, f"{sum(right)} of {len(right)}", share, gain)
    return found


def _gain(before: Sequence[bool], after: Sequence[bool]) -> str:
    """Return the gain in percentage points, with Tango's interval for a difference of paired proportions."""
    number = len(before)
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    low, high = -upper_bound(number, lost, gained, _TAIL), upper_bound(number, gained, lost, _TAIL)
    return f"{100 * (gained - lost) / number:+.0f} points ({100 * low:+.0f} to {100 * high:+.0f})"
