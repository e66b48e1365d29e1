"""How much may be asked at once and within a minute, and how long whoever asks too much has to wait.

Kept in memory: a restart begins to count anew. Questions count, whatever way they come (a message, an edit, 🔄);
votes and commands do not. Admins are not limited. Knows nothing about what is said of it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final

from cachetools import LRUCache

from bot.chat.in_flight import Asked
from bot.i18n import later
from bot.settings import LimitsSettings

MINUTE: Final = 60.0
REMEMBERED: Final = 4096
FIRST_GUESS: Final = 5.0
NEWEST_SHARE: Final = 0.2
"""The weight of the newest answer in how long answers take."""

TOO_OFTEN: Final = later(
    "You have asked as many questions within a minute as I may answer ({number}). Please ask again in {seconds} s."
)
STILL_ANSWERING: Final = later(
    "I am still answering what you have asked before. Please ask again in about {seconds} s."
)
MANY_ASK: Final = later("Many people are asking me something just now. Please ask again in about {seconds} s.")


class TooMuch(Exception):
    """A question is over a limit. `sentence` and `values` say so, with the seconds to wait."""

    def __init__(self, sentence: str, seconds: float, **values: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.values = values | {"seconds": max(1, math.ceil(seconds))}


class Limits:
    """Counts the questions of everybody."""

    def __init__(
        self, settings: LimitsSettings, admins: Collection[int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._admins = admins
        self._clock = clock
        self._asked: LRUCache[int, deque[tuple[float, int]]] = LRUCache(REMEMBERED)  # person → when, which update
        self._under_way: dict[int, tuple[int, float]] = {}  # update → person, since when
        self._usual = FIRST_GUESS

    @contextmanager
    def answering(self, asked: Asked) -> Iterator[None]:
        """The question is being answered inside. Raises `TooMuch` before, having counted nothing."""
        if asked.asker not in self._admins:
            self._check(asked)
        began = self._clock()
        self._under_way[asked.update] = asked.asker, began
        try:
            yield
        finally:
            del self._under_way[asked.update]
            self._usual += NEWEST_SHARE * (self._clock() - began - self._usual)

    def _check(self, asked: Asked) -> None:
        limits = self._settings
        if limits.answers_per_person:
            mine = [since for person, since in self._under_way.values() if person == asked.asker]
            if len(mine) >= limits.answers_per_person:
                raise TooMuch(STILL_ANSWERING, self._until_done(mine))
        if limits.answers_at_once and len(self._under_way) >= limits.answers_at_once:
            raise TooMuch(MANY_ASK, self._until_done([since for _, since in self._under_way.values()]))
        if limits.questions_per_minute:
            self._count(asked, limits.questions_per_minute)

    def _until_done(self, begun: list[float]) -> float:
        """When the oldest of the answers under way should be there, if it takes as long as they usually do."""
        return min(begun) + self._usual - self._clock()

    def _count(self, asked: Asked, allowed: int) -> None:
        now = self._clock()
        mine = self._asked.setdefault(asked.asker, deque())
        while mine and now - mine[0][0] >= MINUTE:
            mine.popleft()
        if any(update == asked.update for _, update in mine):
            return  # handled once more after a failure of ours
        if len(mine) >= allowed:
            raise TooMuch(TOO_OFTEN, mine[0][0] + MINUTE - now, number=allowed)
        mine.append((now, asked.update))
