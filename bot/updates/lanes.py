"""Lanes: queues whose updates are handled one after the other, while different lanes run concurrently.

The updates of a media group (album) are handled together. Telegram sends the group's members as separate
updates with a common `media_group_id` and no end marker. Members that were handled together before a
crash are handled together again, without any members that have arrived since.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from storage.chat_records import StoredUpdate

CANCEL_SECONDS: Final = 1.0
MAX_MEMBERS: Final = 10
"""The maximum size of an album, which has 2 to 10 members (https://core.telegram.org/bots/api#sendmediagroup)."""


@dataclass(frozen=True, slots=True)
class QueuedUpdate:
    """An update in its lane.

    Attributes:
        stored: The update's row in the ledger.
        raw: The update's JSON.
        arrived: When the update was queued, on the monotonic clock.
    """

    stored: StoredUpdate
    raw: dict[str, Any]
    arrived: float = field(default_factory=time.monotonic)

    @property
    def group(self) -> str | None:
        """The ID of the update's media group, or None if the update is not in a group."""
        message = self.raw.get("message")
        group = message.get("media_group_id") if isinstance(message, dict) else None
        return None if group is None else str(group)


def members(first: QueuedUpdate, lane: Iterable[QueuedUpdate]) -> list[QueuedUpdate]:
    """Return `first` and the updates in `lane` to handle together with it, in Telegram's order.

    Updates that were attempted before a crash are grouped only with each other.
    """
    if first.group is None:
        return [first]
    attempted = first.stored.attempts > 0
    found = [each for each in lane if each.group == first.group and (each.stored.attempts > 0) is attempted]
    return sorted(found, key=lambda each: each.stored.id)[:MAX_MEMBERS]


def seconds_until_complete(group: list[QueuedUpdate], quiet: float) -> float:
    """Return how many seconds to wait for more members of `group`.

    A group is complete after `quiet` seconds without a new member.
    """
    first = group[0]
    if first.group is None or first.stored.attempts > 0 or len(group) == MAX_MEMBERS:
        return 0.0
    return max(0.0, max(each.arrived for each in group) + quiet - time.monotonic())


Handle = Callable[[list[QueuedUpdate]], Awaitable[None]]
"""Handles one update, or all members of a media group."""


@dataclass(slots=True)
class _Lane:
    queue: deque[QueuedUpdate] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    worker: asyncio.Task[None] | None = None


class Lanes:
    """A set of lanes that calls `handle` for the updates of each lane in order.

    A media group is considered complete after `quiet_seconds` without a new member.
    """

    def __init__(self, handle: Handle, quiet_seconds: float) -> None:
        self._handle = handle
        self._quiet_seconds = quiet_seconds
        self._lanes: dict[str, _Lane] = {}
        self._ids: set[int] = set()
        self._stopping = False

    def __contains__(self, lane: str) -> bool:
        return lane in self._lanes

    def has(self, update: int) -> bool:
        """Return whether an update is waiting or being handled."""
        return update in self._ids

    @property
    def pending(self) -> int:
        """The number of updates that are waiting or being handled."""
        return len(self._ids)

    def add(self, update: QueuedUpdate) -> None:
        """Append an update to its lane."""
        name = update.stored.lane
        self._ids.add(update.stored.id)
        lane = self._lanes.setdefault(name, _Lane())
        lane.queue.append(update)
        lane.arrived.set()
        if lane.worker is None and not self._stopping:
            lane.worker = asyncio.create_task(self._work(name, lane))

    async def stop(self, grace: float) -> None:
        """Stop handling new updates, give those in progress `grace` seconds to finish, and then cancel the rest."""
        self._stopping = True
        for lane in self._lanes.values():
            lane.arrived.set()
        workers = [lane.worker for lane in self._lanes.values() if lane.worker]
        if workers:
            _, late = await asyncio.wait(workers, timeout=grace)
            while late:  # a library that swallows a cancellation must not keep the process alive
                for worker in late:
                    worker.cancel()
                _, late = await asyncio.wait(late, timeout=CANCEL_SECONDS)

    async def _work(self, name: str, lane: _Lane) -> None:
        while lane.queue and not self._stopping:
            turn = await self._next(lane)
            if turn is None:
                return
            await self._handle(turn)
            for each in turn:
                lane.queue.remove(each)
                self._ids.discard(each.stored.id)
        if not lane.queue:
            del self._lanes[name]

    async def _next(self, lane: _Lane) -> list[QueuedUpdate] | None:
        """Wait until the media group of the lane's first update is complete, if the update is in one.

        Returns:
            The updates to handle together, or None when the lanes are stopped.
        """
        while not self._stopping:
            turn = members(lane.queue[0], lane.queue)
            seconds = seconds_until_complete(turn, self._quiet_seconds)
            if not seconds:
                return turn
            lane.arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await lane.arrived.wait()
        return None
