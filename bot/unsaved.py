"""What the ledger could not take, kept in memory so that people can talk on while the disk is full.

Bounded, and gone with the process. What follows on it is not saved either, since a record would lack what was said
before it; a new picture begins anew. Knows nothing about why it could not be saved.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from inference.messages import Picture
from storage.records import Exchange

SESSIONS: Final = 256
EXCHANGES: Final = 8


class Unsaved:
    """Exchanges by session, the newest few of each, with their pictures."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[int, deque[tuple[Exchange, tuple[Picture, ...]]]] = OrderedDict()

    def add(self, exchange: Exchange, pictures: tuple[Picture, ...]) -> None:
        """Remember an exchange (its id is 0) at the end of its session."""
        self._sessions.setdefault(exchange.session, deque(maxlen=EXCHANGES)).append((exchange, pictures))
        self._sessions.move_to_end(exchange.session)
        while len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)

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
