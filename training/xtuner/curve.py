"""The loss curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.xtuner.scalars import losses


def draw(scalars: Path, picture: Path, former: Path | None = None) -> None:
    """Write the curve as a PNG of 960 × 480 pixels: each step faint, their moving average strong.

    The moving average of `former`, the log of an earlier run, lies under it; of one that has gone nothing does.
    """
    figure = Figure(figsize=(9.6, 4.8), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if former and former.exists():
        steps, values = _columns(former)
        axes.plot(steps, _smooth(values), color="tab:gray", alpha=0.7, linewidth=2, linestyle="--", label="former run")
    steps, values = _columns(scalars)
    axes.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1, label="each step")
    axes.plot(steps, _smooth(values), color="tab:blue", linewidth=2, label="moving average")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture)


def _columns(scalars: Path) -> tuple[list[int], list[float]]:
    points = losses(scalars)
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean over a twentieth of the steps to either side."""
    reach = len(values) // 20
    near = [values[max(0, place - reach) : place + reach + 1] for place in range(len(values))]
    return [sum(window) / len(window) for window in near]
