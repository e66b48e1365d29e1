"""Remove the buttons about a candidate or a canary from messages to admins once the model's state has changed."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError

from bot.telegram.errors import DeliveryError, Undelivered
from storage.ledger import Ledger

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class OutdatedButtons:
    """The buttons about models that no longer apply."""

    bot: Bot
    ledger: Ledger

    async def remove(self) -> None:
        """Remove the outdated buttons; if Telegram cannot be reached, the next call tries again."""
        for chat, message in await self.ledger.model_buttons.outdated():
            try:
                await self.bot.edit_message_reply_markup(chat_id=chat, message_id=message, reply_markup=None)
            except Undelivered:
                return
            except (DeliveryError, TelegramAPIError) as error:  # a tap on a button may have removed them already
                log.info("outdated buttons were not removed", chat=chat, message=message, error=str(error))
            await self.ledger.model_buttons.remove(chat, message)
