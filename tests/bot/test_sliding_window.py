"""A group's sliding window limits the calls made in any period and orders them by priority.

The tests run in virtual time.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from bot.telegram.sliding_window import AGED_SECONDS, Priority, SlidingWindow
from tests.support.virtual_time import in_virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


async def calls(window: SlidingWindow, priority: Priority, made: list[tuple[float, Priority]]) -> None:
    """Make one call and append its time and priority to `made`."""
    window.sent(await window.acquire(priority))
    made.append((now(), priority))


@pytest.mark.parametrize("seed", range(5))
def test_no_window_has_more_calls(seed: int) -> None:
    """No 60-second window has more than 20 calls, and a busy chat comes close to that limit."""
    draw = random.Random(seed)

    async def busy() -> list[float]:
        window, made = SlidingWindow(20, 60), list[tuple[float, Priority]]()
        async with asyncio.TaskGroup() as group:
            for _ in range(300):
                priority = draw.choice([Priority.NOTICE, Priority.ANSWER, Priority.ANSWER, Priority.BUTTONS])
                group.create_task(calls(window, priority, made))
                await asyncio.sleep(draw.expovariate(1))
        return sorted(when for when, _ in made)

    times = in_virtual_time(busy())
    assert len(times) == 300
    assert max(sum(begin <= each < begin + 60 for each in times) for begin in times) <= 20
    assert times[-1] < 300 / 20 * 60 * 1.15


def test_a_burst_is_served_at_once() -> None:
    """After a pause, a burst of answers is sent at once, using every slot not reserved for notices."""

    async def burst() -> tuple[list[tuple[float, Priority]], bool]:
        window, made = SlidingWindow(20, 60), list[tuple[float, Priority]]()
        async with asyncio.TaskGroup() as group:
            for _ in range(19):
                group.create_task(calls(window, Priority.ANSWER, made))
            await asyncio.sleep(5)
            room = window.has_capacity(Priority.NOTICE)
            group.create_task(calls(window, Priority.NOTICE, made))
        return made, room

    made, room = in_virtual_time(burst())
    assert room
    assert [when for when, _ in made] == [0.0] * 18 + [5.0, 60.0]


def test_answers_go_before_buttons_but_not_for_ever() -> None:
    """Answers take precedence over a button update until the update has waited `AGED_SECONDS`."""

    async def crowded() -> list[tuple[float, Priority]]:
        window, made = SlidingWindow(2, 10), list[tuple[float, Priority]]()
        async with asyncio.TaskGroup() as group:
            await calls(window, Priority.ANSWER, made)
            await calls(window, Priority.ANSWER, made)
            group.create_task(calls(window, Priority.BUTTONS, made))
            for _ in range(40):
                group.create_task(calls(window, Priority.ANSWER, made))
        return made

    made = in_virtual_time(crowded())
    (painted,) = [when for when, priority in made if priority is Priority.BUTTONS]
    assert AGED_SECONDS <= painted <= AGED_SECONDS + 10
    assert len(made) == 43


def test_a_cancelled_call_frees_its_slot() -> None:
    """A cancelled call gives up its place to the next one, and a paused window reopens on time."""

    async def given_up() -> list[float]:
        window, made = SlidingWindow(1, 10), list[tuple[float, Priority]]()
        await calls(window, Priority.ANSWER, made)
        first, second = (asyncio.create_task(calls(window, Priority.ANSWER, made)) for _ in range(2))
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.wait((first,))
        window.pause_until(25)
        await second
        return [when for when, _ in made]

    assert in_virtual_time(given_up()) == [0.0, 25.0]
