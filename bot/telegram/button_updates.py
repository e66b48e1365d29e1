"""Buttons under messages, kept up to date: of each message the newest state is painted, and the last one always.

Votes come in bursts, and a group takes few calls: states in between are skipped while a message waits for its turn. A
process that ends with paintings waiting leaves them to the next one, which paints what was voted on lately
(`handlers.feedback.repaint_lately_rated`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError
from aiogram.types import InlineKeyboardMarkup

from bot.telegram.client import Repaint, Undelivered, Unreachable
from storage.errors import StorageError

AGAIN_SECONDS: Final = 30.0
"""The pause before another attempt where Telegram was out of reach for longer than the gate's patience."""

Buttons = Callable[[], Awaitable[InlineKeyboardMarkup]]
"""What the buttons are at the moment of the call."""

log = structlog.get_logger()


class Repaints:
    """One task for each message that waits to be painted. `stop()` at the end."""

    def __init__(self, bot: Bot) -> None:
        self._bot = bot
        self._wanted: dict[tuple[int, int], Buttons] = {}
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}

    def want(self, chat: int, message: int, buttons: Buttons) -> None:
        """Paint the buttons of a message as soon as its chat has room for that."""
        self._wanted[chat, message] = buttons
        if (chat, message) not in self._tasks:
            self._tasks[chat, message] = asyncio.create_task(self._keep_painting(chat, message))

    async def stop(self) -> None:
        """Paint no more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_painting(self, chat: int, message: int) -> None:
        try:
            while (chat, message) in self._wanted:
                await self._paint(chat, message)
        finally:
            del self._tasks[chat, message]

    async def _paint(self, chat: int, message: int) -> None:
        newest: Buttons | None = None

        async def latest() -> InlineKeyboardMarkup:
            nonlocal newest
            newest = self._wanted.pop((chat, message), newest)
            assert newest is not None
            return await newest()

        try:
            await self._bot(Repaint(chat_id=chat, message_id=message, latest=latest))
        except Undelivered as error:
            log.warning("buttons wait for Telegram", chat=chat, message=message, error=str(error))
            if newest is not None:
                self._wanted.setdefault((chat, message), newest)
            await asyncio.sleep(AGAIN_SECONDS)
        except (Unreachable, TelegramAPIError, StorageError) as error:
            # The message, the chat or the exchange is gone; the vote counts all the same.
            self._wanted.pop((chat, message), None)
            log.info("buttons stay as they are", chat=chat, message=message, error=str(error))
