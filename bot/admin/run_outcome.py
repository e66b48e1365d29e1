"""Descriptions of how a run ended: its verdict, its training data, its evaluation and its cost."""

from __future__ import annotations

from bot.admin.progress import MODEL_STATES, share_line, taught_by
from bot.i18n import Say
from storage.learning_records import Model, Run, TrainedOn
from storage.state_machines import ModelState, RunState
from training.data.imported_sources import source_title
from training.data.selection_counts import beyond_share, cut_off
from training.gate.report import Report
from training.job import DISLIKED, RATED
from training.number_format import clock, interval, percent, size


def outcome(run: Run, model: Model | None, say: Say) -> str:
    """Describe how a run ended, and the state of its model."""
    if run.state is RunState.CANCELLED:
        return say("Run {run} was cancelled. Nothing has changed.", run=run.id)
    if run.state is not RunState.DONE or model is None:
        reason = say(run.reason) or say("unknown")
        return say("Run {run} failed; nothing has changed. Reason: {reason}", run=run.id, reason=reason)
    text = say(
        "Run {run} is done. Model {model}: {state}.", run=run.id, model=model.id, state=say(MODEL_STATES[model.state])
    )
    verdict = [sentence(say(model.reason), say)] if model.reason else []
    if model.state is ModelState.REJECTED:
        verdict.append(say("The bot keeps its model."))
    elif model.state is ModelState.UNDECIDED:
        verdict.append(say("The live model stays. /promote {model} switches to the new one anyway.", model=model.id))
    told = [text, *verdict, *(numbers(model.report, say) if model.report else [])]
    return "\n".join(told)


def sentence(reason: str, say: Say) -> str:
    """Return a reason as a sentence; a name at its beginning, such as `run-1`, is not capitalised."""
    if reason.split(maxsplit=1)[0].isalpha():
        reason = reason[0].upper() + reason[1:]
    stop = "。" if say.language == "zh" else "."
    return reason if reason.endswith((stop, "!", "?")) else reason + stop


def numbers(report: str, say: Say) -> list[str]:
    """Return lines that summarise a run's report: its training data, its evaluation and its cost."""
    it = Report.from_json(report)
    return [
        say(
            "Learned from {taught}.",
            taught=taught_by(TrainedOn(it.effort.pairs, it.effort.votes, it.effort.raters), say),
        ),
        *(
            [
                say(
                    "Judged on {answers} rated answers: the model agrees with the votes in {agreement} of the "
                    "comparisons.",
                    answers=it.taste.answers,
                    agreement=interval(it.taste.agreement, it.taste.low, it.taste.high, say.language),
                )
            ]
            if it.taste.answers
            else []
        ),
        *([say("Skipped as too long: {count}.", count=it.effort.too_long)] if it.effort.too_long else []),
        *([share_line(it.effort.largest_share, say)] if it.effort.raters > 1 and it.effort.largest_share else []),
        *([say("Left out: {reasons}.", reasons=beyond_share(it.effort.over_share))] if it.effort.over_share else []),
        *([f"⚠ {say(limit)}"] if (limit := cut_off(it.effort.cut, it.effort.liked)) else []),
        *_beside(it.effort.taught, say),
        say(
            "Factual questions answered correctly: {live} before, {new} now ({questions} questions).",
            live=percent(it.live_correct),
            new=percent(it.correct),
            questions=it.questions,
        ),
        say(
            "Time: training {training}, merging {merging}, evaluating {evaluating}. Peak memory {memory}, adapter "
            "{adapter}.",
            training=clock(it.effort.training_seconds),
            merging=clock(it.effort.merging_seconds),
            evaluating=clock(it.seconds),
            memory=size(it.effort.peak_memory),
            adapter=size(it.effort.adapter_bytes),
        ),
    ]


def _beside(taught: dict[str, int], say: Say) -> list[str]:
    """Return a list with one line: the number of samples from each source other than rated answers.

    The list is empty if there are no such sources.
    """
    others = {source_title(path): count for path, count in taught.items() if path not in (RATED, DISLIKED)}
    if not others:
        return []
    listed = ", ".join(f"{name} ({count})" for name, count in others.items())
    return [say("Other sources: {sources}.", sources=listed)]
