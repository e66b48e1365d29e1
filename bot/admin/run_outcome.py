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
    """Return a reason as a sentence; a name at its beginning, such as `run-1`, is not capitalized."""
    if reason.split(maxsplit=1)[0].isalpha():
        reason = reason[0].upper() + reason[1:]
    stop = "。" if say.language == "zh" else "."
    return reason if reason.endswith((stop, "!", "?")) else reason + stop


def numbers(report: str, say: Say) -> list[str]:
    """Return lines that summarize a run's report: its training data, its evaluation and its cost."""
    it = Report.from_json(report)
    effort, taste = it.effort, it.taste
    lines = [say("Learned from {taught}.", taught=taught_by(TrainedOn(effort.pairs, effort.votes, effort.raters), say))]
    if taste.answers:
        judged = say(
            "Judged on {answers} rated answers: the model agrees with the votes in {agreement} of the comparisons.",
            answers=taste.answers,
            agreement=interval(taste.agreement, taste.low, taste.high, say.language),
        )
        lines.append(judged)
    if effort.too_long:
        lines.append(say("Skipped as too long: {count}.", count=effort.too_long))
    if effort.raters > 1 and effort.largest_share:
        lines.append(share_line(effort.largest_share, say))
    if effort.over_share:
        lines.append(say("Left out: {reasons}.", reasons=beyond_share(effort.over_share)))
    if limit := cut_off(effort.cut, effort.liked):
        lines.append(f"⚠ {say(limit)}")
    if others := [f"{source_title(path)} ({n})" for path, n in effort.taught.items() if path not in (RATED, DISLIKED)]:
        lines.append(say("Other sources: {sources}.", sources=", ".join(others)))
    facts = say(
        "Factual questions answered correctly: {live} before, {new} now ({questions} questions).",
        live=percent(it.live_correct),
        new=percent(it.correct),
        questions=it.questions,
    )
    cost = say(
        "Time: training {training}, merging {merging}, evaluating {evaluating}. Peak memory {memory}, adapter "
        "{adapter}.",
        training=clock(effort.training_seconds),
        merging=clock(effort.merging_seconds),
        evaluating=clock(it.seconds),
        memory=size(effort.peak_memory),
        adapter=size(effort.adapter_bytes),
    )
    return [*lines, facts, cost]
