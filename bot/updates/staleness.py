"""Detection of stale questions: those that waited too long while the bot was down.

A user with stale questions gets a single apology in each chat instead of answers. Apologies are recorded
in memory only, and only until the user's next question that is not stale.
"""

from __future__ import annotations

import time

from aiogram.types import Message


class StaleQuestions:
    """Filter for stale questions: those older than `hours` hours. If `hours` is 0, no question is stale."""

    def __init__(self, hours: float) -> None:
        self._seconds = hours * 3600
        self._apologized: set[tuple[int, int]] = set()

    def is_stale(self, message: Message) -> bool:
        """Return whether `message` is too old to be answered; its age is measured from its last edit, if any."""
        return 0 < self._seconds < time.time() - (message.edit_date or message.date.timestamp())

    def should_apologize(self, chat: int, asker: int) -> bool:
        """Return True if the user `asker` has had no apology in this chat yet, and record one as sent.

        Further calls return False until `reset` is called.
        """
        first = (chat, asker) not in self._apologized
        self._apologized.add((chat, asker))
        return first

    def reset(self, chat: int, asker: int) -> None:
        """Forget the apology to the user `asker`, who has since asked a question that is not stale."""
        self._apologized.discard((chat, asker))
