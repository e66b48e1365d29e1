"""What every handler is given besides the update: who speaks, in which language, and the reply to fill.

Middlewares, so that handlers name what they need as parameters. Knows that an update whose reply is finished needs
no handling again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiogram import BaseMiddleware, Bot
from aiogram.types import Chat as TelegramChat
from aiogram.types import Message, TelegramObject, Update
from aiogram.types import User as TelegramUser
from cachetools import LRUCache

from bot.i18n import Translator
from bot.telegram.outbox import Place, Reply
from bot.updates.addressing import spoken_to
from bot.updates.inbox import Delivery
from storage.errors import UnknownRecord
from storage.ledger import Ledger
from storage.records import Chat, Person

Handler = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]

REMEMBERED: Final = 4096


class People(BaseMiddleware):
    """Notes who spoke to us where, and gives handlers `say`: the voice in that person's language."""

    def __init__(self, ledger: Ledger, translator: Translator) -> None:
        self._ledger = ledger
        self._translator = translator
        self._seen: LRUCache[tuple[Person, Chat], None] = LRUCache(REMEMBERED)

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        user: TelegramUser | None = data.get("event_from_user")
        chat: TelegramChat | None = data.get("event_chat")
        chosen: str | None = None
        if user and chat:
            known = await self._ledger.people.get(user.id)
            delivery: Delivery = data["delivery"]
            assert isinstance(event, Update)
            message = event.message or event.edited_message
            if message is None or await spoken_to(delivery.album or (message,), data["bot"]):
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
                await self._ledger.people.save(person, chat, update=update)
            except UnknownRecord:  # they had everything deleted meanwhile
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
