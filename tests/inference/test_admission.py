"""The queue in front of the engines: its order, slots, chats and pauses."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from inference.messages import EngineUnavailable
from inference.serving.admission_queue import Admission, Ticket


def inside(*tickets: Ticket) -> list[bool]:
    return [ticket.before is None for ticket in tickets]


def test_admission_first_come_first_served() -> None:
    """Slots go to the first tickets in the queue, and each waiting ticket knows how many are ahead of it."""
    admission = Admission(lambda _: 2)
    with ExitStack() as stack:
        a, b, c, d = (stack.enter_context(admission.ticket(chat)) for chat in "abcd")
        assert [ticket.before for ticket in (a, b, c, d)] == [None, None, 0, 1]
        assert (admission.active, admission.waiting_by_lane().total()) == (2, 2)
        b.leave()
        assert [ticket.before for ticket in (a, c, d)] == [None, None, 0]
        c.leave()
        c.leave()
        assert inside(a, d) == [True, True]
    assert (admission.active, admission.waiting_by_lane().total()) == (0, 0)


def test_admission_one_slot_per_chat() -> None:
    """A chat's second question waits until its first is answered; other chats do not wait."""
    admission = Admission(lambda _: 2)
    with ExitStack() as stack:
        first, second, other = (stack.enter_context(admission.ticket(chat)) for chat in ("one", "one", "two"))
        assert inside(first, second, other) == [True, False, True]
        other.leave()
        assert second.before == 0
        first.leave()
        assert inside(second) == [True]


def test_admission_leaving_the_queue_moves_it_up() -> None:
    """When a ticket leaves the queue, the tickets behind it move up."""
    admission = Admission(lambda _: 1)
    with ExitStack() as stack:
        _, b, c = (stack.enter_context(admission.ticket(chat)) for chat in "abc")
        b.leave()
        assert c.before == 0


def test_admission_lanes_have_their_own_slots() -> None:
    """A full lane delays only its own chats, and a waiting ticket follows its chat to another lane."""
    lanes = {"a": "one", "b": "one", "c": "one", "d": "two"}
    admission = Admission(lambda _: 1, lanes.__getitem__)
    with ExitStack() as stack:
        a, b, c, d = (stack.enter_context(admission.ticket(chat)) for chat in "abcd")
        assert [ticket.before for ticket in (a, b, c, d)] == [None, 0, 1, None]
        lanes["b"] = lanes["c"] = "three"
        admission.hold(False)
        assert [ticket.before for ticket in (b, c)] == [None, 0]
        a.move("three")
        b.leave()
        assert c.before == 0, "a restarted answer takes a slot even in a full lane"
        a.leave()
        assert inside(c, d) == [True, True]


def test_admission_withdraws_slots_when_a_lane_shrinks() -> None:
    """When a lane shrinks, the newest tickets whose answers have not begun lose their slots.

    The tickets return to the queue in their original order. Answers that have begun continue.
    """
    limits = {"": 4}
    admission = Admission(limits.__getitem__)
    with ExitStack() as stack:
        a, b, c, d, e = (stack.enter_context(admission.ticket(chat)) for chat in "abcde")
        assert d.begin()
        limits[""] = 2
        admission.hold(False)
        assert [ticket.before for ticket in (a, b, c, d, e)] == [None, 0, 1, None, 2]
        assert (admission.active, admission.waiting_by_lane().total()) == (2, 3)
        assert a.begin() and not b.begin()
        limits[""] = 1
        admission.hold(False)
        assert inside(a, d) == [True, True]
        a.leave()
        assert inside(b) == [False]
        d.leave()
        assert inside(b) == [True] and b.begin()


def test_admission_holding_is_a_pause() -> None:
    """While admission is held, no ticket is admitted, even if admission is paused and resumed meanwhile."""
    admission = Admission(lambda _: 1)
    with ExitStack() as stack:
        admission.hold(True)
        a = stack.enter_context(admission.ticket("a"))
        admission.pause()
        admission.hold(False)
        assert (a.before, admission.paused) == (0, True)
        admission.hold(True)
        admission.resume()
        assert (a.before, admission.paused) == (0, True)
        admission.hold(False)
        assert (a.before, admission.paused) == (None, False)


async def test_admission_reports_each_change_once() -> None:
    """A waiting ticket reports its initial position, each change and each pause exactly once."""
    admission = Admission(lambda _: 1)
    heard: list[tuple[int, bool]] = []
    with ExitStack() as stack:
        a, b, c = (stack.enter_context(admission.ticket(chat)) for chat in "abc")

        async def wait() -> None:
            async for news in c.turn():
                heard.append(news)  # noqa: PERF401 — each must be there as soon as it is heard

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        d = stack.enter_context(admission.ticket("d"))
        await asyncio.sleep(0)
        assert heard == [(1, False)]
        admission.pause()
        await asyncio.sleep(0)
        a.leave()
        b.leave()
        await asyncio.sleep(0)
        assert inside(c, d) == [False, False]
        admission.resume()
        await waiting
        assert heard == [(1, False), (1, True), (0, True)]
        assert inside(c, d) == [True, False]


async def test_admission_closing_rejects_the_queue() -> None:
    """Closing admission turns away waiting and later tickets, with the reason; a ticket with a slot keeps it."""
    admission = Admission(lambda _: 1)
    with admission.ticket("a") as a, admission.ticket("b") as b:
        admission.close("closing time")
        with pytest.raises(EngineUnavailable, match="closing time"):
            await anext(b.turn())
        with admission.ticket("c") as c, pytest.raises(EngineUnavailable, match="closing time"):
            await anext(c.turn())
        assert inside(a) == [True]
        emptied = asyncio.create_task(admission.empty(10))
        await asyncio.sleep(0)
        assert not emptied.done()
    await emptied
