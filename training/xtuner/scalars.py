"""mmengine's log of a training, `scalars.json`: JSON lines, one a step. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def losses(scalars: Path) -> list[tuple[int, float]]:
    """(step, loss) pairs. Of steps that were made again, after a crash, the later ones count."""
    return sorted({int(each["step"]): float(each["loss"]) for each in _lines(scalars) if "loss" in each}.items())


def most_memory(scalars: Path) -> int:
    """Bytes of a GPU that tensors took at most; 0 where none was used.

    torch cannot be asked at the end: with each line mmengine has it begin to count anew.
    """
    return max((int(each["memory"]) for each in _lines(scalars) if "memory" in each), default=0) * 2**20


def seconds(scalars: Path) -> float:
    """What the steps took, those that were made again included. mmengine's time of a line is a batch's, their mean over
    the step, and its number of batches is counted on when a training goes on.
    """
    return sum((float(each["time"] * each["iter"] / each["step"]) for each in _lines(scalars) if "time" in each), 0.0)


def _lines(scalars: Path) -> Iterator[dict[str, Any]]:
    for line in scalars.read_text(encoding="utf-8", errors="replace").splitlines():
        # A process that was killed leaves half a line, and the next one goes on behind it.
        with suppress(ValueError):
            yield json.loads(line[line.rfind("{") :])
