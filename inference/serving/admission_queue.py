"""Who may be answered now: a first-come queue in front of a limited number of places in each lane.

A lane's limit may change. Where it shrinks, those who have a place and whose answer has not begun go back to the
front of the queue.

Knows tickets, places and chats: one chat has at most one place at a time, so that its questions are answered one
after the other, and a chat that waits for itself holds nobody up. A chat's lane (the node it goes to, though nothing
is known here about nodes or engines) may change while it waits; a full lane holds up only its own chats. Used from
one event loop; nothing here awaits but a ticket's wait for its turn, so a place is never lost between two steps.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self

from inference.messages import EngineUnavailable


class Admission:
    """Places in each lane, and the queue before them.

    `limit` returns a lane's number of places, `lane` where a chat goes at the moment.
    """

    def __init__(self, limit: Callable[[str], int], lane: Callable[[str], str] = lambda _chat: "") -> None:
        self._limit = limit
        self._lane = lane
        self._paused = False
        self._held = False
        self._queue: list[Ticket] = []
        self._inside: list[Ticket] = []
        self._closed: str | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def paused(self) -> bool:
        """Whether no place is given out for now."""
        return self._paused or self._held

    @property
    def active(self) -> int:
        """How many have a place."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """How many stand in the queue."""
        return len(self._queue)

    def waiting_by_lane(self) -> Counter[str]:
        """How many stand in the queue for each lane."""
        return Counter(self._lane(ticket.chat) for ticket in self._queue)

    def ticket(self, chat: str) -> Ticket:
        """Stand at the end of the queue. Use it as a context manager: leaving gives queue and place up."""
        return Ticket(self, chat)

    def tickets(self, chat: str) -> list[Ticket]:
        """The chat's questions that wait or have a place."""
        return [ticket for ticket in (*self._inside, *self._queue) if ticket.chat == chat]

    def pause(self) -> None:
        """Give out no place until `resume`; who has one keeps it."""
        self._paused = True
        self._move()

    def resume(self) -> None:
        self._paused = False
        self._move()

    def hold(self, held: bool) -> None:
        """Look again at lanes and limits; give out no place while `held`, as if paused."""
        self._held = held
        self._move()

    def close(self, reason: str) -> None:
        """Turn everybody in the queue away, and all who come later, with EngineUnavailable(reason)."""
        self._closed = reason
        self._move()

    async def empty(self) -> None:
        """Wait until nobody has a place."""
        await self._empty.wait()

    def _enter(self, ticket: Ticket) -> None:
        self._queue.append(ticket)
        self._move()

    def _leave(self, ticket: Ticket) -> None:
        if ticket in self._inside:
            self._inside.remove(ticket)
        if ticket in self._queue:
            self._queue.remove(ticket)
        self._move()

    def _move(self) -> None:
        """Give free places to the first whose chat has none, then tell everybody who waits."""
        self._take_back()
        busy = {ticket.chat for ticket in self._inside}
        taken = Counter(ticket.lane for ticket in self._inside)
        before: Counter[str] = Counter()
        for ticket in list(self._queue):
            lane = self._lane(ticket.chat)
            open_ = not self.paused and self._closed is None
            if open_ and taken[lane] < self._limit(lane) and ticket.chat not in busy:
                busy.add(ticket.chat)
                taken[lane] += 1
                self._queue.remove(ticket)
                self._inside.append(ticket)
                ticket.lane = lane
                ticket._tell(None)
            else:
                ticket._tell(before[lane])
                before[lane] += 1
        self._say_whether_empty()

    def _take_back(self) -> None:
        """Put the last of those beyond a lane's limit whose answers have not begun back to the front of the queue."""
        taken = Counter(ticket.lane for ticket in self._inside)
        for ticket in [ticket for ticket in reversed(self._inside) if not ticket.begun]:
            if taken[ticket.lane] > self._limit(ticket.lane):
                taken[ticket.lane] -= 1
                self._inside.remove(ticket)
                self._queue.insert(0, ticket)

    def _say_whether_empty(self) -> None:
        if self._inside:
            self._empty.clear()
        else:
            self._empty.set()


class Ticket:
    """One question's stand in the queue, then its place.

    `before` says how many in the queue come before it in its lane; None as soon as it has a place, in `lane`. From
    `begin` on the place cannot be taken back.
    """

    def __init__(self, admission: Admission, chat: str) -> None:
        self.chat = chat
        self.before: int | None = None
        self.lane = ""
        self.begun = False
        self._admission = admission
        self._news = asyncio.Event()

    def __enter__(self) -> Self:
        self._admission._enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Give up the place, or the stand in the queue. Safe to call again."""
        self._admission._leave(self)

    def begin(self) -> bool:
        """Begin the answer; False where the place has been taken back and its turn is to be waited for again."""
        self.begun = self.begun or self.before is None
        return self.begun

    def move(self, lane: str) -> None:
        """Go on in another lane, even a full one: what broke off is begun anew at once."""
        if lane != self.lane:
            self.lane = lane
            self._admission._move()

    async def turn(self) -> AsyncGenerator[tuple[int, bool], None]:
        """Wait for the place; yields (how many come before, whether paused) at the start and at each change.

        Yields nothing where a place is free. Raises EngineUnavailable when the queue is closed.
        """
        told: tuple[int, bool] | None = None
        while (before := self.before) is not None:
            if self._admission._closed is not None:
                raise EngineUnavailable(self._admission._closed)
            self._news.clear()
            if (now := (before, self._admission.paused)) != told:
                told = now
                yield now
            await self._news.wait()

    def _tell(self, before: int | None) -> None:
        self.before = before
        self._news.set()
