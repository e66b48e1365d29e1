"""The queue of updates for the bot: numbered, kept until confirmed, fetched by getUpdates or posted by `webhook`.

An offset confirms all updates before it; a second waiting poller ends the first with 409. On request the queue delivers
updates twice or out of order, as can happen after network failures and crashes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress

from telegram_emulator.api_errors import Json, api_error

_ONLY_ON_REQUEST = frozenset({"message_reaction"})
_LONGEST_POLL = 50.0  # seconds; Telegram cuts longer polls


class UpdateQueue:
    """The queue and its poller. `first_id` is the number of the first update."""

    def __init__(self, first_id: int) -> None:
        self.duplicates = 0  # how many of the next updates are delivered a second time
        self.held_back = 0  # how many updates are collected before they are delivered in reverse order
        self.posted = False  # whether a webhook is set, which forbids polling
        self._next = first_id
        self._queue: deque[Json] = deque()
        self._again: list[Json] = []
        self._allowed: frozenset[str] | None = None
        self._turn = 0  # of the poller that waits; others are answered with 409
        self._ended = ""  # why the poller before it was ended
        self._arrival = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def allow(self, kinds: object) -> None:
        """Apply a call's `allowed_updates`.

        None keeps the last setting. An empty list allows all kinds but those that are sent on request only.
        """
        if isinstance(kinds, list):
            self._allowed = frozenset(map(str, kinds)) or None

    def add(self, kind: str, payload: Json) -> int | None:
        """Queue an update and return its number, or None if the bot does not receive updates of this kind."""
        if kind in _ONLY_ON_REQUEST if self._allowed is None else kind not in self._allowed:
            return None
        number = self._next
        self._next += 1
        self._queue.append({"update_id": number, kind: payload})
        self.wake()
        return number

    def drop_pending(self) -> None:
        """Drop all unconfirmed updates."""
        self._queue.clear()
        self._again.clear()

    def confirm(self, before: int) -> None:
        """Drop the updates numbered below `before`."""
        while self._queue and self._queue[0]["update_id"] < before:
            self._queue.popleft()

    def deliverable(self, limit: int) -> list[Json]:
        """Return the next updates, oldest first unless `held_back` reverses them. They stay until confirmed."""
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

    async def poll(self, offset: int, limit: int, seconds: float) -> list[Json]:
        """Carry out getUpdates. Raises `BotApiError` (409) while a webhook is set, or if another poller takes over."""
        if self.posted:
            raise api_error(
                "can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first",
                409,
            )
        limit = limit if 1 <= limit <= 100 else 100
        self.confirm(offset)
        end = time.monotonic() + min(seconds, _LONGEST_POLL)
        batch = self.deliverable(limit)
        if not batch and seconds:
            self.end_poll("terminated by other getUpdates request; make sure that only one bot instance is running")
        mine = self._turn
        while not batch and (left := end - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.arrived(), left)
            if self._turn != mine:
                raise api_error(self._ended, 409)
            batch = self.deliverable(limit)
        return batch

    async def arrived(self) -> None:
        """Wait for the next update."""
        await self._arrival.wait()
        self._arrival.clear()

    def wake(self) -> None:
        """Let the poller and the webhook look at the queue again."""
        self._arrival.set()

    def end_poll(self, reason: str) -> None:
        """Answer the waiting poller with 409."""
        self._turn += 1
        self._ended = reason
        self.wake()
