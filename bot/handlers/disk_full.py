"""Reply to senders that the disk is full, in place of an answer.

A message is answered once there is room, because Telegram sends it again or the inbox has stored it. A tap is not
handled later: its sender taps again, and two taps on a thumb would cancel each other out.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError
from aiogram.types import Message, ReplyParameters, Update
from cachetools import LRUCache

from bot.handlers.callbacks import acknowledge
from bot.i18n import Translator, later
from bot.settings import BotSettings
from bot.telegram.client import DeliveryError, Doubtful
from bot.updates.addressing import spoken_to
from storage.ledger import Ledger

SENTENCE: Final = later("My disk is full; ask again once my operator has made room.")
REMEMBERED: Final = 4096

log = structlog.get_logger()


class DiskFull:
    """Answers the senders of updates that cannot be stored, each update or album once."""

    def __init__(self, bot: Bot, ledger: Ledger, settings: BotSettings, translator: Translator) -> None:
        self._bot = bot
        self._ledger = ledger
        self._settings = settings
        self._translator = translator
        self._answered: LRUCache[int | str, None] = LRUCache(REMEMBERED)

    async def answer(self, raw: dict[str, Any]) -> bool:
        """Answer the sender of an update, unless this was done before.

        Args:
            raw: The update as Telegram sent it.

        Returns:
            Whether the update needs no more handling, because it is a tap.
        """
        try:
            update = Update.model_validate(raw, context={"bot": self._bot})
        except ValueError:  # an unknown shape, which no handler could read either
            return False
        message, tap = update.message or update.edited_message, update.callback_query
        sender = tap.from_user if tap else message.from_user if message else None
        key = (message.media_group_id if message else None) or update.update_id
        if sender is None or key in self._answered:
            return False
        self._answered[key] = None
        person = await self._ledger.people.get(sender.id)
        text = self._translator.to(person.language if person else None, sender.language_code)(SENTENCE)
        try:
            if tap:
                await acknowledge(tap, text)
                if tap.message:
                    await self._replace(update.update_id, tap.message.chat.id, text)
            elif message and await self._would_answer(message, sender.id):
                await self._show(update.update_id, message, text)
        except (DeliveryError, TelegramAPIError) as error:
            log.warning("sender not told that the disk is full", update=update.update_id, error=str(error))
            if not isinstance(error, Doubtful):
                del self._answered[key]
            return False
        return tap is not None

    async def _would_answer(self, message: Message, sender: int) -> bool:
        limits, admins = self._settings.limits, self._settings.telegram.admins
        welcome = sender in admins or limits.welcome(sender, message.chat.id)
        return welcome and await spoken_to((message,), self._bot)

    async def _replace(self, update: int, chat: int, text: str) -> bool:
        """Show the text in place of an unfinished answer, and return whether there is one."""
        begun = [each.message for each in await self._ledger.replies.for_update(update) if each.message is not None]
        if begun:
            await self._bot.edit_message_text(text, chat_id=chat, message_id=begun[-1])
        return bool(begun)

    async def _show(self, update: int, message: Message, text: str) -> None:
        if await self._replace(update, message.chat.id, text):
            return
        quoted = ReplyParameters(message_id=message.message_id, allow_sending_without_reply=True)
        await self._bot.send_message(
            message.chat.id,
            text,
            message_thread_id=message.message_thread_id if message.is_topic_message else None,
            reply_parameters=None if message.chat.type == "private" else quoted,
        )
