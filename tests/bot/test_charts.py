"""The charts of the operator's pages: where their lines lie, and what happens at the edges."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from bot.i18n import Translator
from bot.web.charts import POINTS, SIZE, Chart, approval_chart, evidence_chart, loss_chart
from storage.counts import Approval
from training.evidence.proportions import wilson_interval
from training.evidence.sequential import ENOUGH, Vote, canary_evidence

SAY = Translator({}).to("en")


def points(text: str) -> list[tuple[float, float]]:
    """Return the coordinates of an SVG polyline."""
    return [(float(x), float(y)) for x, y in (each.split(",") for each in text.split())]


def check(chart: Chart) -> None:
    """Check that a chart is within its square and that its lines run from left to right."""
    for line in chart.lines:
        found = points(line.points)
        assert all(0 <= x <= SIZE and 0 <= y <= SIZE for x, y in found)
        assert all(before[0] < after[0] for before, after in pairwise(found))
        assert points(line.end) == found[-1:]
        assert len(found) <= POINTS


def test_approval_adds_up_day_by_day() -> None:
    """Each day's point is the share of all votes so far, in its interval; days without votes leave a distance."""
    days = {"2026-01-01": Approval(1, 1), "2026-01-02": Approval(2, 0), "2026-01-05": Approval(0, 4)}
    chart = approval_chart(days, "run-1", SAY)
    check(chart)
    assert points(chart.lines[-1].points) == [(0, 50), (25, 25), (100, 62.5)]
    high, low = points(chart.band)[2], points(chart.band)[3]
    expected = wilson_interval(3, 8)
    assert (low[1], high[1]) == pytest.approx([SIZE * (1 - each) for each in expected], abs=0.06)
    assert chart.horizontal == ("2026-01-01", "2026-01-05")


def test_one_day_has_a_band_too() -> None:
    """With the votes of one day, the point lies in the middle of a band as wide as the chart."""
    chart = approval_chart({"2026-01-01": Approval(3, 1)}, "run-1", SAY)
    assert points(chart.lines[-1].points) == [(50, 25)]
    assert {x for x, _ in points(chart.band)} == {0, SIZE}
    assert chart.horizontal == ("", "2026-01-01")


def test_evidence_crosses_the_line_when_it_suffices() -> None:
    """On the logarithmic scale, evidence of 20 lies on the line; stronger evidence is drawn at the edge at most."""
    votes = [Vote("Ada", canary, liked=not canary) for _ in range(30) for canary in (True, False)]
    evidence = canary_evidence(votes, 0.05)
    chart = evidence_chart(evidence, "run-1", SAY)
    check(chart)
    enough, worse, no_worse = (points(line.points) for line in chart.lines)
    crossed = next(index for index, each in enumerate([1.0, *evidence.harm_path]) if each >= ENOUGH)
    assert worse[crossed][1] <= enough[0][1] < worse[crossed - 1][1]
    assert worse[0][1] == no_worse[0][1] == SIZE / 2 and worse[-1][1] == 0 and no_worse[-1][1] > SIZE / 2
    assert chart.horizontal == ("0", "30 pairs")
    check(evidence_chart(canary_evidence([], 0.05), "run-1", SAY))


def test_a_long_loss_curve_is_thinned_out() -> None:
    """The first and the last of many losses are kept, and a loss that is no number is drawn at the top."""
    losses = [(step, 4 / step) for step in range(1, 5_001)]
    chart = loss_chart([*losses, (5_001, math.nan)], "run 1", SAY)
    check(chart)
    assert points(chart.lines[0].points)[0] == (0, 0) and points(chart.lines[0].points)[-1] == (100, 0)
    assert (chart.vertical, chart.horizontal) == (("4.00", "0"), ("1", "step 5001"))
    check(loss_chart([(1, 0.0)], "run 1", SAY))
