"""A numbered log of events that any number of readers can follow from any point.

A reader holds a number, not a queue, so a slow reader costs no memory. A reader that falls behind by more than the
log's length starts over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from telegram_emulator.api_errors import Json

_KEPT = 20_000


class EventLog:
    """A log of events: dicts with at least `id` (ascending from 1), `kind` and `chat` (None: for everyone)."""

    def __init__(self) -> None:
        self._log: list[Json] = []
        self._first = 1
        self._news = asyncio.Event()  # of the next event

    @property
    def last(self) -> int:
        """The number of the newest event, or 0 if there is none."""
        return self._first + len(self._log) - 1

    def publish(self, kind: str, chat: int | None, **data: object) -> None:
        """Append an event and wake the readers."""
        self._log.append({"id": self.last + 1, "kind": kind, "chat": chat, **data})
        if len(self._log) > 2 * _KEPT:
            del self._log[:_KEPT]
            self._first += _KEPT
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: int, wanted: Callable[[Json], bool]) -> AsyncGenerator[Json, None]:
        """Yield the wanted events later than number `after` as they come, indefinitely.

        A reader whose number is no longer kept, or belongs to an earlier server's log, gets one event of kind "reset"
        and goes on from the newest.
        """
        while True:
            if not self._first - 1 <= after <= self.last:
                after = self.last
                yield {"id": after, "kind": "reset", "chat": None}
            batch = self._log[after + 1 - self._first :]
            for event in batch:
                after = event["id"]
                if wanted(event):
                    yield event
            if after >= self.last:
                await self._news.wait()
