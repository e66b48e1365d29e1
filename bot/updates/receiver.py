"""Reception of updates from Telegram, by polling or through a webhook.

Updates left unfinished by an earlier process are queued first. An update is acknowledged (when polling,
by the offset of the next request) only after the inbox has stored it. After an error from Telegram,
requests are retried indefinitely.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog
from aiogram import Bot
from aiogram.exceptions import (
    ClientDecodeError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramNetworkError,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)

from bot.config import ConfigError
from bot.redaction import error_text
from bot.settings import TelegramSettings
from bot.telegram.client import CALL_SECONDS, TOKEN_CURE
from bot.telegram.errors import DeliveryError
from bot.telegram.methods import GetRawUpdates
from bot.updates.inbox_processor import InboxProcessor
from storage.errors import StorageError

_ALLOWED: Final = ("message", "edited_message", "callback_query", "message_reaction")
BATCH: Final = 100
PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0)

_RETRIED: Final = (
    TelegramNetworkError,
    TelegramServerError,
    TelegramRetryAfter,
    TelegramConflictError,
    ClientDecodeError,
    DeliveryError,
    StorageError,
)

log = structlog.get_logger()


class Receiver:
    """Receiver of Telegram updates for the inbox: `run` polls until it is cancelled, or sets up a webhook.

    With `guests`, Telegram also sends questions from chats in which the bot is a guest.
    """

    def __init__(self, bot: Bot, inbox: InboxProcessor, settings: TelegramSettings, *, guests: bool = False) -> None:
        self._bot = bot
        self._inbox = inbox
        self._settings = settings
        self._allowed = [*_ALLOWED, *(["guest_message"] if guests else [])]
        self._failures = 0

    async def run(self) -> None:
        """Replay unfinished updates, then poll Telegram forever or, in webhook mode, set the webhook and return.

        Raises:
            ConfigError: Telegram rejects the token or the webhook's address.
        """
        await self._inbox.replay()
        try:
            if self._settings.mode == "webhook":
                await self._set_webhook()
            else:
                await self._poll()
        except (TelegramUnauthorizedError, TelegramNotFound) as error:
            raise ConfigError(f"Telegram rejects telegram.token ({error.message}): {TOKEN_CURE}.") from error

    async def _set_webhook(self) -> None:
        webhook = self._settings.webhook
        while True:
            try:
                await self._bot.set_webhook(
                    url=webhook.url, secret_token=webhook.secret.get_secret_value(), allowed_updates=self._allowed
                )
            except TelegramBadRequest as error:
                raise ConfigError(f"Telegram rejects telegram.webhook.url: {error.message}.") from error
            except _RETRIED as error:
                await self._pause(error, "webhook not set")
            else:
                return

    async def _poll(self) -> None:
        offset: int | None = None
        polling = False
        while True:
            try:
                if not polling:
                    polling = await self._bot.delete_webhook(drop_pending_updates=False)
                updates = await self._fetch(offset)
                await self._inbox.store(updates)
            except _RETRIED as error:
                await self._pause(error, "updates not fetched")
                continue
            self._failures = 0
            # Drop the offset after an empty batch: after a quiet week Telegram continues from a random ID, which may
            # be lower, and an old offset would confirm those updates (https://core.telegram.org/bots/api#update).
            offset = max(int(each["update_id"]) for each in updates) + 1 if updates else None

    async def _fetch(self, offset: int | None) -> list[dict[str, Any]]:
        seconds = self._settings.poll_seconds
        call = GetRawUpdates(offset=offset, limit=BATCH, timeout=seconds, allowed_updates=self._allowed)
        return await self._bot(call, request_timeout=int(seconds + CALL_SECONDS))

    async def _pause(self, error: Exception, event: str) -> None:
        pause = getattr(error, "retry_after", None) or PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1
        hint = {"hint": "another process polls with the same token"} if isinstance(error, TelegramConflictError) else {}
        log.warning(event, error=error_text(error), pause=pause, **hint)
        await asyncio.sleep(pause)
