"""Questions that waited while the bot was down: old ones get an apology instead of an answer, one for each person.

Who got one is kept in memory only, and until their next recent question.
"""

from __future__ import annotations

import time

from aiogram.types import Message


class StaleQuestions:
    """Questions older than `hours` are stale; 0 means that none are."""

    def __init__(self, hours: float) -> None:
        self._seconds = hours * 3600
        self._apologised: set[tuple[int, int]] = set()

    def is_stale(self, message: Message) -> bool:
        """Whether a message, by its last edit, is too old to be answered."""
        return 0 < self._seconds < time.time() - (message.edit_date or message.date.timestamp())

    def should_apologise(self, chat: int, asker: int) -> bool:
        """Whether the asker has not had an apology yet; True only once."""
        first = (chat, asker) not in self._apologised
        self._apologised.add((chat, asker))
        return first

    def reset(self, chat: int, asker: int) -> None:
        """Forget the apology: the asker has a recent question."""
        self._apologised.discard((chat, asker))
