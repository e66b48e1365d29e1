"""Handlers for /retrain and /cancel and their buttons, with which admins start and cancel runs.

`bot.admin.notifications` shows the progress of a run. A request is carried out only once, even if a
crash interrupts its handling, because the ledger records what was done.
"""

from __future__ import annotations

from pathlib import Path

from aiogram import Router
from aiogram.filters import CommandObject
from aiogram.types import CallbackQuery, Message

from bot.admin.progress import share_line
from bot.admin.refusals import REFUSALS, NothingNew, refused, run_refused
from bot.handlers.button_taps import TapRefused, acknowledge
from bot.handlers.commands import Command
from bot.handlers.request import Request
from bot.telegram.callback_data import CancelRun, TrainAgain
from bot.telegram.keyboards import one_button
from storage.learning_records import Run
from storage.translatable_reason import Reason, listed
from training.data.imported_sources import source_title


def register(router: Router) -> None:
    """Register the handlers of this module.

    Call after `access.register`, whose handlers refuse users who are not admins.
    """
    router.message.register(retrain, Command("retrain"))
    router.message.register(cancel, Command("cancel"))
    router.callback_query.register(cancel_this, CancelRun.filter())
    router.callback_query.register(train_again, TrainAgain.filter())


async def retrain(message: Message, command: CommandObject, request: Request) -> None:
    """Start a run or, if the argument is "dry", only describe what it would do."""
    reply, say = request.reply, request.say
    argument = (command.args or "").strip()
    if argument == "dry":
        try:
            text = await _dry_run(request)
        except REFUSALS as refusal:
            text = refused(refusal, say)
        await reply.finish(text)
    elif argument:
        await reply.finish(say("Usage: /retrain or /retrain dry"))
    else:
        await _start(request)


async def train_again(query: CallbackQuery, callback_data: TrainAgain, request: Request) -> None:
    """Start a run even though there is nothing new to learn from.

    Nothing is started if another run has ended since the button was shown.
    """
    last = await request.services.ledger.runs.last_verdict()
    outdated = request.delivery.attempt == 1 and (last is None or last[0].id != callback_data.run)
    await acknowledge(query, request.say("Another run has ended since.") if outdated else "")
    if not outdated:
        await _start(request, confirmed=True)


async def _start(request: Request, *, confirmed: bool = False) -> None:
    reply, say, runs = request.reply, request.say, request.services.runs
    markup = None
    try:
        run = await _started_before(request) or await runs.retrain(request.user.id, confirmed=confirmed)
        text = say("Run {run} is starting. I'll post its progress here.", run=run.id)
        if futile := runs.futile(run):
            text = f"{text}\n⚠ {say(futile)}"
    except REFUSALS as refusal:
        text = run_refused(refusal, say)
        if isinstance(refusal, NothingNew):
            markup = one_button(say("Train again"), TrainAgain(run=refusal.run.id))
            text = f"⚠ {say(refusal.futile)}\n{text}" if refusal.futile else text
    await reply.finish(text, markup)


async def _started_before(request: Request) -> Run | None:
    """Return the run that an interrupted earlier attempt at this request started, or None if there is none."""
    delivery = request.delivery
    if delivery.attempt == 1:
        return None
    runs = await request.services.ledger.runs.latest(10)
    own = (run for run in runs if run.requested_by == request.user.id and run.created >= delivery.received)
    return next(own, None)


async def _dry_run(request: Request) -> str:
    say = request.say
    plan = await request.services.runs.plan()
    selection, recipe = plan.selection, plan.recipe
    counts, pairs = selection.counts, len(selection.train)
    lines = [
        say(
            "A run started now would learn from {answers} from {people}; its model would be judged on {judged} rated "
            "answers.",
            answers=say.count("{number} liked answer", "{number} liked answers", pairs),
            people=say.count("{number} person", "{number} people", counts.raters),
            judged=len(selection.judged),
        )
    ]
    if counts.raters > 1:
        lines.append(share_line(selection.largest_share, say))
    if selection.corrections:
        share = round(100 * selection.corrections / pairs)
        lines.append(say("Corrections: {corrections} ({share} %).", corrections=selection.corrections, share=share))
    disliked = [Reason("{number} not liked enough", number=counts.disliked)] if counts.disliked else []
    if left_out := disliked + counts.left_out:
        reasons = listed(left_out)
        lines.append(
            say("Of {rated} rated answers, these were left out: {reasons}.", rated=counts.rated, reasons=reasons)
        )
    if counts.waiting:
        lines.append(say(counts.waiting))
    if selection.futile:
        lines.append(f"⚠ {say(selection.futile)}")
    if counts.limit:
        lines.append(f"⚠ {say(counts.limit)}")
    if isinstance(recipe, Path):
        lines.append(say("Method: as set in {file}.", file=recipe.name))
    else:
        epochs = f"{recipe.epochs:g}"
        lines.append(say("Method: {method}; each answer is used {epochs} times.", method=recipe.method, epochs=epochs))
    if plan.sources:
        titles = ", ".join(source_title(str(each.path)) for each in plan.sources)
        lines.append(say("Other sources: {sources}.", sources=titles))
    return "\n".join(lines)


async def cancel(message: Message, request: Request) -> None:
    """Cancel the active run."""
    reply, say = request.reply, request.say
    try:
        run = await request.services.runs.cancel(request.user.id)
    except REFUSALS as refusal:
        await reply.finish(refused(refusal, say))
        return
    if run is None:
        await reply.finish(say("There's no run to cancel."))
    else:
        await reply.finish(say("Run {run} is being cancelled.", run=run.id))


async def cancel_this(query: CallbackQuery, callback_data: CancelRun, request: Request) -> None:
    """Cancel the run shown above the tapped button, and no other."""
    services, say = request.services, request.say
    active = await services.ledger.runs.active()
    if active is None or active.id != callback_data.run:
        raise TapRefused(say("Run {run} has already ended.", run=callback_data.run))
    try:
        await services.runs.cancel(request.user.id)
    except REFUSALS as refusal:
        raise TapRefused(refused(refusal, say)) from refusal
    await acknowledge(query, say("Run {run} is being cancelled.", run=active.id))
