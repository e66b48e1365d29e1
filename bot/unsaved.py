"""What the ledger could not take, kept in memory so that people can talk on while the disk is full.

Bounded, and gone with the process. What follows on it is not saved either, since a record would lack what was said
before it; a new picture begins anew. Knows nothing about why it could not be saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from cachetools import LRUCache

from inference.messages import Picture
from storage.records import Exchange

SESSIONS: Final = 256
EXCHANGES: Final = 8
MESSAGES: Final = 4096


class Unsaved:
    """Exchanges by session, the newest few of each, with their pictures."""

    def __init__(self) -> None:
        self._sessions: LRUCache[int, deque[tuple[Exchange, tuple[Picture, ...]]]] = LRUCache(SESSIONS)

    def add(self, exchange: Exchange, pictures: tuple[Picture, ...]) -> None:
        """Remember an exchange (its id is 0) at the end of its session."""
        self._sessions.setdefault(exchange.session, deque(maxlen=EXCHANGES)).append((exchange, pictures))

    def history(self, session: int) -> list[Exchange]:
        """What is remembered of a session, the oldest first."""
        return [exchange for exchange, _ in self._sessions.get(session, ())]

    def picture(self, session: int, sha256: str) -> Picture | None:
        """A picture of the session that only this memory has."""
        for _, pictures in self._sessions.get(session, ()):
            for each in pictures:
                if each.sha256 == sha256:
                    return each
        return None

    def forget(self, session: int) -> None:
        """The session goes on in the ledger."""
        self._sessions.pop(session, None)


class UnsavedAnswers:
    """The messages that show answers which the ledger does not have: the newest few thousand."""

    def __init__(self) -> None:
        self._messages: LRUCache[tuple[int, int], None] = LRUCache(MESSAGES)

    def show(self, exchange: Exchange, chat: int, messages: Iterable[int]) -> None:
        """Remember whether the exchange that these messages show now was saved."""
        for message in messages:
            self._messages.pop((chat, message), None)
            if not exchange.id:
                self._messages[chat, message] = None

    def shown(self, chat: int, message: int) -> bool:
        """Whether a message shows such an answer."""
        return (chat, message) in self._messages
