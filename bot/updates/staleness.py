"""Questions that waited while the bot was down. Old ones get an apology instead of an answer, one for each person.

Who got an apology is kept only in memory, and only until their next recent question.
"""

from __future__ import annotations

import time

from aiogram.types import Message


class StaleQuestions:
    """Decides which questions are stale: those older than `hours`, or none if that is 0."""

    def __init__(self, hours: float) -> None:
        self._seconds = hours * 3600
        self._apologised: set[tuple[int, int]] = set()

    def is_stale(self, message: Message) -> bool:
        """Return whether a message is too old to be answered, counted from its last edit."""
        return 0 < self._seconds < time.time() - (message.edit_date or message.date.timestamp())

    def should_apologise(self, chat: int, asker: int) -> bool:
        """Return whether the asker has not had an apology yet, and count one as sent. True only once until `reset`."""
        first = (chat, asker) not in self._apologised
        self._apologised.add((chat, asker))
        return first

    def reset(self, chat: int, asker: int) -> None:
        """Forget the apology, because the asker has a recent question."""
        self._apologised.discard((chat, asker))
