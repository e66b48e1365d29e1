"""The queue of updates for the bot, fetched by getUpdates or posted by `webhook`.

Updates are numbered and kept until confirmed. The `offset` of a getUpdates call confirms all updates
before it. If a second getUpdates call starts to wait, the first one fails with error 409. For tests, the
queue can deliver updates twice or out of order, as can happen after network failures and crashes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from itertools import islice
from typing import Any

from telegram_emulator.api_errors import Json, api_error

_ONLY_ON_REQUEST = frozenset({"message_reaction"})
_LONGEST_POLL = 50.0  # seconds; Telegram ends longer polls


class UpdateQueue:
    """A queue of updates numbered from `first_id`, with at most one waiting getUpdates call."""

    def __init__(self, first_id: int) -> None:
        self.duplicates = 0  # how many of the next updates are delivered a second time
        self.held_back = 0  # how many updates are collected before they are delivered in reverse order
        self.posted = False  # whether a webhook is set, which forbids polling
        self._next = first_id
        self._queue: deque[Json] = deque()
        self._again: list[Json] = []
        self._allowed: frozenset[str] | None = None
        self._turn = 0  # number of the current poll; earlier ones end with error 409
        self._ended = ""  # why the previous poll was ended
        self._arrival = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def allow(self, kinds: object) -> None:
        """Set the kinds of updates that the bot receives to a call's `allowed_updates`.

        None keeps the previous setting. An empty list allows all kinds except those that Telegram sends only on
        request.
        """
        if isinstance(kinds, list):
            self._allowed = frozenset(map(str, kinds)) or None

    def add(self, kind: str, payload: Json) -> int | None:
        """Queue an update and return its number, or return None if the bot does not receive this kind of update."""
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
        """Return at most `limit` of the next updates, plus any repeated ones, without removing them from the queue.

        Repeated updates come first, then others, oldest first. If `held_back` is set, no updates are returned until
        that many are queued; then they are returned in reverse order.
        """
        again, self._again = self._again, []
        if again:
            # The rest of the batch is sent again too: the bot may never have received it, and confirming one
            # update confirms all before it.
            return again + [each for each in islice(self._queue, limit) if each not in again]
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
        """Handle a getUpdates call, waiting up to `seconds` for an update.

        Updates numbered below `offset` are confirmed first.

        Raises:
            BotApiError: A webhook is set, or another getUpdates call takes over (409).
        """
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
            try:
                await asyncio.wait_for(self.arrived(), left)
            except TimeoutError:
                return []
            if self._turn != mine:
                raise api_error(self._ended, 409)
            batch = self.deliverable(limit)
        return batch

    def arrived(self) -> Coroutine[Any, Any, Any]:
        """Return a coroutine that waits for the next update after this call.

        The event is created here, not in the coroutine, because `asyncio.wait_for` starts the coroutine only
        later. It is a new event each time, because an event is bound to one event loop, and a simulation may
        use several.
        """
        self._arrival = event = asyncio.Event()
        return event.wait()

    def wake(self) -> None:
        """Make the waiting getUpdates call and the webhook check the queue again."""
        self._arrival.set()

    def end_poll(self, reason: str) -> None:
        """End the waiting getUpdates call, if any, with error 409 and the description `reason`."""
        self._turn += 1
        self._ended = reason
        self.wake()
