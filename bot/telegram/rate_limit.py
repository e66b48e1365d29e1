"""Rate limits for outgoing calls, in each chat and over all chats.

Telegram publishes its limits only roughly
(https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this) and enforces them
through refusals that do not say which limit was exceeded. A refusal slows down the chat it came from,
and refusals in many chats at once slow down all chats. All times are on the event loop's clock.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

import structlog
from aiolimiter import AsyncLimiter
from cachetools import LRUCache

from bot.settings import TelegramSettings
from bot.telegram.sliding_window import Call, Priority, SlidingWindow

STRICT_SECONDS: Final = 300.0
PRIVATE_SECONDS = 1.0
"""The interval between messages and edits in a private chat after Telegram has refused a call there."""

GROUP_SECONDS: Final = 60.0
GROUP_MARGIN: Final = 1.0
"""How many seconds longer a group's window is than Telegram's, because calls may overtake each other in transit."""

RESERVE: Final = 6
"""`calls_per_second / RESERVE` of the overall limit is kept free for messages that must arrive."""

TYPING: Final = 3
"""Typing actions get their own budget: `calls_per_second / TYPING`."""

CHATS_REMEMBERED: Final = 4096

REFUSALS: Final = 3
"""Refusals in this many chats within `REFUSAL_SECONDS` mean that the overall limit was exceeded."""
REFUSAL_SECONDS: Final = 2.0

SETTLING_SECONDS: Final = 1.0
"""Refusals this soon after a reduction are for earlier calls: Telegram counts the overall limit by the second."""

RECOVERY_SECONDS: Final = 600.0
"""How long the overall rate takes to recover from zero to the configured rate."""

MIN_RATE: Final = 1.0
"""The overall rate never falls below this many calls per second."""

log = structlog.get_logger()


class RateLimiter:
    """Limits the rate of calls, first in each chat and then over all chats."""

    def __init__(self, settings: TelegramSettings) -> None:
        self._group_rate = settings.group_calls_per_minute
        self._chats: LRUCache[int | str, ChatLimiter] = LRUCache(CHATS_REMEMBERED)
        self._overall = _OverallLimiter(settings.calls_per_second)
        self._typing = _bucket(settings.calls_per_second / TYPING)

    @property
    def calls_per_second(self) -> float:
        """The current limit over all chats, in calls per second."""
        return self._overall.rate

    def chat(self, chat: int | str) -> ChatLimiter:
        """Return the limiter of a chat, creating it if necessary.

        Only the most recently used limiters are kept.
        """
        limiter = self._chats.get(chat)
        if limiter is None:
            if isinstance(chat, str) or chat < 0:  # the ID of a private chat is its user's, and positive
                calls = max(1, int(self._group_rate))
                limiter = ChatLimiter(calls, calls / self._group_rate * GROUP_SECONDS + GROUP_MARGIN, group=True)
            else:
                limiter = ChatLimiter(1, PRIVATE_SECONDS, group=False)
            self._chats[chat] = limiter
        return limiter

    def has_capacity(self, chat: ChatLimiter) -> bool:
        """Return whether a call that may be dropped can be made in `chat` without waiting."""
        return chat.has_capacity() and self._overall.has_capacity()

    async def acquire_typing(self, chat: ChatLimiter) -> bool:
        """Count a "typing" action in `chat` against the separate budget for such actions.

        Returns:
            False if the budget is used up or calls in the chat are paused, otherwise True.
        """
        if chat.paused or not self._typing.has_capacity():
            return False
        await self._typing.acquire()
        return True

    async def acquire(self, chat: ChatLimiter, priority: Priority = Priority.ANSWER) -> None:
        """Wait until a call may be made in `chat`, and count the call."""
        call = await chat.acquire(priority)
        await self._overall.acquire()
        chat.sent(call)

    def refused(self, chat: ChatLimiter, seconds: float) -> None:
        """Record that Telegram refused a call, and pause calls in `chat` for the `seconds` that Telegram asked for."""
        if not chat.burst:
            self._overall.refused(chat)
        chat.pause(seconds)


class ChatLimiter:
    """The rate limit of one chat.

    Telegram enforces the limit of a group strictly. In private chats it tolerates bursts, but does not
    publish for how long. The limit of a private chat therefore applies only after a refusal, until
    `STRICT_SECONDS` have passed without another.
    """

    def __init__(self, calls: int, seconds: float, *, group: bool) -> None:
        self.group = group
        self.burst = False
        """Whether the latest call exceeded the limit while it did not apply. A refusal is then about this chat."""
        self._window = SlidingWindow(calls, seconds)
        self._interval = seconds / calls
        self._latest = -math.inf
        self._paused_until = 0.0
        self._strict_until = math.inf if group else 0.0

    @property
    def paused(self) -> bool:
        """Whether calls in this chat are currently paused at Telegram's request."""
        return _now() < self._paused_until

    def has_capacity(self, priority: Priority = Priority.PARTIAL) -> bool:
        """Return whether a call of the given priority can be made without waiting."""
        return not self.paused and (not self._strict or self._window.has_capacity(priority))

    async def acquire(self, priority: Priority) -> Call | None:
        """Wait until a call may be made; calls with a higher priority go first.

        Returns:
            The call, to be passed to `sent`, or None if the limit does not apply.
        """
        return await self._window.acquire(priority) if self._strict else None

    def sent(self, call: Call | None) -> None:
        """Record that the acquired call is being made now."""
        if call is not None:
            self._window.sent(call)
        self.burst = call is None and _now() - self._latest < self._interval / 2
        self._latest = _now()

    def pause(self, seconds: float) -> None:
        """Pause calls for `seconds`, then apply the limit for another `STRICT_SECONDS`."""
        self._paused_until = max(self._paused_until, _now() + seconds)
        self._strict_until = max(self._strict_until, self._paused_until + STRICT_SECONDS)
        self._window.pause_until(self._paused_until)

    @property
    def _strict(self) -> bool:
        return _now() < self._strict_until


