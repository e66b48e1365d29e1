"""Flood control: limits on the messages that a bot may send, per chat, per group and overall.

Telegram's published limits are about one message a second in a chat, twenty a minute in a group and thirty a second
overall (core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this). Short bursts pass; edits count. A bot
that exceeds a limit is refused until `retry_after` is over. Flood control is off by default.
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
    """One chat's token bucket, its sends of the last minute, and the time until which it is blocked."""

    tokens: float
    refilled: float
    sent: deque[float] = field(default_factory=deque)
    blocked_until: float = 0.0


@dataclass(slots=True)
class FloodControl:
    """The limits and the buckets. Rates are per second; `penalty` replaces the computed `retry_after` in seconds."""

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
        """Count a message or an edit in a chat. Raises `BotApiError` (429) above a limit."""
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
        """Block the chat; a call during the block is answered with the time that remains."""
        self.refusals += 1
        if bucket.blocked_until <= now:
            bucket.blocked_until = now + (self.penalty or max(1, math.ceil(seconds)))
        raise too_many_requests(max(1, math.ceil(bucket.blocked_until - now)))
