"""Questions that waited while the bot was down: answered if they are recent, else excused once for each person.

Knows when a question is too old and who was told. Who was told is forgotten with the process, and as soon as a recent
question comes.
"""

from __future__ import annotations

import time

from aiogram.types import Message


class Lateness:
    """`hours` is the age up to which a question is answered; 0 answers all."""

    def __init__(self, hours: float) -> None:
        self._seconds = hours * 3600
        self._told: set[tuple[int, int]] = set()

    def late(self, message: Message) -> bool:
        """Whether a message, by its last edit, is too old to be answered."""
        return 0 < self._seconds < time.time() - (message.edit_date or message.date.timestamp())

    def excuse(self, chat: int, asker: int) -> bool:
        """Whether the asker of a late question is still to be told; from now on they are."""
        told = (chat, asker) in self._told
        self._told.add((chat, asker))
        return not told

    def recent(self, chat: int, asker: int) -> None:
        """The asker has a question that is answered."""
        self._told.discard((chat, asker))
