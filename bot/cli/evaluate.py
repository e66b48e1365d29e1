"""`thumbtune evaluate`: score models on the operator's own questions with known answers.

A child process (`training.gate.score_known_answers`) produces the answers. The bot need not be running.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from bot.cli.ask_models import ask, directories_of
from bot.cli.terminal import results
from bot.config import Settings
from training.command_jobs import ScoringJob, ScoringMethod
from training.evidence.score_summary import summarize


async def evaluate(  # noqa: PLR0917 - the options of a command
    settings: Settings,
    models: Sequence[str],
    questions: Path,
    images: Path | None,
    score: ScoringMethod,
    out: Path | None,
) -> None:
    """Score `models` on the LLaVA file `questions`, print a table, and write the answers to `out` if given.

    Args:
        settings: The bot's settings.
        models: IDs of stored models, or checkpoint directories. All are compared with the first.
        questions: The file. The last answer of each row is the right one.
        images: The folder of the pictures; by default, the file's own folder.
        score: How an answer is compared with the right one.
        out: The JSON file to write.

    Raises:
        TrainingError: A model, a row or a picture is invalid, or `out` cannot be written.
        StorageError: The ledger cannot be read.
    """
    chosen = list(dict.fromkeys(models))
    fields = {"data": str(questions.absolute()), "images": str((images or questions.parent).absolute()), "score": score}
    directories = await directories_of(settings, chosen)
    with tempfile.TemporaryDirectory() as folder:
        job = await ask(settings, ScoringJob, directories, out or Path(folder) / "answers.json", lambda _: fields)
        print_scores(job)


def print_scores(job: ScoringJob) -> None:
    """Print the result of a finished job that scores answers."""
    entries = json.loads(Path(job.out).read_text(encoding="utf-8"))
    names = [name for name, _ in job.models]
    results.print(f"{Path(job.data).name}: {len(entries)} questions, scored by “{job.score}”; 95 % intervals")
    table = Table("model", "answers", f"against {names[0]}", box=None, pad_edge=False)
    for row in summarize(job.score, {name: [each["scores"][name] for each in entries] for name in names}):
        table.add_row(*row)
    results.print(table)
