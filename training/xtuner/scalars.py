"""Read mmengine's log of a training, `scalars.json`: JSON lines, one per step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def losses(scalars: Path) -> list[tuple[int, float]]:
    """Return (step, loss) pairs. For a step repeated after a crash, the later loss counts."""
    return sorted({int(each["step"]): float(each["loss"]) for each in _lines(scalars) if "loss" in each}.items())


def peak_memory(scalars: Path) -> int:
    """Return the most bytes of GPU memory that tensors took, or 0 if there is no GPU.

    mmengine 0.10.6 resets torch's peak with each line, so torch does not know it at the end.
    """
    return max((int(each["memory"]) for each in _lines(scalars) if "memory" in each), default=0) * 2**20


def step_seconds(scalars: Path) -> float:
    """Return the seconds of all steps, repeated ones included.

    mmengine's `time` is the mean over the step's batches, and `iter` counts on when a training is resumed.
    """
    return sum((float(each["time"] * each["iter"] / each["step"]) for each in _lines(scalars) if "time" in each), 0.0)


def _lines(scalars: Path) -> Iterator[dict[str, Any]]:
    for line in scalars.read_text(encoding="utf-8", errors="replace").splitlines():
        # A killed process leaves half a line, which the next process continues.
        with suppress(ValueError):
            yield json.loads(line[line.rfind("{") :])
