"""A run's directory, `runs/N` in the data folder: the names of what lies in it. Standard library only.

Beside these there are each step's job, outcome and log (`finetune.json`, `finetune.outcome.json`, `finetune.log`, and
so for `merge` and `evaluate`). What is in a file is told where it is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

TRAIN_ROWS: Final = "train.json"
"""The liked answers to train on, as LLaVA rows."""

HELD_OUT_ROWS: Final = "held_out.json"
"""Those kept apart to judge by."""

CHECKED: Final = "checked.jsonl"
"""What is trained on: the liked answers and what was drawn of other sources, every row checked."""

MIXTURE: Final = "mixture.json"
"""The account of that."""

PROBLEMS: Final = "problems.txt"
"""What is wrong with the rows, where it is too much to tell."""

CONFIG: Final = "config.py"
"""`python -m xtuner.tools.train config.py` trains the run again."""

BASE: Final = "base"
"""Folder: the base model, with our code."""

STATE: Final = "xtuner"
"""Folder: the log of losses and the checkpoints."""

SCALARS: Final = f"{STATE}/vis_data/scalars.json"
"""The log of losses, as mmengine writes it."""

FEATURES: Final = "features"
"""Folder, while the run trains: what the vision tower makes of the pictures."""

LOSSES: Final = "losses.json"
"""The loss after each step, as JSON lines."""

CURVE: Final = "curve.png"
"""The same, drawn."""

ADAPTER: Final = "adapter"
"""Folder: what was trained."""

MERGE_JOB: Final = "merge.json"
"""The job that merged the adapter with the base. It can be done again."""

QUESTIONS: Final = "questions"
"""Folder: the drawn factual questions."""

REPORT: Final = "report.json"
"""What the evaluation found."""

SHEET: Final = "sheet.html"
"""The same for people, with answers before and after, as a page."""

PICTURE: Final = "sheet.png"
"""The sheet as a picture."""


def kept_file(directory: str, name: str) -> Path | None:
    """The file of that name in a run's directory (empty: it has none), None where there is none."""
    path = Path(directory) / name
    return path if directory and path.is_file() else None
