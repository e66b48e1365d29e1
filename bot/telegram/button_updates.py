"""Updates of the rating buttons under answers, which may skip intermediate states but never the last one.

Votes come in bursts, and Telegram allows few calls per group, so only the newest state is shown when a
message's turn comes. If the process ends while updates are waiting, the next process shows them
(`RatingButtons.update_recent`).
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError
from aiogram.types import InlineKeyboardMarkup

from bot.i18n import Say, Translator
from bot.telegram.callback_data import REASONS, DislikeReason
from bot.telegram.errors import Undelivered, Unreachable
from bot.telegram.keyboards import guest_buttons, rating_buttons
from bot.telegram.methods import ButtonEdit
from storage.chat_records import Exchange
from storage.errors import StorageError
from storage.guests import GUESTS
from storage.ledger import Ledger

RETRY_SECONDS: Final = 30.0
"""The pause before another attempt if Telegram could not be reached even with the client's retries."""

UNSHOWN_SECONDS: Final = 300.0
"""When a process ends, votes up to this much older than the last vote may still be waiting to be shown."""

log = structlog.get_logger()


_View = tuple[Exchange, int, Say]
"""The exchange whose votes the buttons show, the ID of the viewer, and the translator of the buttons."""


class RatingButtons:
    """Updates rating buttons in the background, with one task for each message whose update is waiting.

    Call `stop()` at the end.
    """

    def __init__(self, bot: Bot, ledger: Ledger) -> None:
        self._bot = bot
        self._ledger = ledger
        self._pending: dict[tuple[int, int | str], _View] = {}
        self._tasks: dict[tuple[int, int | str], asyncio.Task[None]] = {}

    def update(self, exchange: Exchange, message: int | str, viewer: int, say: Say) -> None:
        """Show the current votes under an answer as soon as the chat's rate limit allows the call.

        Args:
            exchange: The exchange with the answer.
            message: ID of the message with the buttons; a string if the bot is a guest in the chat.
            viewer: ID of the user whose vote is marked in a private chat. In a group, the tally is shown.
            say: The translator into the language of the buttons.
        """
        key = (exchange.chat, message)
        self._pending[key] = (exchange, viewer, say)
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._keep_updating(*key))

    async def update_recent(self, translator: Translator) -> None:
        """Update buttons in groups that may not show the votes cast shortly before the bot was restarted."""
        for exchange in await self._ledger.votes.recent_in_groups(UNSHOWN_SECONDS):
            shown = await self._ledger.replies.for_update(exchange.update)
            asker = await self._ledger.people.get(exchange.asker)
            if shown and (last := shown[-1].inline or shown[-1].message):
                self.update(exchange, last, exchange.asker, translator.for_person(asker))

    async def stop(self) -> None:
        """Stop updating buttons."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_updating(self, chat: int, message: int | str) -> None:
        try:
            while (chat, message) in self._pending:
                await self._update(chat, message)
        finally:
            del self._tasks[chat, message]

    async def _update(self, chat: int, message: int | str) -> None:
        taken: _View | None = None

        async def latest() -> InlineKeyboardMarkup:
            nonlocal taken
            taken = self._pending.pop((chat, message), taken)
            assert taken is not None
            return await self._markup(*taken)

        inline = isinstance(message, str)
        where = {"inline_message_id": message} if inline else {"chat_id": chat, "message_id": message}
        try:
            await self._bot(ButtonEdit(**where, latest=latest))
        except Undelivered as error:
            log.warning("buttons not updated; retrying later", chat=chat, message=message, error=str(error))
            if taken is not None:
                self._pending.setdefault((chat, message), taken)
            await asyncio.sleep(RETRY_SECONDS)
        except (Unreachable, TelegramAPIError, StorageError) as error:
            # The message, the chat or the exchange is gone; the vote counts anyway.
            self._pending.pop((chat, message), None)
            log.info("buttons not updated", chat=chat, message=message, error=str(error))

    async def _markup(self, exchange: Exchange, viewer: int, say: Say) -> InlineKeyboardMarkup:
        newest = await self._ledger.exchanges.newest_at(exchange.position) == exchange.id
        if exchange.chat == GUESTS:
            return guest_buttons(exchange.id, await self._ledger.votes.tally(exchange.id))
        if exchange.chat != viewer:
            tally = await self._ledger.votes.tally(exchange.id)
            return rating_buttons(exchange.id, tally=tally, newest=newest, say=say)
        chosen = await self._ledger.votes.latest(exchange.id, viewer)
        given = await self._ledger.votes.latest_reason(exchange.id, viewer)
        reason = DislikeReason(given) if given in REASONS else None
        return rating_buttons(exchange.id, chosen, newest=newest, reason=reason, say=say)
