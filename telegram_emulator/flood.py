"""Flood control: how many messages a bot may send, per chat, per group and in all.

Telegram publishes about one message a second in a chat, twenty a minute in a group and thirty a second overall
(core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this); short bursts pass, edits count. Who exceeds
a limit stays shut out until `retry_after` is over. Off unless it is switched on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from telegram_emulator.refusals import too_many_requests


@dataclass(slots=True)
class _Lane:
    """One chat's account: tokens that refill, the sends of the last minute, and until when it is shut."""

    tokens: float
    refilled: float
    sent: deque[float] = field(default_factory=deque)
    shut_until: float = 0.0


@dataclass(slots=True)
class Flood:
    """The limits and the accounts. Rates are per second; `penalty` replaces the computed `retry_after` in seconds."""

    on: bool = False
    chat_rate: float = 1.0
    chat_burst: float = 4.0
    group_per_minute: int = 20
    overall_per_second: int = 30
    penalty: int | None = None
    clock: Callable[[], float] = monotonic
    refusals: int = 0
    _lanes: dict[int, _Lane] = field(default_factory=dict)
    _overall: deque[float] = field(default_factory=deque)

    def charge(self, chat: int, *, group: bool = False, count: int = 1) -> None:
        """Account for `count` messages or edits in a chat. Raises `Refused` (429) above a limit."""
        if not self.on:
            return
        now = self.clock()
        lane = self._lanes.setdefault(chat, _Lane(self.chat_burst, now))
        if lane.shut_until > now:
            self._refuse(lane, now, lane.shut_until - now)
        while self._overall and self._overall[0] <= now - 1:
            self._overall.popleft()
        while lane.sent and lane.sent[0] <= now - 60:
            lane.sent.popleft()
        if not group:
            lane.tokens = min(self.chat_burst, lane.tokens + (now - lane.refilled) * self.chat_rate)
            lane.refilled = now
            if lane.tokens < count:
                self._refuse(lane, now, (count - lane.tokens) / self.chat_rate)
        elif len(lane.sent) + count > self.group_per_minute:
            self._refuse(lane, now, lane.sent[0] + 60 - now if lane.sent else 60)
        if len(self._overall) + count > self.overall_per_second:
            self._refuse(lane, now, 1)
        if not group:
            lane.tokens -= count
        self._overall.extend([now] * count)
        lane.sent.extend([now] * count)

    def _refuse(self, lane: _Lane, now: float, seconds: float) -> None:
        """Shut the chat. Who asks again before the time is told the rest of it."""
        self.refusals += 1
        if lane.shut_until <= now:
            lane.shut_until = now + (self.penalty or max(1, math.ceil(seconds)))
        raise too_many_requests(max(1, math.ceil(lane.shut_until - now)))
