"""What every handler is given besides the update: who speaks, in which language, and the reply to fill.

Middlewares, so that handlers name what they need as parameters. Knows that an update whose reply is finished needs
no handling again, and what to say of something that could not be saved.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from aiogram import BaseMiddleware, Bot
from aiogram.types import CallbackQuery, Message, MessageReactionUpdated, ReplyParameters, TelegramObject
from aiogram.types import Chat as TelegramChat
from aiogram.types import User as TelegramUser
from cachetools import LRUCache

from bot.handlers.taps import acknowledge
from bot.inbox import Delivery
from bot.replies import Place, Reply
from bot.telegram import Doubtful
from bot.translation import Say, Translator
from storage.errors import NotSaved, UnknownRecord
from storage.ledger import Ledger
from storage.records import Chat, Person

Handler = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]

REMEMBERED: Final = 4096

log = structlog.get_logger()


class People(BaseMiddleware):
    """Notes who wrote where, and gives handlers `say`: the voice in that person's language."""

    def __init__(self, ledger: Ledger, translator: Translator) -> None:
        self._ledger = ledger
        self._translator = translator
        self._seen: LRUCache[tuple[Person, Chat], None] = LRUCache(REMEMBERED)

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        user: TelegramUser | None = data.get("event_from_user")
        chat: TelegramChat | None = data.get("event_chat")
        chosen: str | None = None
        if user and chat:
            known = await self._ledger.person(user.id)
            delivery: Delivery = data["delivery"]
            await self._see(
                Person(user.id, user.full_name, user.language_code),
                Chat(chat.id, chat.type, chat.title or ""),
                delivery.update,
                forgotten=known is None or known.name != user.full_name,
            )
            chosen = known.language if known else None
        data["say"] = self._translator.to(chosen, user.language_code if user else None)
        return await handler(event, data)

    async def _see(self, person: Person, chat: Chat, update: int, *, forgotten: bool) -> None:
        """Write down what is new, or was deleted since; most updates bring nothing new."""
        if forgotten or (person, chat) not in self._seen:
            try:
                await self._ledger.see(person, chat, update=update)
            except (NotSaved, UnknownRecord):  # the disk is full, or they had everything deleted meanwhile
                return
        self._seen[person, chat] = None


class Replies(BaseMiddleware):
    """Gives handlers of messages `reply`, as an earlier attempt has left it; a finished one is left alone."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        assert isinstance(event, Message)
        bot: Bot = data["bot"]
        delivery: Delivery = data["delivery"]
        place = Place.of(event)
        if delivery.attempt > 1:
            reply = await Reply.open(bot, self._ledger, delivery.update, place)
            if reply.finished:
                return None
        else:
            reply = Reply(bot, self._ledger, delivery.update, place)
        return await handler(event, data | {"reply": reply})


class Saving(BaseMiddleware):
    """Says so when what somebody asked for could not be saved; the admins are told by the operations.

    Of their reactions to one message people are told once, until one of them is saved.
    """

    def __init__(self) -> None:
        self._told: LRUCache[tuple[int, int, int], None] = LRUCache(REMEMBERED)

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        try:
            result = await handler(event, data)
            if isinstance(event, MessageReactionUpdated):
                self._told.pop(_reacted(event), None)
            return result
        except NotSaved as error:
            delivery: Delivery = data["delivery"]
            say: Say = data["say"]
            log.warning("could not be saved", update=delivery.update, error=str(error))
            text = say("My disk is full, so I could not save that. My admins know.")
            if isinstance(event, CallbackQuery):
                await acknowledge(event, text)
            elif "reply" in data:
                await data["reply"].finish(text)
            elif isinstance(event, MessageReactionUpdated):
                text = say("My disk is full, so I could not save your reaction. My admins know.")
                await self._tell(event, data["bot"], text)
            return None

    async def _tell(self, event: MessageReactionUpdated, bot: Bot, text: str) -> None:
        """Reply to what was reacted to. At most once: the reply itself cannot be noted either."""
        if _reacted(event) in self._told:
            return
        self._told[_reacted(event)] = None
        about = ReplyParameters(message_id=event.message_id, allow_sending_without_reply=True)
        try:
            await bot.send_message(event.chat.id, text, reply_parameters=about)
        except Doubtful as error:
            log.warning("may not have been told", chat=event.chat.id, error=str(error))


def _reacted(event: MessageReactionUpdated) -> tuple[int, int, int]:
    """Who has reacted to what: chat, message, person."""
    return event.chat.id, event.message_id, event.user.id if event.user else 0
