"""/models, /promote, /rollback and the buttons that do the same: which model answers, for admins.

To be asked behind `admin`, which lets nobody else come this far. A change that a crash interrupted is not made twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aiogram import Bot, Router
from aiogram.exceptions import TelegramAPIError
from aiogram.filters import CommandObject
from aiogram.types import CallbackQuery, Message, User

from bot.admin.model_states import MODEL_STATES
from bot.admin.protocol import REFUSALS, AdminActions, RejectedModel, refused
from bot.handlers.callbacks import acknowledge, reply_to
from bot.handlers.commands import Command
from bot.i18n import Say, later
from bot.retelling import retold
from bot.telegram.client import DeliveryError
from bot.telegram.formatting import Page
from bot.telegram.keyboards import Overrule, Promote, RollBack, overruling, promoting
from bot.telegram.outbox import Reply
from bot.updates.inbox import Delivery
from storage.errors import UnknownRecord
from storage.ledger import Ledger
from storage.records import Approval, Model
from storage.states import ModelState
from training.job import Progress

REMOVED: Final = later("removed")
PRUNED: Final = later("{state}, kept as its adapter")
MERGING: Final = later("Merging the model again from its adapter: {percent} %…")
SHOW_SECONDS: Final = 1.0

CHANGED: Final = later("Another model answers meanwhile. /models shows them.")

OFFERED: Final = 8
"""So many of the newest models have a button; /promote takes any."""


def router() -> Router:
    """The handlers of this module."""
    models = Router(name="models")
    models.message.register(show, Command("models"))
    models.message.register(promote, Command("promote"))
    models.message.register(rollback, Command("rollback"))
    models.callback_query.register(promote_this, Promote.filter())
    models.callback_query.register(overrule, Overrule.filter())
    models.callback_query.register(roll_back_from, RollBack.filter())
    return models


async def show(message: Message, reply: Reply, say: Say, admin: AdminActions, ledger: Ledger) -> None:
    """List the models, with buttons for those that were good enough to answer."""
    try:
        kept = await admin.models()
    except REFUSALS as refusal:
        await reply.finish(refused(refusal, say))
        return
    approvals = await ledger.counts.approvals()
    lines = [_line(model, approvals.get(model.id, Approval()), say) for model in kept]
    live = next((model.id for model in kept if model.state is ModelState.LIVE), "")
    before = await ledger.models.previous()
    previous = before.id if before else ""
    others = [
        model.id
        for model in reversed(kept)
        if model.state in (ModelState.CANDIDATE, ModelState.RETIRED) and model.kept and model.id != previous
    ]
    markup = promoting(others[:OFFERED], live, previous, say)
    await reply.finish("\n".join(lines) or say("There is no model yet."), markup if markup.inline_keyboard else None)


def _line(model: Model, approval: Approval, say: Say) -> str:
    """A model: its state, the day it was made, the votes on its answers, and why it was rejected if it was."""
    mark = "▶" if model.state is ModelState.LIVE else "·"
    state = say(MODEL_STATES[model.state] if model.kept else REMOVED)
    if model.pruned:
        state = say(PRUNED, state=state)
    line = f"{mark} {model.id}: {state}, {datetime.fromtimestamp(model.created, UTC):%Y-%m-%d}"
    if approval.votes:
        line += f", {approval.ups} 👍 {approval.downs} 👎 ({100 * approval.share:.0f} %)"
    return f"{line} ({retold(model.reason, say)})" if model.reason else line


async def promote(
    message: Message,
    command: CommandObject,
    event_from_user: User,
    reply: Reply,
    say: Say,
    admin: AdminActions,
    ledger: Ledger,
) -> None:
    """Let a model answer. Doing it twice is the same as once."""
    if wanted := (command.args or "").strip():
        await _Change(admin, ledger, reply, say).promote(wanted, event_from_user.id)
    else:
        await reply.finish(say("Which one? Write /promote and the model's id; /models lists them."))


async def promote_this(
    query: CallbackQuery,
    callback_data: Promote,
    bot: Bot,
    delivery: Delivery,
    say: Say,
    admin: AdminActions,
    ledger: Ledger,
) -> None:
    """Let the model on the button answer."""
    if reply := await reply_to(query, bot, delivery, ledger):
        await _Change(admin, ledger, reply, say).promote(callback_data.model, query.from_user.id)


async def overrule(
    query: CallbackQuery,
    callback_data: Overrule,
    bot: Bot,
    delivery: Delivery,
    say: Say,
    admin: AdminActions,
    ledger: Ledger,
) -> None:
    """Let a rejected model answer, if the one that answered when that was asked still does."""
    if await _outdated(callback_data.live, delivery, ledger):
        await acknowledge(query, say(CHANGED))
    elif reply := await reply_to(query, bot, delivery, ledger):
        change = _Change(admin, ledger, reply, say)
        if callback_data.back:
            await change.roll_back(query.from_user.id, delivery, confirmed=True)
        else:
            await change.promote(callback_data.model, query.from_user.id, confirmed=True)


async def rollback(
    message: Message,
    event_from_user: User,
    delivery: Delivery,
    reply: Reply,
    say: Say,
    admin: AdminActions,
    ledger: Ledger,
) -> None:
    """Go back one model, once."""
    await _Change(admin, ledger, reply, say).roll_back(event_from_user.id, delivery)


async def roll_back_from(
    query: CallbackQuery,
    callback_data: RollBack,
    bot: Bot,
    delivery: Delivery,
    say: Say,
    admin: AdminActions,
    ledger: Ledger,
) -> None:
    """Go back one model, if the one that answered when the button was shown still does; so tapping twice is once."""
    if await _outdated(callback_data.model, delivery, ledger):
        await acknowledge(query, say(CHANGED))
    elif reply := await reply_to(query, bot, delivery, ledger):
        await _Change(admin, ledger, reply, say).roll_back(query.from_user.id, delivery)


async def _outdated(shown: str, delivery: Delivery, ledger: Ledger) -> bool:
    """Whether another model answers than the button had `shown`. What a crash interrupted may have changed it."""
    live = await ledger.models.live()
    return delivery.attempt == 1 and (live is None or live.id != shown)


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of model and what the admin reads of it."""

    admin: AdminActions
    ledger: Ledger
    reply: Reply
    say: Say

    async def promote(self, wanted: str, by: int, *, confirmed: bool = False) -> None:
        await self.reply.begin(self.say("Warming up {model}…", model=wanted))
        try:
            async with _merging_shown(self.reply, self.say) as on_progress:
                model = await self.admin.promote(wanted, by, on_progress, confirmed=confirmed)
        except UnknownRecord:
            text = self.say("I have no model called {model}. /models lists them.", model=wanted)
            await self.reply.finish(text)
        except REFUSALS as refusal:
            await self._refuse(refusal, back=False)
        else:
            await self._done(model.id)

    async def roll_back(self, by: int, delivery: Delivery, *, confirmed: bool = False) -> None:
        if delivery.attempt > 1:
            for promotion in await self.ledger.promotions.latest(10):
                if promotion.by == by and promotion.done and promotion.created >= delivery.received:
                    await self._done(promotion.model)
                    return
        await self.reply.begin(self.say("Warming up the model before this one…"))
        try:
            async with _merging_shown(self.reply, self.say) as on_progress:
                model = await self.admin.rollback(by, on_progress, confirmed=confirmed)
        except REFUSALS as refusal:
            await self._refuse(refusal, back=True)
        else:
            await self._done(model.id)

    async def _refuse(self, refusal: Exception, *, back: bool) -> None:
        """Say why not. A rejected model may answer all the same, where the admin confirms it."""
        live = await self.ledger.models.live()
        if isinstance(refusal, RejectedModel) and live is not None:
            markup = overruling(refusal.model.id, live.id, back, self.say)
            await self.reply.finish(refusal.told(self.say), markup)
        else:
            await self.reply.finish(refused(refusal, self.say))

    async def _done(self, model: str) -> None:
        await self.reply.finish(self.say("{model} answers from now on.", model=model))


@asynccontextmanager
async def _merging_shown(reply: Reply, say: Say) -> AsyncIterator[Callable[[Progress], None]]:
    """Show the progress of a merge in the reply for as long as the block runs."""
    news: asyncio.Queue[Progress] = asyncio.Queue()

    async def show() -> None:
        while True:
            progress = await news.get()
            while not news.empty():
                progress = news.get_nowait()
            text = say(MERGING, percent=100 * progress.step // max(1, progress.steps))
            with suppress(DeliveryError, TelegramAPIError):
                await reply.glimpse([Page(text)])
            await asyncio.sleep(SHOW_SECONDS)

    showing = asyncio.create_task(show())
    try:
        yield news.put_nowait
    finally:
        showing.cancel()
        await asyncio.wait((showing,))
