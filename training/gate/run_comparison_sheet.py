"""The comparison sheet of a run: liked answers next to those of the live model and of the candidate.

All answers in a row are to the same question. The sheet shows users' data. It is therefore stored in the
run's directory, and `training.data.row_erasure` deletes it when a user erases an exchange that it
shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from inference.messages import PictureError
from training.data.llava import Lesson
from training.data.selection_counts import beyond_share, cut_off
from training.evaluation_jobs import EvaluationJob
from training.gate.comparison_sheet import Row, Sheet, thumbnail
from training.gate.comparison_sheet_png import draw
from training.gate.comparison_sheet_translations import LANGUAGES, Say, localized, words
from training.gate.report import Effort, Loss, Report, Taste
from training.gate.text_layout import lacks_characters
from training.job import DISLIKED, RATED
from training.number_format import clock, interval, percent, points, size
from training.run_folder import GAINS, PICTURE, SHEET

SHOWN: Final = 12
"""The maximum number of pairs on a sheet."""

RARE: Final = 1e-4
"""The probability below which the sheet shows only that it is smaller."""


def choose_rows(liked: Sequence[Lesson]) -> list[Lesson]:
    """Choose at most `SHOWN` lessons to show, taking one for each picture before a second for any of them."""
    seen = Counter[tuple[str, ...]]()
    repeats = []
    for each in liked:
        repeats.append(seen[each.subject])
        seen[each.subject] += 1
    return [liked[index] for index in sorted(range(len(liked)), key=lambda index: repeats[index])[:SHOWN]]


def prepare(lessons: Sequence[Lesson], images: Path) -> None:
    """Load the fonts and make the thumbnails before `write` needs them; `write` reports damaged pictures."""
    lacks_characters(" ")  # reads the fonts' tables of characters
    with suppress(PictureError, OSError):
        for name in dict.fromkeys(name for each in lessons for name in each.subject):
            thumbnail(images / name)


def write(job: EvaluationJob, report: Report, shown: Sequence[Lesson], live: Sequence[str], new: Sequence[str]) -> None:
    """Write the HTML page and the PNG picture of the sheet, in each language, into the run's directory.

    Questions that the two models answer differently come first. The plots must exist.

    Raises:
        PictureError: A picture cannot be decoded.
        OSError: A file cannot be read or written.
    """
    order = sorted(range(len(shown)), key=lambda index: live[index] == new[index])
    rows = [
        Row.from_lesson(shown[index], Path(job.images), (shown[index].turns[-1].text, live[index], new[index]))
        for index in order
    ]
    with ThreadPoolExecutor() as pool:  # Pillow compresses pictures without the GIL
        list(pool.map(partial(_write, job, report, rows), LANGUAGES))


def _write(job: EvaluationJob, report: Report, rows: Sequence[Row], language: str) -> None:
    say = words(language)
    sheet = Sheet(
        title=say(
            "Run {run}: {candidate} and {live} compared",
            run=job.run,
            candidate=job.candidate_name,
            live=job.live_name,
        ),
        columns=(
            say("liked answer"),
            say("{model}, live", model=job.live_name),
            say("{model}, new", model=job.candidate_name),
        ),
        rows=tuple(rows),
        decision=report.decision,
        verdict=say(report.reason or "it matches what people like and lost no more facts than allowed"),
        facts=facts(report, language),
        plots=tuple(_plots(job, report.taste, language)),
        language=language,
    )
    folder = Path(job.work)
    sheet.write(folder / localized(SHEET, language))
    draw(sheet, folder / localized(PICTURE, language))


def _plots(job: EvaluationJob, taste: Taste, language: str) -> Iterator[tuple[Path, str]]:
    """Yield the file of each plot in a language, with a description."""
    say = words(language)
    if job.curve:
        curve = Path(job.curve)
        file = curve.with_name(localized(curve.name, language))
        file = file if file.is_file() else curve  # an earlier version, which began the run, drew it in English only
        yield file, say("The loss of each step, its moving average, and the previous run's.")
    if taste.answers:
        yield (
            Path(job.work) / localized(GAINS, language),
            say(
                "How much likelier each rated answer is for the new model than for the live one. If the new model has "
                "learned what people like, liked answers gain more than other answers to the same question, and "
                "disliked ones gain less."
            ),
        )


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / max(part, whole):.0f} %)"


def _spread(effort: Effort, say: Say) -> str:
    """Describe how the pairs to train on are distributed among the raters."""
    if effort.raters == 1:
        return say("one person: a personal bot")
    share = f"{100 * effort.largest_share:.0f}"
    return say("{people} people; the largest share is {share} %", people=effort.raters, share=share)


def _bounded(loss: Loss, say: Say) -> str:
    """Format a loss and its upper bound, or return an empty string if the models were not compared."""
    if not loss.questions:
        return ""
    return say(
        "{lost} worse, {gained} better of {questions}; net loss at most {bound} points ({allowed} allowed)",
        bound=points(loss.bound),
        allowed=f"{loss.allowed:g}",
        lost=loss.lost,
        gained=loss.gained,
        questions=loss.questions,
    )


def _change(before: int, after: int, questions: int, say: Say) -> str:
    """Format `before` → `after` of `questions`, or return an empty string if `questions` is 0."""
    if not questions:
        return ""
    return say("{before} → {after} of {questions}", before=before, after=after, questions=questions)


def facts(report: Report, language: str = "en") -> tuple[tuple[str, str], ...]:
    """Return a run's figures for its sheet as (name, value) pairs, leaving out figures that the run lacks."""
    say, effort, taste, drift = words(language), report.effort, report.taste, report.drift
    others = sum(count for source, count in effort.taught.items() if source not in (RATED, DISLIKED))
    disliked = effort.taught.get(DISLIKED, 0)
    limit = cut_off(effort.cut, effort.liked)
    rated = say("{answers} answers rated by {people} people", answers=taste.answers, people=taste.raters)
    chance = f"{100 * taste.p_value:.3g}" if taste.p_value >= RARE else f"< {100 * RARE:g}"
    by_chance = {"chance": chance, "allowed": f"{100 * taste.alpha:.3g}"}
    longer = f"{100 * drift.times_longer:.0f}"
    right = {"before": f"{100 * report.live_correct:.1f}", "after": percent(report.correct)}
    numbers = (
        (say("learned from"), say("{number} liked answers", number=effort.pairs)),
        (say("and from"), say("{number} disliked answers", number=disliked) if disliked else ""),
        (say("including corrections"), _share(effort.corrections, effort.pairs) if effort.corrections else ""),
        (say("skipped as too long"), str(effort.too_long or "")),
        (say("other sources"), say("{number} samples", number=others) if others else ""),
        (say("votes"), say("{votes} from {people} people", votes=effort.votes, people=effort.raters)),
        (say("answers by person"), _spread(effort, say) if effort.largest_share else ""),
        (say("left out"), say(beyond_share(effort.over_share)) if effort.over_share else ""),
        (say("cut off"), say(limit) if limit else ""),
        (say("judged by"), rated if taste.answers else say("no rated answers")),
        (
            say("agreement with the votes"),
            interval(taste.agreement, taste.low, taste.high, language) if taste.answers else "",
        ),
        (
            say("probability of such agreement by chance"),
            say("{chance} % (must not exceed {allowed} %)", **by_chance) if taste.answers else "",
        ),
        (say("correct factual answers"), say("{before} → {after} of {questions}", questions=report.questions, **right)),
        (say("facts, against the live model"), _bounded(report.facts, say)),
        (say("facts, against the base model"), _bounded(report.facts_base, say)),
        (say("leading questions, against the live model"), _bounded(report.leading, say)),
        (say("leading questions, against the base model"), _bounded(report.leading_base, say)),
        (say("empty or looping answers"), _change(drift.live_broken, drift.broken, drift.answers, say)),
        (say("different answers"), _change(drift.live_distinct, drift.distinct, drift.answers, say)),
        (say("length of answers"), say("{percent} % of the live model's", percent=longer) if drift.answers else ""),
        (say("training"), say("{time}, {steps} steps", time=clock(effort.training_seconds), steps=effort.steps)),
        (say("merging"), clock(effort.merging_seconds)),
        (say("evaluating"), clock(report.seconds)),
        (say("peak memory"), size(effort.peak_memory)),
        (say("adapter"), size(effort.adapter_bytes)),
    )
    return tuple((name, value) for name, value in numbers if value)
