"""The chart shown by /stats: answers, votes and each model's approval over time, and a trial's evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Final

from bot.admin.canary_standing import Standing
from bot.i18n import Say
from storage.counts import Day
from training.evidence.sequential import ENOUGH
from training.gate.fonts import TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.font_manager import FontProperties

MODELS_SHOWN: Final = 8
"""The maximum number of models in the chart; a longer legend would be unreadable."""


def most_asked(days: Sequence[Day]) -> list[str]:
    """Return the models with the most answers, in the order of their first answers."""
    asked = Counter[str]()
    for each in days:
        asked[each.model] += each.answers
    shown = {model for model, _ in asked.most_common(MODELS_SHOWN)}
    return [model for model in asked if model in shown]


def draw(days: Sequence[Day], first: date, last: date, say: Say, trial: Standing | None = None) -> bytes:
    """Return a PNG of 960 × 800 pixels: daily answers and votes at the top, each model's share of 👍 below.

    During a trial, the picture is 400 pixels taller and shows the evidence about the canary at the bottom.
    """
    # Imported only here: matplotlib takes half a second and 35 MB, which most bots never need.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.ticker import MaxNLocator

    font = FontProperties(fname=str(TEXT), size=10)
    span = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    figure = Figure(figsize=(9.6, 12.0 if trial else 8.0), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    above, below, *evidence = figure.subplots(3 if trial else 2, 1)
    answers, ups, downs = Counter[date](), Counter[date](), Counter[date]()
    for each in days:
        day = date.fromisoformat(each.day)
        answers[day] += each.answers
        ups[day] += each.ups
        downs[day] += each.downs
    above.bar(span, [answers[day] for day in span], color="tab:blue", alpha=0.4, label=say("answers"))
    above.plot(span, [ups[day] for day in span], color="tab:green", marker="o", label=say("thumbs up"))
    above.plot(span, [downs[day] for day in span], color="tab:red", marker="o", label=say("thumbs down"))
    above.set_title(say("Answers and votes per day"), fontproperties=font)
    above.yaxis.set_major_locator(MaxNLocator(integer=True))
    for model in most_asked(days):
        voted = [each for each in days if each.model == model and each.ups + each.downs]
        shares = [100 * each.ups / (each.ups + each.downs) for each in voted]
        below.plot([date.fromisoformat(each.day) for each in voted], shares, marker="o", label=model)
    below.set_title(say("Approval by model (% of votes)"), fontproperties=font)
    below.set_ylim(-5, 105)
    below.set_xlim(first - timedelta(days=1), last + timedelta(days=1))
    locator = AutoDateLocator(minticks=3)
    below.xaxis.set_major_locator(locator)
    below.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    above.sharex(below)
    for axes in evidence:
        assert trial is not None
        _draw_evidence(axes, trial, say, font)
    for axes in (above, below, *evidence):
        axes.grid(alpha=0.3)
        axes.legend(prop=font)
    written = BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def _draw_evidence(axes: Axes, trial: Standing, say: Say, font: FontProperties) -> None:
    """Draw the evidence after each pair of votes, and the amount of evidence needed to decide."""
    from matplotlib.ticker import MaxNLocator

    for path, label, colour in (
        (trial.evidence.harm_path, say("worse"), "tab:red"),
        (trial.evidence.no_worse_path, say("no worse"), "tab:green"),
    ):
        axes.plot(range(len(path) + 1), [1.0, *path], color=colour, label=label)
    axes.axhline(ENOUGH, color="tab:gray", linestyle="--", label=say("needed"))
    axes.set_yscale("log")
    axes.set_title(say("Evidence about the canary {model}, pair by pair", model=trial.trial.model), fontproperties=font)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
