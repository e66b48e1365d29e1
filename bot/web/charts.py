"""Line charts for the operator's pages, drawn by the template `charts.html` as inline SVG.

The coordinates of a chart are those of a square of 100 × 100 that the page stretches to any size, with the
origin at the top left. Labels are HTML beside the drawing, so that they keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from typing import Final

from bot.i18n import Say
from storage.counts import Approval
from training.evidence.proportions import wilson_interval
from training.evidence.sequential import ENOUGH, Evidence

SIZE: Final = 100.0
POINTS: Final = 200
"""The maximum number of points in a line; values in between are left out."""

EVIDENCE: Final = (0.01, 100.0)
"""The evidence at the bottom and the top of its chart; values outside this range are drawn at the edge."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line in a chart.

    Attributes:
        name: What the line shows; empty if the chart needs no legend.
        style: The class in style.css that gives the line its colour.
        points: The coordinates, as the `points` of an SVG polyline.
    """

    name: str
    style: str
    points: str

    @property
    def end(self) -> str:
        """The coordinates of the last point."""
        return self.points.rpartition(" ")[2]


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart.

    Attributes:
        title: The heading.
        summary: A description of the chart in words, for people who cannot see it.
        lines: The lines, including horizontal ones of the style "mark".
        vertical: The labels of the vertical axis, at the top and at the bottom.
        horizontal: The labels of the horizontal axis, on the left and on the right.
        band: The coordinates of an area behind the lines; empty if there is none.
    """

    title: str
    summary: str
    lines: tuple[Line, ...]
    vertical: tuple[str, str]
    horizontal: tuple[str, str]
    band: str = ""


def approval_chart(days: Mapping[str, Approval], summary: str, say: Say) -> Chart:
    """Return a chart of a model's approval so far after each day with votes, with its 95 % interval.

    `days` maps each UTC day with votes, in ISO format, to its votes in chronological order, and must not be empty.
    """
    so_far = list(accumulate(days.values(), lambda a, b: Approval(a.ups + b.ups, a.downs + b.downs)))
    intervals = [wilson_interval(each.ups, each.votes) for each in so_far]
    numbers = [date.fromisoformat(day).toordinal() for day in days]
    across = [_scaled(number, numbers[0], numbers[-1]) for number in numbers]
    low = [(x, SIZE * (1 - each[0])) for x, each in zip(across, intervals, strict=True)]
    high = [(x, SIZE * (1 - each[1])) for x, each in zip(across, intervals, strict=True)]
    if len(days) == 1:  # a band must have a width
        low, high = ([(0.0, each[0][1]), (SIZE, each[0][1])] for each in (low, high))
    line = [(x, SIZE * (1 - each.share)) for x, each in zip(across, so_far, strict=True)]
    first, *_, last = [*days, *days]
    return Chart(
        title=say("Approval so far"),
        summary=summary,
        lines=(_level(SIZE / 2, say("as many 👎 as 👍")), Line("", "main", _points(line))),
        vertical=("100 %", "0 %"),
        horizontal=(first if len(days) > 1 else "", last),
        band=_points([*high, *reversed(low)]),
    )


def evidence_chart(evidence: Evidence, summary: str, say: Say) -> Chart:
    """Return a chart of a trial's evidence after each pair of votes, on a logarithmic scale."""
    lines = ((say("worse"), "bad", evidence.harm_path), (say("no worse"), "good", evidence.no_worse_path))
    enough = SIZE - _scaled(math.log(ENOUGH), *map(math.log, EVIDENCE))
    return Chart(
        title=say("Evidence, pair by pair"),
        summary=summary,
        lines=(
            _level(enough, say("needed to decide ({enough})", enough=f"{ENOUGH:.0f}")),
            *(Line(name, style, _path([1.0, *path], EVIDENCE, math.log)) for name, style, path in lines),
        ),
        vertical=(f"{EVIDENCE[1]:g}", f"{EVIDENCE[0]:g}"),
        horizontal=("0", say.count("{number} pair", "{number} pairs", evidence.pairs)),
    )


def loss_chart(losses: Sequence[tuple[int, float]], summary: str, say: Say) -> Chart:
    """Return a chart of the loss after each training step; there must be at least one (step, loss) pair."""
    finite = [loss for _, loss in losses if math.isfinite(loss)]
    highest = max(finite, default=0.0) or 1.0
    return Chart(
        title=say("Loss of the new model"),
        summary=summary,
        lines=(
            Line("", "main", _path([loss if math.isfinite(loss) else highest for _, loss in losses], (0.0, highest))),
        ),
        vertical=(f"{highest:.2f}", "0"),
        horizontal=(str(losses[0][0]), say("step {step}", step=losses[-1][0])),
    )


def _path(values: Sequence[float], span: tuple[float, float], scale: Callable[[float], float] = float) -> str:
    """Return a line through values at equal distances; `span` holds the values at the bottom and the top."""
    kept = sorted({round(index * (len(values) - 1) / (POINTS - 1)) for index in range(POINTS)})
    bottom, top = map(scale, span)
    return _points(
        (
            _scaled(index, 0, len(values) - 1),
            SIZE - _scaled(scale(min(max(values[index], span[0]), span[1])), bottom, top),
        )
        for index in kept
    )


def _level(height: float, name: str = "") -> Line:
    """Return a horizontal line across the chart."""
    return Line(name, "mark", _points([(0.0, height), (SIZE, height)]))


def _scaled(value: float, first: float, last: float) -> float:
    """Return a value's coordinate, from 0 at `first` to 100 at `last`, or the middle if both are equal."""
    return SIZE * (value - first) / (last - first) if last > first else SIZE / 2


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
