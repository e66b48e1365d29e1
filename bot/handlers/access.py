"""Who may talk with the bot: the lists of `[limits]`, looked at before anything else is done with an update.

Whoever may not is told so, and nothing of them is written down but the update itself. What a person has a right to
whatever the operator wishes, looking at their data and deleting it, is let through.
"""

from __future__ import annotations

from typing import Any, Final

from aiogram import BaseMiddleware, Bot
from aiogram.filters import or_f
from aiogram.types import Chat, TelegramObject, Update, User
from cachetools import TTLCache

from bot.handlers import privacy
from bot.handlers.callbacks import acknowledge
from bot.handlers.context import Handler
from bot.i18n import Say, Translator
from bot.settings import BotSettings
from bot.telegram.keyboards import Delete, Learn
from bot.telegram.outbox import Place, Reply
from bot.updates.inbox import Delivery
from bot.updates.ordering import command_of
from storage.ledger import Ledger

SILENT_SECONDS: Final = 600.0
"""Whoever writes on is told again after so long only."""

REMEMBERED: Final = 4096

_RIGHTS: Final = or_f(Learn.filter(), Delete.filter())


class Door(BaseMiddleware):
    """Lets updates in, or tells their sender why not."""

    def __init__(self, settings: BotSettings, ledger: Ledger, translator: Translator) -> None:
        self._settings = settings
        self._ledger = ledger
        self._translator = translator
        self._told: TTLCache[int, None] = TTLCache(REMEMBERED, SILENT_SECONDS)

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        user: User | None = data.get("event_from_user")
        chat: Chat | None = data.get("event_chat")
        person = user.id if user else 0
        welcome = person in self._settings.telegram.admins or self._settings.limits.welcome(
            person, chat.id if chat else 0
        )
        assert isinstance(event, Update)
        if user is None and (event.message or event.edited_message):
            return None  # a channel's post, or a damaged update: nobody can be answered
        if welcome or await _is_a_right(event):
            return await handler(event, data)
        if user:
            await self._refuse(event, user, data["bot"], data["delivery"])
        return None

    async def _refuse(self, event: Update, user: User, bot: Bot, delivery: Delivery) -> None:
        known = await self._ledger.people.get(user.id)
        say = self._translator.to(known.language if known else None, user.language_code)
        if event.callback_query:
            await acknowledge(event.callback_query, say("I may not talk with you here."))
        elif (message := event.message) and message.chat.type == "private" and self._tell(user.id):
            reply = await Reply.open(bot, self._ledger, delivery.update, Place.of(message))
            if not reply.finished:
                await reply.finish(self._sentence(user.id, say))

    def _sentence(self, person: int, say: Say) -> str:
        if person in self._settings.limits.blocked:
            return say("I may not talk with you. Who runs me has decided so.")
        return say(
            "I am sorry, I may only talk with certain people. Who runs me can let you in; your user id is {id}.",
            id=person,
        )

    def _tell(self, person: int) -> bool:
        if person in self._told:
            return False
        self._told[person] = None
        return True


async def _is_a_right(event: Update) -> bool:
    if event.callback_query:
        return bool(await _RIGHTS(event.callback_query))
    return event.message is not None and command_of(event.message.text) in privacy.COMMANDS
