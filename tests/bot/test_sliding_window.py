"""The rate limiter of a group: so many calls in any window, the most urgent first. In virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from bot.telegram.sliding_window import AGED_SECONDS, SlidingWindow, Urgency
from tests.support.virtual_time import in_virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


async def calls(window: SlidingWindow, urgency: Urgency, made: list[tuple[float, Urgency]]) -> None:
    """One call, noted with its time."""
    window.stamp(await window.acquire(urgency))
    made.append((now(), urgency))


@pytest.mark.parametrize("seed", range(5))
def test_no_window_has_more(seed: int) -> None:
    """Whatever comes when, no 60 seconds have more than 20 calls, and a busy chat has nearly as many."""
    draw = random.Random(seed)

    async def busy() -> list[float]:
        window, made = SlidingWindow(20, 60), list[tuple[float, Urgency]]()
        async with asyncio.TaskGroup() as group:
            for _ in range(300):
                urgency = draw.choice([Urgency.NOTICE, Urgency.ANSWER, Urgency.ANSWER, Urgency.REPAINT])
                group.create_task(calls(window, urgency, made))
                await asyncio.sleep(draw.expovariate(1))
        return sorted(when for when, _ in made)

    times = in_virtual_time(busy())
    assert len(times) == 300
    assert max(sum(begin <= each < begin + 60 for each in times) for begin in times) <= 20
    assert times[-1] < 300 / 20 * 60 * 1.15


def test_a_burst_is_taken_at_once() -> None:
    """After a pause answers need not wait, but for the few places that notices may need."""

    async def burst() -> tuple[list[tuple[float, Urgency]], bool]:
        window, made = SlidingWindow(20, 60), list[tuple[float, Urgency]]()
        async with asyncio.TaskGroup() as group:
            for _ in range(19):
                group.create_task(calls(window, Urgency.ANSWER, made))
            await asyncio.sleep(5)
            room = window.room(Urgency.NOTICE)
            group.create_task(calls(window, Urgency.NOTICE, made))
        return made, room

    made, room = in_virtual_time(burst())
    assert room
    assert [when for when, _ in made] == [0.0] * 18 + [5.0, 60.0]


def test_answers_go_before_buttons_but_not_for_ever() -> None:
    """Buttons wait while answers come, at most as long as an answer may have to that came when they were old enough."""

    async def crowded() -> list[tuple[float, Urgency]]:
        window, made = SlidingWindow(2, 10), list[tuple[float, Urgency]]()
        async with asyncio.TaskGroup() as group:
            await calls(window, Urgency.ANSWER, made)
            await calls(window, Urgency.ANSWER, made)
            group.create_task(calls(window, Urgency.REPAINT, made))
            for _ in range(40):
                group.create_task(calls(window, Urgency.ANSWER, made))
        return made

    made = in_virtual_time(crowded())
    (painted,) = [when for when, urgency in made if urgency is Urgency.REPAINT]
    assert AGED_SECONDS <= painted <= AGED_SECONDS + 10
    assert len(made) == 43


def test_a_cancelled_call_leaves_its_place() -> None:
    """Who gives up is passed over, and a window that is shut opens when it was told to."""

    async def given_up() -> list[float]:
        window, made = SlidingWindow(1, 10), list[tuple[float, Urgency]]()
        await calls(window, Urgency.ANSWER, made)
        first, second = (asyncio.create_task(calls(window, Urgency.ANSWER, made)) for _ in range(2))
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.wait((first,))
        window.shut(25)
        await second
        return [when for when, _ in made]

    assert in_virtual_time(given_up()) == [0.0, 25.0]
