"""A first-come, first-served queue with a limited number of slots per lane.

A ticket stands for one question. A chat holds at most one slot at a time, so its questions are answered
in order and never block other chats. A chat's lane is the replica to which the chat is routed; the lane
may change while the chat waits, and a full lane delays only its own chats. When a lane's limit shrinks,
tickets whose answers have not begun return to the front of the queue. All code runs on one event loop,
and code that changes the queue never awaits, so no other task can run in the middle of a change.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress

from inference.messages import EngineUnavailable


class Admission:
    """The queue and the tickets that hold a slot.

    Args:
        limit: A function that returns the number of slots of a lane.
        lane: A function that returns the current lane of a chat.
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
        """Whether handing out slots is suspended."""
        return self._paused or self._held

    @property
    def active(self) -> int:
        """Number of tickets that hold a slot."""
        return len(self._inside)

    def waiting_by_lane(self) -> Counter[str]:
        """Return the queue length of each lane."""
        return Counter(self._lane(ticket.chat) for ticket in self._queue)

    @contextmanager
    def ticket(self, chat: str) -> Iterator[Ticket]:
        """Join the queue for the duration of a `with` block; the ticket gives up its slot when the block ends."""
        ticket = Ticket(self, chat)
        self._queue.append(ticket)
        self._assign_slots()
        try:
            yield ticket
        finally:
            ticket.leave()

    def tickets(self, chat: str) -> list[Ticket]:
        """Return the chat's tickets, whether queued or holding a slot."""
        return [ticket for ticket in (*self._inside, *self._queue) if ticket.chat == chat]

    def pause(self) -> None:
        """Stop handing out slots until `resume` is called; tickets that hold a slot keep it."""
        self._paused = True
        self._assign_slots()

    def resume(self) -> None:
        """Resume handing out slots after `pause`."""
        self._paused = False
        self._assign_slots()

    def hold(self, held: bool) -> None:
        """Set whether to withhold slots, independently of `pause`, and re-evaluate lanes and limits."""
        self._held = held
        self._assign_slots()

    def close(self, reason: str) -> None:
        """Reject queued and future tickets with EngineUnavailable(reason)."""
        self._closed = reason
        self._assign_slots()

    async def empty(self, patience: float) -> None:
        """Wait until no ticket holds a slot, but no longer than `patience` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._empty.wait()

    def _assign_slots(self) -> None:
        """Hand out free slots in queue order, at most one per chat, and notify all waiting tickets."""
        self._withdraw_slots()
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
                ticket._notify(None)
            else:
                ticket._notify(before[lane])
                before[lane] += 1
        if self._inside:
            self._empty.clear()
        else:
            self._empty.set()

    def _withdraw_slots(self) -> None:
        """Return the newest tickets of each overfull lane to the front of the queue, except those that have begun."""
        taken = Counter(ticket.lane for ticket in self._inside)
        for ticket in [ticket for ticket in reversed(self._inside) if not ticket.begun]:
            if taken[ticket.lane] > self._limit(ticket.lane):
                taken[ticket.lane] -= 1
                self._inside.remove(ticket)
                self._queue.insert(0, ticket)


class Ticket:
    """A question that first waits in the queue and then holds a slot.

    Attributes:
        chat: The key of the question's chat.
        before: The number of tickets ahead of this ticket in its lane, or None once the ticket holds a slot.
        lane: The lane of the slot that the ticket holds.
        begun: Whether `begin` has succeeded, after which the slot cannot be withdrawn.
    """

    def __init__(self, admission: Admission, chat: str) -> None:
        self.chat = chat
        self.before: int | None = None
        self.lane = ""
        self.begun = False
        self._admission = admission
        self._updated = asyncio.Event()

    def leave(self) -> None:
        """Leave the queue or release the slot. It is safe to call `leave` more than once."""
        for tickets in (self._admission._inside, self._admission._queue):
            if self in tickets:
                tickets.remove(self)
        self._admission._assign_slots()

    def begin(self) -> bool:
        """Mark the answer as begun and return True, or return False if the slot was withdrawn.

        If the result is False, wait for another slot with `turn`.
        """
        self.begun = self.begun or self.before is None
        return self.begun

    def move(self, lane: str) -> None:
        """Move to another lane, even a full one, so that an interrupted answer restarts without queueing."""
        if lane != self.lane:
            self.lane = lane
            self._admission._assign_slots()

    async def turn(self) -> AsyncGenerator[tuple[int, bool], None]:
        """Wait for a slot.

        Yields:
            The number of tickets ahead and whether the queue is paused, initially and on each change; nothing if
                a slot is free immediately.

        Raises:
            EngineUnavailable: The queue is closed.
        """
        reported: tuple[int, bool] | None = None
        while (before := self.before) is not None:
            if self._admission._closed is not None:
                raise EngineUnavailable(self._admission._closed)
            self._updated.clear()
            if (now := (before, self._admission.paused)) != reported:
                reported = now
                yield now
            await self._updated.wait()

    def _notify(self, before: int | None) -> None:
        self.before = before
        self._updated.set()
