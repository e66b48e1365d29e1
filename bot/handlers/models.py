"""Handlers for /models, /promote, /rollback and their buttons, with which admins choose the live model.

If a crash interrupts a change, repeating the request does not make the change twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Final

from aiogram import Router
from aiogram.filters import CommandObject
from aiogram.types import CallbackQuery, Message

from bot.admin.canary_standing import standing_text
from bot.admin.model_news import approved
from bot.admin.progress import MODEL_STATES, approval_text, merging, model_state
from bot.admin.refusals import CHANGED, REFUSALS, AdminRefusal, RejectedModel, refused
from bot.handlers.button_taps import acknowledge, remove_buttons
from bot.handlers.commands import Command
from bot.handlers.request import Request
from bot.i18n import Say, later
from bot.telegram.callback_data import Approve, Overrule, Promote, RollBack, StopCanary
from bot.telegram.errors import CALL_ERRORS
from bot.telegram.keyboards import canary_buttons, one_button, promote_buttons
from storage.counts import Approval
from storage.errors import UnknownRecord
from storage.learning_records import Model
from storage.state_machines import ModelState
from storage.translatable_reason import Reason
from training.job import Progress

SHOW_SECONDS: Final = 1.0

IN_CHAT: Final = later("Changed in the chat by {name}: {what}")

OFFERED: Final = 8
"""How many of the newest models have a button; /promote accepts any model."""


def register(router: Router) -> None:
    """Register the handlers of this module.

    Call after `access.register`, whose handlers refuse users who are not admins.
    """
    router.message.register(show, Command("models"))
    router.message.register(promote, Command("promote"))
    router.message.register(roll_back, Command("rollback"))
    router.callback_query.register(promote_this, Promote.filter())
    router.callback_query.register(overrule, Overrule.filter())
    router.callback_query.register(approve_this, Approve.filter())
    router.callback_query.register(stop_canary, StopCanary.filter())
    router.callback_query.register(roll_back_from, RollBack.filter())


async def show(message: Message, request: Request) -> None:
    """List the models, with buttons for those that can be made live or wait for approval."""
    ledger, reply, say = request.services.ledger, request.reply, request.say
    kept = await ledger.models.all()
    approvals = await ledger.counts.approvals()
    approve = request.services.settings.training.approve
    lines = [_line(model, approvals.get(model.id, Approval()), say, approve=approve) for model in kept]
    tried = await request.services.trials.standing()
    live = next((model.id for model in kept if model.state is ModelState.LIVE), "")
    before = await ledger.models.previous()
    previous = before.id if before else ""
    others = [
        model.id
        for model in reversed(kept)
        if model.state in (ModelState.CANDIDATE, ModelState.UNDECIDED, ModelState.RETIRED)
        and model.kept
        and model.id != previous
    ]
    waiting = {model.id for model in kept if approve and model.state is ModelState.CANDIDATE}
    markup = promote_buttons(others[:OFFERED], live, previous, say, waiting=waiting)
    if tried:
        lines.append(standing_text(tried, say))
        markup.inline_keyboard[:0] = canary_buttons(tried.trial.model, say).inline_keyboard
    await reply.finish("\n".join(lines) or say("There's no model yet."), markup if markup.inline_keyboard else None)


def _line(model: Model, approval: Approval, say: Say, *, approve: bool) -> str:
    """Return a line with a model's state, creation date and votes, and the reason if it was held back."""
    mark = {ModelState.LIVE: "▶", ModelState.CANARY: "▷"}.get(model.state, "·")
    line = f"{mark} {model.id}: {model_state(model, say, approve=approve)}, "
    line += f"{datetime.fromtimestamp(model.created, UTC):%Y-%m-%d}"
    if approval.votes:
        line += f", {approval_text(approval, say)}"
    return f"{line} ({say(model.reason)})" if model.reason else line


async def promote(message: Message, command: CommandObject, request: Request) -> None:
    """Make the model named in the command live; repeating the command changes nothing."""
    if model := (command.args or "").strip():
        await _promote(model, request)
    else:
        await request.reply.finish(request.say("Usage: /promote ID. /models lists the IDs."))


async def promote_this(query: CallbackQuery, callback_data: Promote, request: Request) -> None:
    """Switch to the model whose button was tapped."""
    await acknowledge(query)
    await _promote(callback_data.model, request)


async def approve_this(query: CallbackQuery, callback_data: Approve, request: Request) -> None:
    """Put the candidate whose button was tapped into service, as a canary or as the live model."""
    await acknowledge(query)
    reply, say, wanted = request.reply, request.say, callback_data.model
    await reply.show_partial(say("Warming up {model}…", model=wanted))
    try:
        model = await request.services.trials.approve(wanted, request.actor)
    except REFUSALS as refusal:
        await _refuse_decision(query, wanted, ModelState.CANDIDATE, refusal, request)
        return
    if model.state is ModelState.CANARY:
        tried = await request.services.trials.standing()
        text = standing_text(tried, say) if tried else model.id
        await reply.finish(text, canary_buttons(model.id, say))
        if isinstance(sent := reply.messages[-1], int):
            await request.services.ledger.model_buttons.add(reply.place.chat, sent, model, text)
    else:
        await reply.finish(say("{model} now answers everyone.", model=wanted))
    _announce(model, approved(model), request)
    await remove_buttons(query, request, Approve(model=wanted))