class _OverallLimiter:
    """The rate limit over all chats, halved when Telegram refuses calls in many chats, and slowly restored.

    The leaky bucket keeps its size; while the rate is reduced, each call takes up more of the bucket.
    """

    def __init__(self, rate: float) -> None:
        self._max_rate = rate
        self._bucket = _bucket(rate)
        self._lock = asyncio.Lock()
        self._reduced_to = rate
        self._reduced_at = -math.inf
        self._refusals: dict[ChatLimiter, float] = {}

    @property
    def rate(self) -> float:
        """The current rate, in calls per second."""
        recovered = (_now() - self._reduced_at) / RECOVERY_SECONDS * self._max_rate
        return min(self._max_rate, self._reduced_to + recovered)

    def has_capacity(self) -> bool:
        """Return whether a call that may be dropped can be made without waiting."""
        rate = self.rate
        return self._bucket.has_capacity(self._max_rate / rate * (1 + rate // RESERVE))

    async def acquire(self) -> None:
        """Wait until a call may be made; calls are served in the order of their arrival."""
        async with self._lock:  # AsyncLimiter serves small amounts first
            await self._bucket.acquire(self._max_rate / self.rate)

    def refused(self, chat: ChatLimiter) -> None:
        """Count a refusal that was not caused by the limit of `chat`.

        Refusals in `REFUSALS` chats within `REFUSAL_SECONDS` halve the rate.
        """
        now = _now()
        if now - self._reduced_at < SETTLING_SECONDS:
            return
        recent = {each: when for each, when in self._refusals.items() if now - when < REFUSAL_SECONDS}
        self._refusals = recent | {chat: now}
        if len(self._refusals) >= REFUSALS:
            self._reduced_to = max(self.rate / 2, min(MIN_RATE, self._max_rate))
            self._reduced_at = now
            self._refusals = {}
            log.warning("refused in many chats, overall rate halved", calls_per_second=round(self.rate, 1))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _bucket(rate: float) -> AsyncLimiter:
    """Return a leaky bucket for `rate` calls per second.

    The bucket holds one second's worth of calls, but at least one call.
    """
    size = max(1.0, rate)
    return AsyncLimiter(size, size / rate)
