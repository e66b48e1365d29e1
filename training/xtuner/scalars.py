"""Read mmengine's training log, `scalars.json`, which has one JSON line per step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def losses(scalars: Path) -> list[tuple[int, float]]:
    """Return (step, loss) pairs; if a step was repeated after a crash, only its last loss is used."""
    return sorted({int(each["step"]): float(each["loss"]) for each in _lines(scalars) if "loss" in each}.items())


def peak_memory(scalars: Path) -> int:
    """Return the peak GPU memory used by tensors, in bytes, or 0 if there is no GPU.

    mmengine 0.10.6 resets torch's peak with each log line, so torch cannot report the overall peak at the
    end.
    """
    return max((int(each["memory"]) for each in _lines(scalars) if "memory" in each), default=0) * 2**20


def step_seconds(scalars: Path) -> float:
    """Return the total duration of all steps in seconds, including repeated steps.

    In the log, `time` is the mean over the batches of a step, and `iter` keeps counting when training is
    resumed.
    """
    return sum((float(each["time"] * each["iter"] / each["step"]) for each in _lines(scalars) if "time" in each), 0.0)


def _lines(scalars: Path) -> Iterator[dict[str, Any]]:
    for line in scalars.read_text(encoding="utf-8", errors="replace").splitlines():
        # A killed process leaves an incomplete line, which the next process continues.
        with suppress(ValueError):
            yield json.loads(line[line.rfind("{") :])
