"""The queue of updates between people and the bot: numbered, kept until confirmed, fetched or posted.

Fetching is getUpdates: an offset confirms all before it, a second waiting poller ends the first with 409. Posting is
the webhook: in order, each update again and again until it is answered with 200. Both cannot be at once. On request
the queue delivers updates twice or out of order, as networks and crashes make it happen.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Sequence

import aiohttp

from telegram_emulator.refusals import Json, refused

SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"
_ONLY_ON_REQUEST = frozenset({"chat_member", "message_reaction", "message_reaction_count"})
_LONGEST_POLL = 50.0  # seconds; Telegram cuts longer waits
_FIRST_RETRY, _LAST_RETRY = 0.1, 2.0  # seconds between two posts of the same update


class Updates:
    """The queue, its poller and its webhook. `first_id` is the number of the first update."""

    def __init__(self, first_id: int) -> None:
        self.duplicates = 0  # so many of the next updates are delivered a second time
        self.held_back = 0  # so many updates are collected first and then delivered in reverse order
        self.webhook = Webhook(self)
        self._next = first_id
        self._queue: deque[Json] = deque()
        self._again: list[Json] = []
        self._allowed: frozenset[str] | None = None
        self._poller: asyncio.Future[None] | None = None
        self._arrival = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def allow(self, kinds: object) -> None:
        """Take `allowed_updates` of a call; None leaves the last ones, an empty list means all but the special ones."""
        if isinstance(kinds, list):
            self._allowed = frozenset(map(str, kinds)) or None

    @property
    def allowed(self) -> list[str]:
        """What was asked for, empty for the default."""
        return sorted(self._allowed or ())

    def add(self, kind: str, payload: Json) -> int | None:
        """Queue an update and return its number; None for a kind that the bot did not ask for."""
        if kind in _ONLY_ON_REQUEST if self._allowed is None else kind not in self._allowed:
            return None
        number = self._next
        self._next += 1
        self._queue.append({"update_id": number, kind: payload})
        self.wake()
        return number

    def drop_pending(self) -> None:
        """Forget all that was not confirmed."""
        self._queue.clear()
        self._again.clear()

    def confirm(self, before: int) -> None:
        """Forget the updates below number `before`."""
        while self._queue and self._queue[0]["update_id"] < before:
            self._queue.popleft()

    def deliverable(self, limit: int) -> list[Json]:
        """The updates to hand over now, oldest first unless trouble was asked for; they stay until confirmed."""
        again, self._again = self._again, []
        if again:
            return again
        if self.held_back:
            if len(self._queue) < self.held_back:
                return []
            batch = [self._queue[i] for i in range(self.held_back)][::-1]
            self.held_back = 0
        else:
            batch = [self._queue[i] for i in range(min(limit, len(self._queue)))]
        if self.duplicates and batch:
            self._again = batch[: self.duplicates]
            self.duplicates -= len(self._again)
        return batch

    async def poll(self, offset: int, limit: int, patience: float) -> list[Json]:
        """getUpdates. Raises `Refused` (409) beside a webhook and for a poller that another one replaces."""
        if self.webhook.url:
            raise refused(
                "can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first",
                409,
            )
        limit = limit if 1 <= limit <= 100 else 100
        if offset < 0:
            while len(self._queue) > -offset:
                self._queue.popleft()
        else:
            self.confirm(offset)
        end = time.monotonic() + min(patience, _LONGEST_POLL)
        batch = self.deliverable(limit)
        while not batch and (left := end - time.monotonic()) > 0:
            self._end_poll("terminated by other getUpdates request; make sure that only one bot instance is running")
            mine = self._poller = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait_for(mine, left)
            except TimeoutError:
                return []
            finally:
                if self._poller is mine:
                    self._poller = None
            batch = self.deliverable(limit)
        return batch

    async def arrived(self) -> None:
        """Wait until there is something to look at."""
        await self._arrival.wait()
        self._arrival.clear()

    def stop_polling(self) -> None:
        """End the waiting poller because a webhook takes over."""
        self._end_poll("terminated by setWebhook request")

    def close(self) -> None:
        """Let a waiting poller go, with nothing."""
        self.wake()

    def wake(self) -> None:
        """Have whoever waits for updates look again."""
        self._arrival.set()
        if self._poller is not None and not self._poller.done():
            self._poller.set_result(None)

    def _end_poll(self, reason: str) -> None:
        if self._poller is not None and not self._poller.done():
            self._poller.set_exception(refused(reason, 409))
        self._poller = None


class Webhook:
    """Posts updates to the bot, one after the other, each until it is answered with 200."""

    def __init__(self, updates: Updates) -> None:
        self.url = ""
        self.posts = 0
        self._updates = updates
        self._secret = ""
        self._error: tuple[int, str] | None = None
        self._task: asyncio.Task[None] | None = None

    async def set(self, url: str, secret: str, *, drop_pending: bool) -> None:
        """Start posting to `url`; an empty one ends it. Raises `Refused`."""
        if url and not re.match(r"https?://[^/\s]+", url):
            raise refused("bad webhook: invalid webhook URL specified")
        if len(secret) > 256:
            raise refused("secret token is too long")
        if not re.fullmatch(r"[A-Za-z0-9_-]*", secret):
            raise refused("secret token contains unallowed characters")
        await self.stop()
        if drop_pending:
            self._updates.drop_pending()
        self.url, self._secret, self._error = url, secret, None
        if url:
            self._updates.stop_polling()
            self._task = asyncio.create_task(self._post_all())

    async def stop(self) -> None:
        """End posting; the updates stay."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def describe(self) -> Json:
        """A Bot API `WebhookInfo`."""
        info: Json = {
            "url": self.url,
            "has_custom_certificate": False,
            "pending_update_count": len(self._updates),
        }
        if self.url:
            info |= {"max_connections": 1, "ip_address": "127.0.0.1"}
        if self._error:
            info |= {"last_error_date": self._error[0], "last_error_message": self._error[1]}
        if self._updates.allowed:
            info["allowed_updates"] = self._updates.allowed
        return info

    async def _post_all(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            while True:
                batch = self._updates.deliverable(100)
                if not batch:
                    await self._updates.arrived()
                    continue
                await self._post_batch(session, batch)
                self._updates.confirm(max(update["update_id"] for update in batch) + 1)

    async def _post_batch(self, session: aiohttp.ClientSession, batch: Sequence[Json]) -> None:
        headers = {SECRET_HEADER: self._secret} if self._secret else {}
        for update in batch:
            pause = _FIRST_RETRY
            while True:
                self.posts += 1
                try:
                    async with session.post(self.url, json=update, headers=headers) as answer:
                        await answer.read()
                        if answer.status == 200:
                            break
                        error = f"Wrong response from the webhook: {answer.status} {answer.reason}"
                except (aiohttp.ClientError, TimeoutError) as problem:
                    error = f"Connection failed: {type(problem).__name__}"
                self._error = (int(time.time()), error)
                await asyncio.sleep(pause)
                pause = min(_LAST_RETRY, pause * 2)
