"""A numbered log of events that any number of readers can follow from any point.

A reader keeps only the number of its last event, not a queue, so a slow reader uses no memory. A reader
that falls behind by more than the log's length continues with new events only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from telegram_emulator.api_errors import Json

_KEPT = 20_000


class EventLog:
    """A log of events, each a dict with at least `id`, `kind` and `chat`.

    IDs are consecutive, starting at 1. `chat` is None for an event that concerns everyone.
    """

    def __init__(self) -> None:
        self._log: list[Json] = []
        self._first = 1
        self._news = asyncio.Event()  # set when the next event is published

    @property
    def last(self) -> int:
        """The number of the newest event, or 0 if there is none."""
        return self._first + len(self._log) - 1

    def publish(self, kind: str, chat: int | None, **data: object) -> None:
        """Append an event and wake the waiting readers."""
        self._log.append({"id": self.last + 1, "kind": kind, "chat": chat, **data})
        if len(self._log) > 2 * _KEPT:
            del self._log[:_KEPT]
            self._first += _KEPT
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: int, wanted: Callable[[Json], bool]) -> AsyncGenerator[Json, None]:
        """Yield the events after number `after` for which `wanted` returns true, waiting for new ones indefinitely.

        If `after` is no longer in the log or comes from an earlier server's log, one event of kind "reset" is
        yielded first, and only new events follow.
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
