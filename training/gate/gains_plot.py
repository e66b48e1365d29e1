"""The gains of a run's rated answers as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.gate.report import Taste


def draw_gains(taste: Taste, picture: Path) -> None:
    """Write the gain of each rated answer, next to that of the other answers, as a PNG of 960 x 480 pixels."""
    figure = Figure(figsize=(9.6, 4.8), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for liked, label, marker, colour in ((True, "liked", "^", "tab:green"), (False, "disliked", "v", "tab:red")):
        chosen = [index for index, like in enumerate(taste.likes) if like is liked]
        axes.scatter(chosen, [taste.gains[index] for index in chosen], marker=marker, color=colour, label=label)
    axes.scatter(range(len(taste.contrasts)), taste.contrasts, s=12, color="tab:gray", label="others, mean")
    axes.axhline(0, color="tab:gray", linewidth=1)
    axes.set_xlabel("rated answer, oldest first")
    axes.set_ylabel("gain (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture)
