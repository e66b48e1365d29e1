"""/retrain and /cancel, and the button that does the latter: the runs, for admins.

Knows how a request and its outcome are worded; the progress of a run is told by `bot.admin.notifications`. A request
whose handling a crash has interrupted is not made twice: what can be seen in the ledger tells whether it was carried
out. To be asked behind `admin`.
"""

from __future__ import annotations

from pathlib import Path

from aiogram import Router
from aiogram.filters import CommandObject
from aiogram.types import CallbackQuery, Message, User

from bot.admin.protocol import REFUSALS, AdminActions, refused
from bot.handlers.callbacks import acknowledge
from bot.handlers.commands import Command
from bot.i18n import Say
from bot.retelling import retold
from bot.telegram.keyboards import CancelRun
from bot.telegram.outbox import Reply
from bot.updates.inbox import Delivery
from storage.errors import RunBusy
from storage.ledger import Ledger
from storage.records import Run


def router() -> Router:
    """The handlers of this module."""
    runs = Router(name="runs")
    runs.message.register(retrain, Command("retrain"))
    runs.message.register(cancel, Command("cancel"))
    runs.callback_query.register(cancel_this, CancelRun.filter())
    return runs


async def retrain(
    message: Message,
    command: CommandObject,
    event_from_user: User,
    delivery: Delivery,
    reply: Reply,
    say: Say,
    admin: AdminActions,
    ledger: Ledger,
) -> None:
    """Start a run, once; with "dry" only say what it would be."""
    if wish := (command.args or "").strip():
        await reply.finish(await _rehearsed(admin, say) if wish == "dry" else say("I know /retrain and /retrain dry."))
        return
    run = await _requested_before(ledger, event_from_user.id, delivery)
    try:
        run = run or await admin.retrain(event_from_user.id)
    except RunBusy:
        await reply.finish(say("A run is under way already. /status shows how it goes, /cancel stops it."))
    except REFUSALS as refusal:
        await reply.finish(refused(refusal, say))
    else:
        await reply.finish(say("Run {run} begins. I will keep you informed here.", run=run.id))


async def _requested_before(ledger: Ledger, by: int, delivery: Delivery) -> Run | None:
    """The run that an interrupted attempt at this very request has started."""
    if delivery.attempt == 1:
        return None
    mine = (run for run in await ledger.runs.latest(10) if run.requested_by == by and run.created >= delivery.received)
    return next(mine, None)


async def _rehearsed(admin: AdminActions, say: Say) -> str:
    try:
        plan = await admin.plan()
    except REFUSALS as refusal:
        return refused(refusal, say)
    counts, recipe = plan.counts, plan.recipe
    lines = [
        say(
            "A run now would learn from {pairs} liked answers of {people} people; it would be judged by {held_out} "
            "more.",
            pairs=plan.pairs,
            people=counts.raters,
            held_out=plan.held_out,
        ),
        say(
            "Of {rated} rated answers {disliked} are not liked enough, {unfinished} were cut short, {too_long} are too "
            "long, {duplicates} say the same as others.",
            rated=counts.rated,
            disliked=counts.disliked,
            unfinished=counts.unfinished,
            too_long=counts.too_long,
            duplicates=counts.duplicates,
        ),
        *([f"⚠ {retold(counts.limit, say)}"] if counts.limit else []),
        say("How: as {file} says.", file=recipe.name)
        if isinstance(recipe, Path)
        else say("How: {method}, each pair {epochs} times.", method=recipe.method, epochs=f"{recipe.epochs:g}"),
    ]
    if plan.corrections:
        lines.append(
            say(
                "Corrections among them: {corrections} ({share} %).",
                corrections=plan.corrections,
                share=round(100 * plan.corrections / plan.pairs),
            )
        )
    if plan.sources:
        lines.append(say("Beside them from elsewhere: {sources}.", sources=", ".join(plan.sources)))
    return "\n".join(lines)


async def cancel(message: Message, event_from_user: User, reply: Reply, say: Say, admin: AdminActions) -> None:
    """Cancel the run under way."""
    try:
        run = await admin.cancel(event_from_user.id)
    except REFUSALS as refusal:
        await reply.finish(refused(refusal, say))
        return
    if run is None:
        await reply.finish(say("There is no run to cancel."))
    else:
        await reply.finish(say("Run {run} is being cancelled.", run=run.id))


async def cancel_this(
    query: CallbackQuery, callback_data: CancelRun, say: Say, admin: AdminActions, ledger: Ledger
) -> None:
    """Cancel the run above the button, and no other."""
    active = await ledger.runs.active()
    if active is None or active.id != callback_data.run:
        await acknowledge(query, say("Run {run} is over already.", run=callback_data.run))
        return
    try:
        await admin.cancel(query.from_user.id)
    except REFUSALS as refusal:
        await acknowledge(query, refused(refusal, say))
    else:
        await acknowledge(query, say("Run {run} is being cancelled.", run=active.id))
