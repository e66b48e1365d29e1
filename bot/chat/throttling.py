"""Limits on how many questions are answered at once and how many are asked per minute.

A refusal says how long to wait. Questions are counted in memory, so the count starts at zero after a
restart. Every question counts, whether it is a new message, an edit or a request to regenerate an
answer; votes and commands do not count. The limits do not apply to admins.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from cachetools import LRUCache

from bot.chat.errors import Refused
from bot.chat.question import Question
from bot.i18n import later
from bot.live_settings import LiveSettings
from storage.translatable_reason import Reason

MINUTE: Final = 60.0
REMEMBERED: Final = 4096

FIRST_ESTIMATE: Final = 5.0
"""Seconds that an answer is assumed to take until the first one has been measured."""

NEWEST_WEIGHT: Final = 0.2
"""The weight of the newest answer in the moving average of how long answers take."""

TOO_OFTEN: Final = later("That's the limit: {number} questions a minute. Try again in {seconds} s.")
STILL_ANSWERING: Final = later("I'm still answering your earlier questions. Try again in about {seconds} s.")
MANY_ASK: Final = later("Many people are asking right now. Try again in about {seconds} s.")


class Throttled(Refused):
    """A question exceeds a limit."""

    def __init__(self, sentence: str, seconds: float, **values: object) -> None:
        super().__init__(Reason(sentence, seconds=max(1, math.ceil(seconds)), **values))


class Throttle:
    """Counts the questions of all users, and enforces the limits."""

    def __init__(self, settings: LiveSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._asked: LRUCache[int, deque[tuple[float, int]]] = LRUCache(REMEMBERED)  # person → when, which update
        self._in_flight: dict[int, tuple[int, float]] = {}  # update → person, since when
        self._average = FIRST_ESTIMATE

    @contextmanager
    def admitted(self, question: Question) -> Iterator[None]:
        """Count a question as in flight while the block runs.

        Raises:
            Throttled: The question exceeds a limit. It is not counted.
        """
        if question.asker not in self._settings.now.telegram.admins:
            self._check(question)
        began = self._clock()
        self._in_flight[question.update] = question.asker, began
        try:
            yield
        finally:
            del self._in_flight[question.update]
            self._average += NEWEST_WEIGHT * (self._clock() - began - self._average)

    def _check(self, question: Question) -> None:
        limits = self._settings.now.limits
        everyones = list(self._in_flight.values())
        own = [since for person, since in everyones if person == question.asker]
        if limits.answers_per_person and len(own) >= limits.answers_per_person:
            raise Throttled(STILL_ANSWERING, self._remaining(own))
        if limits.answers_at_once and len(everyones) >= limits.answers_at_once:
            raise Throttled(MANY_ASK, self._remaining([since for _, since in everyones]))
        if limits.questions_per_minute:
            self._count(question, limits.questions_per_minute)

    def _remaining(self, begun: list[float]) -> float:
        """Return the estimated number of seconds until the oldest answer is complete.

        `begun` holds the times at which the answers began. The estimate uses the average duration of an answer.
        """
        return min(begun) + self._average - self._clock()

    def _count(self, question: Question, allowed: int) -> None:
        now = self._clock()
        asked = self._asked.setdefault(question.asker, deque())
        while asked and now - asked[0][0] >= MINUTE:
            asked.popleft()
        if any(update == question.update for _, update in asked):
            return  # the update is handled again after a failure
        if len(asked) >= allowed:
            raise Throttled(TOO_OFTEN, asked[0][0] + MINUTE - now, number=allowed)
        asked.append((now, question.update))