async def stop_canary(query: CallbackQuery, callback_data: StopCanary, request: Request) -> None:
    """End the trial of the canary whose button was tapped."""
    await acknowledge(query)
    wanted = callback_data.model
    try:
        model = await request.services.trials.stop(wanted, request.actor)
    except REFUSALS as refusal:
        await _refuse_decision(query, wanted, ModelState.CANARY, refusal, request)
        return
    what = Reason("{model} was stopped; the live model answers everyone again.", model=wanted)
    await request.reply.finish(request.say(what))
    _announce(model, what, request)
    await remove_buttons(query, request, *_canary_data(wanted))


def _announce(model: Model, what: Reason, request: Request) -> None:
    """Notify the other admins of what was done with a model."""
    news = Reason(IN_CHAT, name=request.user.full_name, what=what)
    request.services.notices.model_changed(model, news, request.user.id)


def _canary_data(model: str) -> tuple[Promote, StopCanary]:
    return Promote(model=model), StopCanary(model=model)


async def _refuse_decision(
    query: CallbackQuery, model: str, state: ModelState, refusal: Exception, request: Request
) -> None:
    """Explain why a decision on a candidate or a canary was refused, or show the model's present state instead.

    The state is shown if an interrupted earlier attempt may already have carried out the request. If the model is no
    longer in `state`, its buttons are removed from the tapped message.
    """
    reply, say = request.reply, request.say
    if request.delivery.attempt > 1 and isinstance(refusal, AdminRefusal):
        found = await request.services.ledger.models.get(model)
        await reply.finish(say("{model}: {state}.", model=model, state=say(MODEL_STATES[found.state])))
    else:
        await reply.finish(refused(refusal, say))
    with suppress(UnknownRecord):
        if (await request.services.ledger.models.get(model)).state is not state:
            await remove_buttons(query, request, Approve(model=model), *_canary_data(model))


async def overrule(query: CallbackQuery, callback_data: Overrule, request: Request) -> None:
    """Make a rejected model live, if the live model has not changed since the button was shown."""
    if not await _still_live(callback_data.live, query, request):
        return
    if callback_data.back:
        await _roll_back(request, confirmed=True)
    else:
        await _promote(callback_data.model, request, confirmed=True)


async def roll_back(message: Message, request: Request) -> None:
    """Go back to the previous model, but only once, even if the request is repeated after an interruption."""
    await _roll_back(request)


async def roll_back_from(query: CallbackQuery, callback_data: RollBack, request: Request) -> None:
    """Go back to the previous model, if the live model has not changed since the button was shown.

    A second tap therefore does not go back any further.
    """
    if await _still_live(callback_data.model, query, request):
        await _roll_back(request)


async def _still_live(model: str, query: CallbackQuery, request: Request) -> bool:
    """Answer a tap, and return whether `model` is still live.

    For a replayed tap, always return True, because the first attempt may have changed the live model.
    """
    live = await request.services.ledger.models.live()
    outdated = request.delivery.attempt == 1 and (live is None or live.id != model)
    await acknowledge(query, request.say(CHANGED) if outdated else "")
    return not outdated


async def _promote(wanted: str, request: Request, *, confirmed: bool = False) -> None:
    reply, say = request.reply, request.say
    await reply.show_partial(say("Warming up {model}…", model=wanted))
    try:
        async with _merge_shown(request) as on_progress:
            model = await request.services.switch.promote(wanted, request.actor, on_progress, confirmed=confirmed)
    except UnknownRecord:
        await reply.finish(say("There's no model called {model}. /models lists them.", model=wanted))
    except REFUSALS as refusal:
        await _refuse(refusal, request, back=False)
    else:
        await _confirm(model, request)


async def _roll_back(request: Request, *, confirmed: bool = False) -> None:
    delivery, reply, say = request.delivery, request.reply, request.say
    if delivery.attempt > 1:
        for promotion in await request.services.ledger.promotions.latest(10):
            if promotion.by == request.user.id and promotion.done and promotion.created >= delivery.received:
                await _confirm(await request.services.ledger.models.get(promotion.model), request)
                return
    await reply.show_partial(say("Warming up the previous model…"))
    try:
        async with _merge_shown(request) as on_progress:
            model = await request.services.switch.rollback(request.actor, on_progress, confirmed=confirmed)
    except REFUSALS as refusal:
        await _refuse(refusal, request, back=True)
    else:
        await _confirm(model, request)


async def _confirm(model: Model, request: Request) -> None:
    what = Reason("{model} now answers everyone.", model=model.id)
    await request.reply.finish(request.say(what))
    _announce(model, what, request)


async def _refuse(refusal: Exception, request: Request, *, back: bool) -> None:
    """Explain why a change of the live model was refused.

    If the model was rejected, offer a button that makes it live anyway.
    """
    reply, say = request.reply, request.say
    live = await request.services.ledger.models.live()
    if isinstance(refusal, RejectedModel) and live is not None:
        data = Overrule(model=refusal.model.id, live=live.id, back=int(back))
        await reply.finish(say(str(refusal)), one_button(say("Switch to {model}", model=refusal.model.id), data))
    else:
        await reply.finish(refused(refusal, say))


@asynccontextmanager
async def _merge_shown(request: Request) -> AsyncIterator[Callable[[Progress], None]]:
    """Show the progress of merging a model in the reply while the `async with` block runs.

    Yields:
        A function to which the block reports the progress.
    """
    reported: asyncio.Queue[Progress] = asyncio.Queue()

    async def show() -> None:
        while True:
            progress = await reported.get()
            while not reported.empty():
                progress = reported.get_nowait()
            with suppress(*CALL_ERRORS):
                await request.reply.show_partial(merging(progress, request.say))
            await asyncio.sleep(SHOW_SECONDS)

    showing = asyncio.create_task(show())
    try:
        yield reported.put_nowait
    finally:
        showing.cancel()
        await asyncio.wait((showing,))
