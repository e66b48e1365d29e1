"""The loss curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.xtuner.scalars import losses


def draw_curve(scalars: Path, picture: Path, previous: Path | None = None) -> None:
    """Write the loss curve as a PNG of 960 x 480 pixels: each step faint, the moving average strong.

    Args:
        scalars: The log of losses.
        picture: The file to write.
        previous: The log of an earlier run, whose moving average is drawn under the curve if the file exists.
    """
    figure = Figure(figsize=(9.6, 4.8), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if previous and previous.exists():
        steps, values = _columns(previous)
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
    """Return the mean over a twentieth of the steps to either side."""
    reach = len(values) // 20
    windows = [values[max(0, index - reach) : index + reach + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]
