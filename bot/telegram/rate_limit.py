"""Rate limits of outgoing calls: in each chat, and over all of them.

Telegram publishes its limits roughly (https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this)
and enforces them by refusals that do not say which limit was exceeded. A chat's own flood slows that chat, refusals in
many chats slow all of them. `telegram` makes the calls. Time is the event loop's.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

import structlog
from aiolimiter import AsyncLimiter
from cachetools import LRUCache

from bot.settings import TelegramSettings
from bot.telegram.sliding_window import Call, SlidingWindow, Urgency

STRICT_SECONDS: Final = 300.0
GROUP_SECONDS: Final = 60.0
GROUP_MARGIN: Final = 1.0
"""A call may reach Telegram sooner than one made before it: a group's window is that much longer than Telegram's."""

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
                pace = GroupPace(self._settings.group_calls_per_minute)
            else:
                pace = PrivatePace(self._settings.chat_calls_per_second)
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

    async def turn(self, chat: ChatPace, urgency: Urgency = Urgency.ANSWER) -> None:
        """Wait until a call may be made there; it counts as made."""
        call = await chat.turn(urgency)
        await self._overall.turn()
        chat.called(call)

    def refused(self, chat: ChatPace, seconds: float) -> None:
        """Telegram has refused a call in a chat for so many seconds."""
        if not chat.hurried:
            self._overall.complained(chat)
        chat.hold(seconds)


class ChatPace:
    """One chat's allowance, and the time until which Telegram told us to be silent there."""

    def __init__(self) -> None:
        self._silent_until = 0.0
        self.hurried = False
        """Whether the latest call came sooner than this chat's pace has it: a refusal is this chat's own then."""

    @property
    def silent(self) -> bool:
        """Whether Telegram has told us to make no call here for now."""
        return _now() < self._silent_until

    def free(self) -> bool:
        """Whether there is room for a glimpse."""
        raise NotImplementedError

    async def turn(self, urgency: Urgency) -> Call | None:
        """Wait until a call may be made."""
        raise NotImplementedError

    def called(self, call: Call | None) -> None:
        """Note that the call whose turn it was goes out."""
        raise NotImplementedError

    def hold(self, seconds: float) -> None:
        """Note that Telegram has refused a call here for so many seconds."""
        self._silent_until = max(self._silent_until, _now() + seconds)


class GroupPace(ChatPace):
    """A group's allowance, which always counts: 20 messages a minute are Telegram's hard limit."""

    def __init__(self, calls_per_minute: float) -> None:
        super().__init__()
        calls = max(1, int(calls_per_minute))
        self._window = SlidingWindow(calls, calls / calls_per_minute * GROUP_SECONDS + GROUP_MARGIN)

    def free(self) -> bool:
        """Whether there is room for a glimpse."""
        return self.room(Urgency.GLIMPSE)

    def room(self, urgency: Urgency) -> bool:
        """Whether a call of this urgency could be made at once."""
        return self._window.room(urgency)

    async def turn(self, urgency: Urgency) -> Call | None:
        """Wait until a call may be made, the more urgent first."""
        return await self._window.acquire(urgency)

    def called(self, call: Call | None) -> None:
        """Note that the call whose turn it was goes out."""
        if call is not None:
            self._window.stamp(call)

    def hold(self, seconds: float) -> None:
        """Note that Telegram has refused a call here for so many seconds."""
        super().hold(seconds)
        self._window.shut(self._silent_until)


class PrivatePace(ChatPace):
    """A private chat's allowance, a leaky bucket that counts from Telegram's first complaint on.

    Bursts are tolerated as long as nobody complains, and how long is not published; so the bucket counts until there
    was no complaint for a while. Streaming keeps its own distance between edits in any case.
    """

    def __init__(self, calls_per_second: float) -> None:
        super().__init__()
        self._bucket = _bucket(calls_per_second, 1.0)
        self._distance = 1 / calls_per_second
        self._strict_until = 0.0
        self._latest = -math.inf

    def free(self) -> bool:
        """Whether there is room for a glimpse."""
        return (not self._strict() or self._bucket.has_capacity()) and not self.silent

    async def turn(self, urgency: Urgency) -> Call | None:
        """Wait until a call may be made, in the order of asking."""
        await asyncio.sleep(max(0.0, self._silent_until - _now()))
        if self._strict():
            await self._bucket.acquire()
        return None

    def called(self, call: Call | None) -> None:
        """Note that the call whose turn it was goes out."""
        now = _now()
        self.hurried = not self._strict() and now - self._latest < self._distance / 2
        self._latest = now

    def hold(self, seconds: float) -> None:
        """Note that Telegram has refused a call here for so many seconds."""
        super().hold(seconds)
        self._strict_until = max(self._strict_until, self._silent_until + STRICT_SECONDS)

    def _strict(self) -> bool:
        return _now() < self._strict_until


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
        come_back = (_now() - self._lowered_at) / RECOVERY_SECONDS * self._most
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
        now = _now()
        if now - self._lowered_at < SETTLING_SECONDS:
            return
        recent = {each: when for each, when in self._complaints.items() if now - when < COMPLAINT_SECONDS}
        self._complaints = recent | {chat: now}
        if len(self._complaints) >= COMPLAINTS:
            self._lowered_to = max(self.rate / 2, min(FLOOR, self._most))
            self._lowered_at = now
            self._complaints = {}
            log.warning("refused in many chats: fewer calls over all", calls_per_second=round(self.rate, 1))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _bucket(rate: float, seconds: float) -> AsyncLimiter:
    """`rate` calls a second; after a pause, as many at once as `seconds` are worth, one at least."""
    size = max(1.0, rate * seconds)
    return AsyncLimiter(size, size / rate)
