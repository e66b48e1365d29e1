"""The plots of a run: PNG files of 960 x 480 pixels, one in each language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from training.gate.comparison_sheet_translations import LANGUAGES, Say, localized, words
from training.gate.fonts import TEXT
from training.gate.report import Taste
from training.xtuner.scalars import losses


def draw_curve(scalars: Path, picture: Path, previous: Path | None = None) -> None:
    """Draw the loss curve, with a faint line for the individual steps and a bold one for their moving average.

    Args:
        scalars: The loss log.
        picture: The file to write; in other languages, its name contains the language.
        previous: The loss log of an earlier run; if the file exists, its moving average is drawn behind the
            curve.
    """
    for axes, say in _plots(picture):
        axes.set_xlabel(say("step"))
        axes.set_ylabel(say("loss (nats per token)"))
        if previous and previous.exists():
            steps, values = _columns(previous)
            label = say("previous run")
            axes.plot(steps, _smooth(values), "--", color="tab:gray", alpha=0.7, linewidth=2, label=label)
        steps, values = _columns(scalars)
        axes.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1, label=say("each step"))
        axes.plot(steps, _smooth(values), color="tab:blue", linewidth=2, label=say("moving average"))
        axes.set_ylim(bottom=0)


def draw_gains(taste: Taste, picture: Path) -> None:
    """Draw the gain of each rated answer next to the mean gain of other answers to the same question.

    In other languages, the name of the file contains the language.
    """
    for axes, say in _plots(picture):
        axes.set_xlabel(say("rated answer, oldest first"))
        axes.set_ylabel(say("gain (nats per token)"))
        styles = ((True, say("liked"), "^", "tab:green"), (False, say("disliked"), "v", "tab:red"))
        for liked, label, marker, colour in styles:
            chosen = [index for index, like in enumerate(taste.likes) if like is liked]
            axes.scatter(chosen, [taste.gains[index] for index in chosen], marker=marker, color=colour, label=label)
        others = say("others, mean")
        axes.scatter(range(len(taste.contrasts)), taste.contrasts, s=12, color="tab:gray", label=others)
        axes.axhline(0, color="tab:gray", linewidth=1)


def _plots(picture: Path) -> Iterator[tuple[Axes, Say]]:
    """Yield, for each language, the axes of a new plot and a translator, and write the plot afterwards."""
    font = FontProperties(fname=TEXT)
    for language in LANGUAGES:
        figure = Figure(figsize=(9.6, 4.8), dpi=100, layout="tight")
        axes = figure.add_subplot()
        axes.grid(alpha=0.3)
        yield axes, words(language)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_fontproperties(font)
        axes.legend(prop=font)
        figure.savefig(picture.with_name(localized(picture.name, language)))


def _columns(scalars: Path) -> tuple[list[int], list[float]]:
    points = losses(scalars)
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the moving average over a window that extends a twentieth of all steps to either side."""
    reach = len(values) // 20
    windows = [values[max(0, index - reach) : index + reach + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]
