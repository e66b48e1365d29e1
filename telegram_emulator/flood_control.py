"""Flood control, which limits the messages that a bot may send per chat, per group and overall.

Telegram's published limits are about one message per second in a chat, 20 per minute in a group and 30
per second overall (core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this). Short
bursts are allowed, and edits count as messages. A message that exceeds a limit is refused, as are
further messages to its chat for `retry_after` seconds. Flood control is off by default.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from telegram_emulator.api_errors import too_many_requests


@dataclass(slots=True)
class _Bucket:
    """One chat's token bucket, the times of its messages in the last minute, and the time its block ends."""

    tokens: float
    refilled: float
    sent: deque[float] = field(default_factory=deque)
    blocked_until: float = 0.0


@dataclass(slots=True)
class FloodControl:
    """The limits of flood control and the current usage of each chat.

    `chat_rate` is in messages per second. If `penalty` is set, it replaces the computed `retry_after`; both
    are in seconds.
    """

    on: bool = False
    chat_rate: float = 1.0
    chat_burst: float = 4.0
    group_per_minute: int = 20
    overall_per_second: int = 30
    penalty: int | None = None
    clock: Callable[[], float] = monotonic
    refusals: int = 0
    _buckets: dict[int, _Bucket] = field(default_factory=dict)
    _overall: deque[float] = field(default_factory=deque)

    def charge(self, chat: int, *, group: bool = False) -> None:
        """Count a message or an edit in `chat` towards the limits.

        Raises:
            BotApiError: A limit is exceeded, or the chat is still blocked (429).
        """
        if not self.on:
            return
        now = self.clock()
        bucket = self._buckets.setdefault(chat, _Bucket(self.chat_burst, now))
        if bucket.blocked_until > now:
            self._refuse(bucket, now, bucket.blocked_until - now)
        while self._overall and self._overall[0] <= now - 1:
            self._overall.popleft()
        while bucket.sent and bucket.sent[0] <= now - 60:
            bucket.sent.popleft()
        if not group:
            bucket.tokens = min(self.chat_burst, bucket.tokens + (now - bucket.refilled) * self.chat_rate)
            bucket.refilled = now
            if bucket.tokens < 1:
                self._refuse(bucket, now, (1 - bucket.tokens) / self.chat_rate)
        elif len(bucket.sent) + 1 > self.group_per_minute:
            self._refuse(bucket, now, bucket.sent[0] + 60 - now if bucket.sent else 60)
        if len(self._overall) + 1 > self.overall_per_second:
            self._refuse(bucket, now, 1)
        if not group:
            bucket.tokens -= 1
        self._overall.append(now)
        bucket.sent.append(now)

    def _refuse(self, bucket: _Bucket, now: float, seconds: float) -> None:
        """Refuse the call, and block the chat unless it is blocked already.

        The block lasts `seconds`, rounded up to whole seconds, or `penalty` seconds if `penalty` is set.

        Raises:
            BotApiError: Always (429); `retry_after` is the remaining time of the block.
        """
        self.refusals += 1
        if bucket.blocked_until <= now:
            bucket.blocked_until = now + (self.penalty or max(1, math.ceil(seconds)))
        raise too_many_requests(max(1, math.ceil(bucket.blocked_until - now)))
