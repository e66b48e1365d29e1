"""Placeholders that nobody knows of: they stay where a connection broke after Telegram had taken one.

The next one is sent, and becomes the answer. The first is found as soon as its ⏹ is tapped or a person replies to it,
and is deleted then.
"""

from __future__ import annotations

from typing import Any

import structlog
from aiogram import BaseMiddleware, Bot
from aiogram.exceptions import TelegramAPIError
from aiogram.types import CallbackQuery, Message, TelegramObject

from bot.handlers.context import Handler
from bot.telegram.client import DeliveryError
from bot.telegram.keyboards import Stop
from bot.telegram.outbox import PENDING
from storage.ledger import Ledger

log = structlog.get_logger()


class Leftovers(BaseMiddleware):
    """Deletes a left-over placeholder that an update is about; the update is handled all the same."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        about: object = None
        if isinstance(event, CallbackQuery):
            about = event.message
        elif isinstance(event, Message):
            about = event.reply_to_message
        bot: Bot = data["bot"]
        if isinstance(about, Message) and await self._left_over(about, bot.id):
            try:
                await bot.delete_message(about.chat.id, about.message_id)
            except (DeliveryError, TelegramAPIError) as error:
                log.info("left-over placeholder stays", chat=about.chat.id, error=str(error))
        return await handler(event, data)

    async def _left_over(self, message: Message, bot: int) -> bool:
        """Whether a message is a placeholder of ours whose reply stands on another message."""
        if message.from_user is None or message.from_user.id != bot:
            return False
        update = _update_of(message)
        if update is not None:
            shown = await self._ledger.replies.for_update(update)
            return all(each.message not in (None, message.message_id) for each in shown)
        return message.text == PENDING.text and not await self._ledger.replies.exists(
            message.chat.id, message=message.message_id
        )


def _update_of(message: Message) -> int | None:
    """The update whose answer the ⏹ under a message stops; None without ⏹."""
    rows = message.reply_markup.inline_keyboard if message.reply_markup else []
    data = next((button.callback_data for row in rows for button in row if button.callback_data), "")
    if not data.startswith(f"{Stop.__prefix__}:"):
        return None
    try:
        return Stop.unpack(data).update
    except (TypeError, ValueError):
        return None
