"""mmengine's log of a training, `scalars.json`: JSON lines, one a step. Standard library only."""

from __future__ import annotations

import json
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


def _lines(scalars: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in scalars.read_text(encoding="utf-8").splitlines() if line.strip()]
