"""Webhook delivery, which posts updates in order and retries each one until the response has status 200."""

from __future__ import annotations

import asyncio
import re

import aiohttp

from telegram_emulator.api_errors import Json, api_error
from telegram_emulator.update_queue import UpdateQueue

SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"
_FIRST_RETRY, _LAST_RETRY = 0.1, 2.0  # seconds between two posts of the same update


class Webhook:
    """The bot's webhook, which posts no updates until `set` is called with a URL."""

    def __init__(self, updates: UpdateQueue) -> None:
        self._updates = updates
        self._task: asyncio.Task[None] | None = None

    async def set(self, url: str, secret: str, *, drop_pending: bool) -> None:
        """Start posting updates to `url`, or stop posting if `url` is empty.

        Raises:
            BotApiError: `url` or `secret` is invalid.
        """
        if url and not re.match(r"https?://[^/\s]+", url):
            raise api_error("bad webhook: invalid webhook URL specified")
        if len(secret) > 256:
            raise api_error("secret token is too long")
        if not re.fullmatch(r"[A-Za-z0-9_-]*", secret):
            raise api_error("secret token contains unallowed characters")
        await self.stop()
        if drop_pending:
            self._updates.drop_pending()
        self._updates.posted = bool(url)
        if url:
            self._updates.end_poll("terminated by setWebhook request")
            self._task = asyncio.create_task(self._post_all(url, {SECRET_HEADER: secret} if secret else {}))

    async def stop(self) -> None:
        """Stop posting updates; unconfirmed updates stay in the queue."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _post_all(self, url: str, headers: dict[str, str]) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), headers=headers) as session:
            while True:
                batch = self._updates.deliverable(100)
                if not batch:
                    await self._updates.arrived()
                    continue
                for update in batch:
                    await self._post(session, url, update)
                self._updates.confirm(max(update["update_id"] for update in batch) + 1)

    async def _post(self, session: aiohttp.ClientSession, url: str, update: Json) -> None:
        pause = _FIRST_RETRY
        while True:
            try:
                async with session.post(url, json=update) as answer:
                    await answer.read()
                    if answer.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(pause)
            pause = min(_LAST_RETRY, pause * 2)
