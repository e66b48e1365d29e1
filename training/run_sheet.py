"""The sheet of a run: what people liked, and what the live model and the candidate say to the same questions.

Knows which of the held-out pairs are shown and what is told of the run; leaves the answering to `evaluate` and the
layout to `sheet`. Everything on it is people's: it lies in the run's directory, and goes when one of them withdraws
what is on it (`withdrawal`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from training.figures import clock, percent, size
from training.job import RATED, EvaluationJob
from training.llava import Lesson
from training.report import Report
from training.run_folder import PICTURE, SHEET
from training.selection import cut_off
from training.sheet import Row, Sheet
from training.sheet_picture import draw

SHOWN: Final = 12
"""So many pairs are shown at most: what an admin looks through."""


def chosen(held_out: Sequence[Lesson]) -> list[Lesson]:
    """The pairs to show: of every picture one before a second of any."""
    times = Counter[tuple[str, ...]]()
    turns = []
    for each in held_out:
        turns.append(times[each.subject])
        times[each.subject] += 1
    return [held_out[place] for place in sorted(range(len(held_out)), key=lambda place: turns[place])[:SHOWN]]


def write(job: EvaluationJob, report: Report, shown: Sequence[Lesson], live: Sequence[str], new: Sequence[str]) -> None:
    """Write the page and the picture into the run's directory; questions that the models answer otherwise come first.

    Raises `PictureError`, OSError.
    """
    differing = sorted(range(len(shown)), key=lambda place: live[place] == new[place])
    rows = [
        Row.of(shown[place], Path(job.images), (shown[place].turns[-1].text, live[place], new[place]))
        for place in differing
    ]
    sheet = Sheet(
        title=f"Run {job.run}: {job.candidate_name} beside {job.live_name}",
        columns=("what people liked", f"{job.live_name}, live", f"{job.candidate_name}, new"),
        rows=tuple(rows),
        accepted=report.accepted,
        verdict=report.reason or "likelier to say what people like, and no worse on the facts",
        facts=facts(report),
        curve=Path(job.curve) if job.curve else None,
    )
    folder = Path(job.work)
    sheet.write(folder / SHEET)
    draw(sheet, folder / PICTURE)


def facts(report: Report) -> tuple[tuple[str, str], ...]:
    """The numbers of a run as (name, value)."""
    effort = report.effort
    others = sum(count for source, count in effort.taught.items() if source != RATED)
    return (
        ("learned", f"{effort.pairs} liked answers"),
        *([("too long to learn", f"{effort.too_long} more")] if effort.too_long else []),
        *([("and from elsewhere", f"{others} samples")] if others else []),
        ("votes", f"{effort.votes} of {effort.raters} people"),
        *([("cut off", note)] if (note := cut_off(effort.cut, effort.liked)) else []),
        ("judged by", f"{report.held_out} more of them"),
        ("loss on those", f"{report.live_nll:.3f} → {report.nll:.3f}"),
        ("facts right", f"{100 * report.live_correct:.1f} → {percent(report.correct)} of {report.questions}"),
        ("training", f"{clock(effort.training_seconds)}, {effort.steps} steps"),
        ("merging", clock(effort.merging_seconds)),
        ("evaluating", clock(report.seconds)),
        ("peak memory", size(effort.peak_memory)),
        ("adapter", size(effort.adapter_bytes)),
    )
