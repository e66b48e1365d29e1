"""How fast we may call: in each chat, and over all of them.

Telegram publishes its limits roughly (https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this)
and enforces them by refusals that do not say which limit was exceeded. Knows what to learn from a refusal: a chat's own
flood slows that chat, refusals in many chats slow all of them. Knows nothing of calls; `telegram` makes them.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Final

import structlog
from aiolimiter import AsyncLimiter
from cachetools import LRUCache

from bot.settings import TelegramSettings

STRICT_SECONDS: Final = 300.0
GROUP_RESERVE: Final = 3
RESERVE: Final = 6
"""One part in so many of the allowance over all chats is left to messages that must arrive."""

TYPING: Final = 3
"""One part in so many of the allowance over all chats is what may be said beside it of typing, to whoever waits."""

CHATS_REMEMBERED: Final = 4096

COMPLAINTS: Final = 3
"""Refusals in so many chats, within so many seconds, are about the limit over all chats."""
COMPLAINT_SECONDS: Final = 2.0

SETTLING_SECONDS: Final = 1.0
"""After the pace was lowered, refusals are about what went out before: the limit over all is one on each second."""

RECOVERY_SECONDS: Final = 600.0
"""How long the pace takes to come back from nothing to what is set."""

FLOOR: Final = 1.0
"""Calls a second over all chats that are made whatever Telegram says: the least that keeps a conversation going."""

log = structlog.get_logger()


class Pace:
    """Everybody's pace: a call waits for its chat's turn, then for its turn among all calls."""

    def __init__(self, settings: TelegramSettings) -> None:
        self._settings = settings
        self._chats: LRUCache[int | str, ChatPace] = LRUCache(CHATS_REMEMBERED)
        self._overall = _OverallPace(settings.calls_per_second)
        self._typing = _bucket(settings.calls_per_second / TYPING, 1.0)

    @property
    def calls_per_second(self) -> float:
        """How many calls a second over all chats are made at most, at present."""
        return self._overall.rate

    def chat(self, chat: int | str) -> ChatPace:
        """The pace of one chat; those that were not written to for longest are forgotten."""
        pace = self._chats.get(chat)
        if pace is None:
            if isinstance(chat, str) or chat < 0:  # a private chat's id is its person's, positive
                # Half of it at once and half of it over the minute: never more than the allowance in any minute.
                half = self._settings.group_calls_per_minute / 2
                pace = ChatPace(half / 60, 60, reserve=GROUP_RESERVE, strict=True)
            else:
                pace = ChatPace(self._settings.chat_calls_per_second, 1, reserve=0, strict=False)
            self._chats[chat] = pace
        return pace

    def free(self, chat: ChatPace) -> bool:
        """Whether there is room for a glimpse, in the chat and over all."""
        return chat.free() and self._overall.free()

    async def typing(self, chat: ChatPace) -> bool:
        """Whether that we type may be said there; it counts as said. However many wait, so many are told a second."""
        if chat.silent or not self._typing.has_capacity():
            return False
        await self._typing.acquire()
        return True

    async def turn(self, chat: ChatPace) -> None:
        """Wait until a call may be made there; it counts as made."""
        await chat.turn()
        await self._overall.turn()
        chat.called()

    def refused(self, chat: ChatPace, seconds: float) -> None:
        """Telegram has refused a call in a chat for so many seconds."""
        if not chat.hurried:
            self._overall.complained(chat)
        chat.hold(seconds)


class ChatPace:
    """One chat's allowance: a leaky bucket, and the time until which Telegram told us to be silent there.

    A group's bucket always counts: 20 messages a minute are Telegram's hard limit. In a private chat bursts are
    tolerated as long as nobody complains, and how long is not published; so its bucket counts from the first
    complaint on until there was none for a while. Streaming keeps its own distance between edits in any case.
    """

    def __init__(self, rate: float, seconds: float, *, reserve: float, strict: bool) -> None:
        """`rate` calls a second, after a pause as many at once as `seconds` are worth.

        `reserve` is what glimpses leave in the bucket for messages that must arrive.
        """
        self._bucket = _bucket(rate, seconds)
        self._distance = 1 / rate
        self._reserve = reserve
        self._silent_until = 0.0
        self._strict_until = math.inf if strict else 0.0
        self._latest = -math.inf
        self.hurried = False
        """Whether the latest call came sooner than this chat's pace has it: a refusal is this chat's own then."""

    @property
    def silent(self) -> bool:
        """Whether Telegram has told us to make no call here for now."""
        return time.monotonic() < self._silent_until

    def free(self) -> bool:
        """Whether there is room for a glimpse."""
        roomy = not self._strict() or self._bucket.has_capacity(1 + self._reserve)
        return roomy and not self.silent

    async def turn(self) -> None:
        """Wait until a call may be made."""
        await asyncio.sleep(max(0.0, self._silent_until - time.monotonic()))
        if self._strict():
            await self._bucket.acquire()

    def called(self) -> None:
        """A call goes out."""
        now = time.monotonic()
        self.hurried = not self._strict() and now - self._latest < self._distance / 2
        self._latest = now

    def hold(self, seconds: float) -> None:
        """Telegram has refused a call here for so many seconds."""
        now = time.monotonic()
        self._silent_until = max(self._silent_until, now + seconds)
        self._strict_until = max(self._strict_until, now + seconds + STRICT_SECONDS)

    def _strict(self) -> bool:
        return time.monotonic() < self._strict_until


class _OverallPace:
    """The allowance over all chats: halved when Telegram refuses calls in many of them, and slowly coming back.

    A lowered pace is a higher price: the bucket stays as it is, and each call takes more out of it.
    """

    def __init__(self, rate: float) -> None:
        """`rate` is what the operator has set: the most, in calls a second."""
        self._most = rate
        self._bucket = _bucket(rate, 1.0)
        self._line = asyncio.Lock()
        self._lowered_to = rate
        self._lowered_at = -math.inf
        self._complaints: dict[ChatPace, float] = {}

    @property
    def rate(self) -> float:
        """Calls a second at present."""
        come_back = (time.monotonic() - self._lowered_at) / RECOVERY_SECONDS * self._most
        return min(self._most, self._lowered_to + come_back)

    def free(self) -> bool:
        """Whether there is room for a glimpse."""
        rate = self.rate
        return self._bucket.has_capacity(self._most / rate * (1 + rate // RESERVE))

    async def turn(self) -> None:
        """Wait until a call may be made, in the order of asking."""
        async with self._line:  # so that everybody pays the price of the moment: the limiter serves low prices first
            await self._bucket.acquire(self._most / self.rate)

    def complained(self, chat: ChatPace) -> None:
        """Telegram has refused a call in a chat that had kept its own pace."""
        now = time.monotonic()
        if now - self._lowered_at < SETTLING_SECONDS:
            return
        recent = {each: when for each, when in self._complaints.items() if now - when < COMPLAINT_SECONDS}
        self._complaints = recent | {chat: now}
        if len(self._complaints) >= COMPLAINTS:
            self._lowered_to = max(self.rate / 2, min(FLOOR, self._most))
            self._lowered_at = now
            self._complaints = {}
            log.warning("refused in many chats: fewer calls over all", calls_per_second=round(self.rate, 1))


def _bucket(rate: float, seconds: float) -> AsyncLimiter:
    """`rate` calls a second; after a pause, as many at once as `seconds` are worth, one at least."""
    size = max(1.0, rate * seconds)
    return AsyncLimiter(size, size / rate)
