"""The files in a run's directory, `runs/N` in the data folder.

Each step adds its job, its outcome and its log. For fine-tuning, these are `finetune.json`,
`finetune.outcome.json` and `finetune.log`; the other steps use the names `opening`, `merge`, `taste` and
`evaluate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

TRAIN_ROWS: Final = "train.json"
"""The answers to train on, as LLaVA rows, in the order of the blocks."""

JUDGED_ROWS: Final = "judged.json"
"""The rated answers used to evaluate the new model, as LLaVA rows."""

CHECKED: Final = "checked.jsonl"
"""The valid rows to train on: the liked answers and the rows drawn from other sources."""

MIXTURE: Final = "mixture.json"
"""The number of rows in each source, and the number drawn."""

PROBLEMS: Final = "problems.txt"
"""The reasons why rows are invalid, if there are many."""

CONFIG: Final = "config.py"
"""The configuration, with which `python -m xtuner.tools.train config.py` repeats the training."""

BASE: Final = "base"
"""The folder of the base model, with the project's own model code."""

STATE: Final = "xtuner"
"""The folder of the loss log and the checkpoints."""

SCALARS: Final = f"{STATE}/vis_data/scalars.json"
"""The loss log, as mmengine writes it."""

FEATURES: Final = "features"
"""The folder of the vision cache, which is kept only during training."""

LOSSES: Final = "losses.json"
"""The loss after each step, as JSON lines."""

CURVE: Final = "curve.png"
"""The loss curve."""

GAINS: Final = "gains.png"
"""The plot of how much likelier the rated answers have become."""

ADAPTER: Final = "adapter"
"""The folder of the trained weights."""

BLOCKS: Final = "blocks"
"""The folder of the blocks, which is kept until the evaluation ends. For each block of judging answers, it contains a
folder like the run's own, with the adapter that was trained on the answers before the block."""

FINETUNE_JOB: Final = "finetune.json"
"""The job that trained the adapter."""

MERGE_JOB: Final = "merge.json"
"""The job that merges the adapter and the base. `training.merged_models` repeats it."""

TASTE: Final = "evidence.json"
"""The evidence of the taste test."""

CANDIDATE: Final = "candidate.json"
"""The `Candidate` that the evaluation waits for, written once the candidate's engine has been started."""

REPORT: Final = "report.json"
"""The report of the evaluation."""

SHEET: Final = "sheet.html"
"""The report as a page, with both models' answers."""

PICTURE: Final = "sheet.png"
"""The sheet as a picture."""


def run_folders(runs: Path, *, but: int | None = None) -> list[Path]:
    """Return the directories of all runs in the folder `runs`, newest first, excluding the run `but`."""
    folders = [each for each in runs.glob("*") if each.name.isdigit() and each.name != str(but)]
    return sorted(folders, key=lambda each: int(each.name), reverse=True)


def kept_file(directory: str, name: str) -> Path | None:
    """Return the path of a file in a run's directory, or None if the file does not exist.

    An empty `directory` means that the run has no directory.
    """
    path = Path(directory) / name
    return path if directory and path.is_file() else None
