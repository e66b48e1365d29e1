"""A rate limiter with priorities that allows a maximum number of calls in any window of time.

Telegram uses such a window to limit the messages in a group: 20 in any minute. A quiet group can take a
burst at once, and a busy group gets the full sustained rate. All times are on the event loop's clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final


class Priority(IntEnum):
    """The priority of a call; a lower value means a higher priority."""

    NOTICE = 0
    """A message that tells people they have to wait."""
    ANSWER = 1
    """A message that must arrive."""
    BUTTONS = 2
    """The buttons under a message, of which only the newest state matters."""
    PARTIAL = 3
    """An unfinished answer. It never waits: without capacity it is dropped."""


KEPT_FREE: Final = {Priority.NOTICE: 0.0, Priority.ANSWER: 0.1, Priority.BUTTONS: 0.3, Priority.PARTIAL: 0.5}
"""The share of the window that a call leaves free for higher priorities."""

AGED_SECONDS: Final = 45.0
"""A call that has waited this long gets the priority of an answer, so that nothing starves in a busy chat."""


@dataclass(slots=True)
class Call:
    """A call that takes up a slot in the window."""

    priority: Priority
    made: float


@dataclass(slots=True)
class _Waiter:
    priority: Priority
    since: float
    turn: asyncio.Future[Call] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def effective(self, now: float) -> Priority:
        return min(self.priority, Priority.ANSWER) if now >= self.since + AGED_SECONDS else self.priority


class SlidingWindow:
    """A limiter that allows at most `calls` calls in any period of `seconds` seconds."""

    def __init__(self, calls: int, seconds: float) -> None:
        self._max_calls = calls
        self._seconds = seconds
        self._calls: deque[Call] = deque()
        self._notices = 0
        self._waiters: list[_Waiter] = []
        self._paused_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def has_capacity(self, priority: Priority) -> bool:
        """Return whether a call of the given priority can be made without waiting."""
        now = self._now()
        ahead = any(each.effective(now) <= priority for each in self._waiters)
        return not ahead and self._ready_at(priority, now) <= now

    async def acquire(self, priority: Priority) -> Call:
        """Wait for a slot in the window and take it.

        Pass the returned call to `sent` when it is made.
        """
        waiter = _Waiter(priority, self._now())
        self._waiters.append(waiter)
        self._serve()
        try:
            return await waiter.turn
        finally:
            if waiter in self._waiters:  # cancelled
                self._waiters.remove(waiter)
                self._serve()

    def sent(self, call: Call) -> None:
        """Record that an acquired call is being made now; it occupies its slot for the length of the window."""
        call.made = self._now()

    def pause_until(self, time: float) -> None:
        """Allow no calls before `time`, on the event loop's clock."""
        self._paused_until = max(self._paused_until, time)

    def _serve(self) -> None:
        """Give free slots to waiting calls, and schedule the next round for when another slot becomes free."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiters:
            now = self._now()
            first = min(self._waiters, key=lambda each: each.effective(now))  # ties go to the earliest
            ready = self._ready_at(first.effective(now), now)
            if ready > now:
                aging = [each.since + AGED_SECONDS for each in self._waiters if each.effective(now) > Priority.ANSWER]
                self._timer = asyncio.get_running_loop().call_at(min([ready, *aging]), self._serve)
                return
            self._waiters.remove(first)
            if not first.turn.done():
                call = Call(first.priority, now)
                self._calls.append(call)
                self._notices += call.priority is Priority.NOTICE
                first.turn.set_result(call)

    def _ready_at(self, priority: Priority, now: float) -> float:
        """Return the earliest time at which a call of the given priority can be made if no other is made before it."""
        while self._calls and self._calls[0].made + self._seconds <= now:
            self._notices -= self._calls.popleft().priority is Priority.NOTICE
        kept = int(KEPT_FREE[priority] * self._max_calls)
        if priority is Priority.ANSWER:  # notices in the window have used part of their reserve
            kept = max(0, kept - self._notices)
        over = len(self._calls) - self._max_calls + kept
        ready = now if over < 0 else self._calls[over].made + self._seconds
        return max(ready, self._paused_until)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
