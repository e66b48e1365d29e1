"""A rate limiter that makes at most so many calls in any window of time, the most urgent first.

Telegram counts a group's messages this way: 20 in a minute, whenever in that minute they come. So a quiet group takes
a burst at once, and a busy one gets the whole sustained rate. Time is the event loop's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final


class Urgency(IntEnum):
    """What goes first where calls wait."""

    NOTICE = 0
    """That people have to wait."""
    ANSWER = 1
    """What must arrive."""
    REPAINT = 2
    """Buttons under a message; only the newest state of each matters."""
    GLIMPSE = 3
    """An unfinished answer. It never waits: without room it is dropped."""


KEPT_FREE: Final = {Urgency.NOTICE: 0.0, Urgency.ANSWER: 0.1, Urgency.REPAINT: 0.3, Urgency.GLIMPSE: 0.5}
"""Share of the window that a call leaves free for more urgent ones."""

AGED_SECONDS: Final = 45.0
"""A call that has waited this long is as urgent as an answer, so that nothing waits for ever in a busy chat."""


@dataclass(slots=True)
class Call:
    """A call in the window: how urgent it was, and when it was made."""

    urgency: Urgency
    made: float


@dataclass(slots=True)
class _Waiter:
    urgency: Urgency
    since: float
    turn: asyncio.Future[Call] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def rank(self, now: float) -> Urgency:
        return min(self.urgency, Urgency.ANSWER) if now >= self.since + AGED_SECONDS else self.urgency


class SlidingWindow:
    """`calls` in any `seconds`."""

    def __init__(self, calls: int, seconds: float) -> None:
        self._most = calls
        self._seconds = seconds
        self._calls: deque[Call] = deque()
        self._notices = 0
        self._waiters: list[_Waiter] = []
        self._shut_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def room(self, urgency: Urgency) -> bool:
        """Whether a call of this urgency could be made at once."""
        now = self._now()
        ahead = any(each.rank(now) <= urgency for each in self._waiters)
        return not ahead and self._ready_at(urgency, now) <= now

    async def acquire(self, urgency: Urgency) -> Call:
        """Wait for a place in the window and take it. `stamp` it when the call is made."""
        waiter = _Waiter(urgency, self._now())
        self._waiters.append(waiter)
        self._serve()
        try:
            return await waiter.turn
        finally:
            if waiter in self._waiters:  # cancelled
                self._waiters.remove(waiter)
                self._serve()

    def stamp(self, call: Call) -> None:
        """The call is made now, later than its place was taken."""
        call.made = self._now()

    def shut(self, until: float) -> None:
        """Make no call before this time of the event loop."""
        self._shut_until = max(self._shut_until, until)

    def _serve(self) -> None:
        """Give places to those who wait as long as there are any, and come back when there is the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiters:
            now = self._now()
            first = min(self._waiters, key=lambda each: each.rank(now))  # of equals the one who came first
            ready = self._ready_at(first.rank(now), now)
            if ready > now:
                aging = [each.since + AGED_SECONDS for each in self._waiters if each.rank(now) > Urgency.ANSWER]
                self._timer = asyncio.get_running_loop().call_at(min([ready, *aging]), self._serve)
                return
            self._waiters.remove(first)
            if not first.turn.done():
                call = Call(first.urgency, now)
                self._calls.append(call)
                self._notices += call.urgency is Urgency.NOTICE
                first.turn.set_result(call)

    def _ready_at(self, urgency: Urgency, now: float) -> float:
        """When a call of this urgency can be made if no other comes before it."""
        while self._calls and self._calls[0].made + self._seconds <= now:
            self._notices -= self._calls.popleft().urgency is Urgency.NOTICE
        kept = int(KEPT_FREE[urgency] * self._most)
        if urgency is Urgency.ANSWER:  # what is kept free for notices they may have used
            kept = max(0, kept - self._notices)
        over = len(self._calls) - self._most + kept
        ready = now if over < 0 else self._calls[over].made + self._seconds
        return max(ready, self._shut_until)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
