"""The plots of a run: PNG files of 960 x 480 pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.gate.report import Taste
from training.xtuner.scalars import losses


def draw_curve(scalars: Path, picture: Path, previous: Path | None = None) -> None:
    """Draw the loss curve, with a faint line for the individual steps and a bold one for their moving average.

    Args:
        scalars: The loss log.
        picture: The file to write.
        previous: The loss log of an earlier run; if the file exists, its moving average is drawn behind the
            curve.
    """
    with _plot(picture, "step", "loss (nats per token)") as axes:
        if previous and previous.exists():
            steps, values = _columns(previous)
            axes.plot(steps, _smooth(values), "--", color="tab:gray", alpha=0.7, linewidth=2, label="previous run")
        steps, values = _columns(scalars)
        axes.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1, label="each step")
        axes.plot(steps, _smooth(values), color="tab:blue", linewidth=2, label="moving average")
        axes.set_ylim(bottom=0)


def draw_gains(taste: Taste, picture: Path) -> None:
    """Draw the gain of each rated answer next to the mean gain of other answers to the same question."""
    with _plot(picture, "rated answer, oldest first", "gain (nats per token)") as axes:
        for liked, label, marker, colour in ((True, "liked", "^", "tab:green"), (False, "disliked", "v", "tab:red")):
            chosen = [index for index, like in enumerate(taste.likes) if like is liked]
            axes.scatter(chosen, [taste.gains[index] for index in chosen], marker=marker, color=colour, label=label)
        axes.scatter(range(len(taste.contrasts)), taste.contrasts, s=12, color="tab:gray", label="others, mean")
        axes.axhline(0, color="tab:gray", linewidth=1)


@contextmanager
def _plot(picture: Path, across: str, up: str) -> Iterator[Axes]:
    """Yield the axes of a new plot, and write the plot to `picture` afterwards.

    `across` and `up` are the labels of the horizontal and the vertical axis.
    """
    figure = Figure(figsize=(9.6, 4.8), dpi=100, layout="tight")
    axes = figure.add_subplot()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    yield axes
    axes.legend()
    figure.savefig(picture)


def _columns(scalars: Path) -> tuple[list[int], list[float]]:
    points = losses(scalars)
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the moving average over a window that extends a twentieth of all steps to either side."""
    reach = len(values) // 20
    windows = [values[max(0, index - reach) : index + reach + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]
