"""The buttons about a model in messages to admins, which are removed once the model's state has changed.

The messages are remembered only while the bot runs. A tap on an older button says what happened to the model.
"""

from __future__ import annotations

from typing import Final

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError
from cachetools import LRUCache

from bot.telegram.client import DeliveryError
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.states import ModelState

REMEMBERED: Final = 1000

log = structlog.get_logger()


class ModelButtons:
    """The messages to admins whose buttons are about a candidate or a canary."""

    def __init__(self, bot: Bot, ledger: Ledger) -> None:
        self._bot = bot
        self._ledger = ledger
        self._offered: LRUCache[tuple[int, int], tuple[str, ModelState]] = LRUCache(REMEMBERED)

    def add(self, chat: int, message: int, model: Model) -> None:
        """Remember a message with buttons that are useful as long as the model stays in its present state."""
        self._offered[chat, message] = (model.id, model.state)

    async def remove_outdated(self) -> None:
        """Remove the buttons about models whose state has changed or whose files were deleted."""
        for (chat, message), (model, state) in list(self._offered.items()):
            found = await self._ledger.models.get(model)
            if found.state is state and found.kept:
                continue
            self._offered.pop((chat, message), None)
            try:
                await self._bot.edit_message_reply_markup(chat_id=chat, message_id=message, reply_markup=None)
            except (DeliveryError, TelegramAPIError) as error:  # the tap on a button may have removed it already
                log.info("outdated buttons were not removed", chat=chat, model=model, error=str(error))
