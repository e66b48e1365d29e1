"""What people hear while the disk is full: one sentence an update, and no answer.

A message is answered once there is room, since Telegram sends it again or the inbox has it. A tap is settled by the
sentence: its sender taps again, and two taps on a thumb would cancel each other out.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError
from aiogram.types import Message, ReplyParameters, Update, User
from cachetools import LRUCache

from bot.handlers.callbacks import acknowledge
from bot.i18n import Say, Translator, later
from bot.settings import BotSettings
from bot.telegram.client import DeliveryError, Doubtful
from bot.updates.addressing import spoken_to
from storage.ledger import Ledger

SENTENCE: Final = later("My disk is full; ask again once my operator has made room.")
REMEMBERED: Final = 4096

log = structlog.get_logger()


class DiskFull:
    """Answers the senders of updates that cannot be stored, each update once."""

    def __init__(self, bot: Bot, ledger: Ledger, settings: BotSettings, translator: Translator) -> None:
        self._bot = bot
        self._ledger = ledger
        self._settings = settings
        self._translator = translator
        self._told: LRUCache[int | str, None] = LRUCache(REMEMBERED)

    async def tell(self, raw: dict[str, Any]) -> bool:
        """Answer the sender of an update unless that was done before.

        Args:
            raw: The update as Telegram sent it.

        Returns:
            Whether the update is settled by that, as a tap is.
        """
        try:
            update = Update.model_validate(raw, context={"bot": self._bot})
        except ValueError:  # of a shape that aiogram does not know yet: handlers could not read it either
            return False
        message = update.message or update.edited_message
        key = (message.media_group_id if message else None) or update.update_id
        if key in self._told:
            return False
        self._told[key] = None
        try:
            if tap := update.callback_query:
                text = (await self._voice(tap.from_user))(SENTENCE)
                await acknowledge(tap, text)
                if tap.message:
                    await self._replaced(update.update_id, tap.message.chat.id, text)
                return True
            if message and message.from_user and await self._answers(message, message.from_user):
                await self._show(update.update_id, message, (await self._voice(message.from_user))(SENTENCE))
        except Doubtful as error:
            log.warning("may not have heard that the disk is full", update=update.update_id, error=str(error))
        except (DeliveryError, TelegramAPIError) as error:
            log.warning("has not heard that the disk is full", update=update.update_id, error=str(error))
            self._told.pop(key, None)
        return False

    async def _answers(self, message: Message, sender: User) -> bool:
        """Whether the message would have an answer: from someone who may talk with us, in a group spoken to us."""
        admin = sender.id in self._settings.telegram.admins
        welcome = admin or self._settings.limits.welcome(sender.id, message.chat.id)
        return welcome and await spoken_to((message,), self._bot)

    async def _voice(self, sender: User) -> Say:
        person = await self._ledger.people.get(sender.id)
        return self._translator.to(person.language if person else None, sender.language_code)

    async def _show(self, update: int, message: Message, text: str) -> None:
        """Show the text in the place of an unfinished answer, or on a message of its own."""
        if await self._replaced(update, message.chat.id, text):
            return
        quoted = ReplyParameters(message_id=message.message_id, allow_sending_without_reply=True)
        await self._bot.send_message(
            message.chat.id,
            text,
            message_thread_id=message.message_thread_id if message.is_topic_message else None,
            reply_parameters=None if message.chat.type == "private" else quoted,
        )

    async def _replaced(self, update: int, chat: int, text: str) -> bool:
        """Show the text in the place of an unfinished answer, and return whether there was one."""
        begun = [each.message for each in await self._ledger.replies.for_update(update) if each.message is not None]
        if begun:
            await self._bot.edit_message_text(text, chat_id=chat, message_id=begun[-1])
        return bool(begun)
