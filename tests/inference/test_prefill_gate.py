"""The gate before an engine: whole prompts, in order, and no room lost whoever goes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from random import Random

import pytest

from inference.engines.lmdeploy.prefill_limiter import PrefillGate

CAT, DOG = (b"cat", 300), (b"dog", 400)


class Prompts:
    """Prompts at one gate; each goes in when it may, notes that and stays until it is let out or cancelled."""

    def __init__(self, tokens: int) -> None:
        self.gate = PrefillGate(tokens)
        self.inside: dict[str, int] = {}
        self.order: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, cost: int) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._stay(name, cost))
        await settle()

    async def _stay(self, name: str, cost: int) -> None:
        async with self.gate.room(cost):
            self.inside[name] = cost
            self.order.append(name)
            try:
                await self._ends[name].wait()
            finally:
                del self.inside[name]

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self._tasks[name].cancel()
        await settle()


async def settle() -> None:
    """Let everybody go as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_whole_prompts_first_come_first_served() -> None:
    """So many go in as fit whole; a small one does not overtake a large one that came before."""
    prompts = Prompts(100)
    for name, cost in (("a", 60), ("b", 40), ("c", 50), ("d", 10)):
        await prompts.come(name, cost)
    assert prompts.inside == {"a": 60, "b": 40}
    assert prompts.gate.waiting == 2
    await prompts.end("b")
    assert prompts.inside == {"a": 60}
    await prompts.end("a")
    assert prompts.order == ["a", "b", "c", "d"]
    assert prompts.gate.waiting == 0


async def test_a_prompt_larger_than_the_gate_goes_in_alone() -> None:
    """It waits until nobody is inside, and nobody joins it."""
    prompts = Prompts(100)
    for name, cost in (("small", 10), ("huge", 500), ("next", 10)):
        await prompts.come(name, cost)
    assert prompts.inside == {"small": 10}
    await prompts.end("small")
    assert prompts.inside == {"huge": 500}
    await prompts.end("huge")
    assert prompts.inside == {"next": 10}


async def test_who_waits_and_leaves_makes_room_for_who_is_behind() -> None:
    """A cancelled large prompt no longer holds up the small one behind it, nor is it counted."""
    prompts = Prompts(100)
    for name, cost in (("a", 60), ("large", 90), ("b", 40), ("c", 30)):
        await prompts.come(name, cost)
    await prompts.cancel("large")
    assert prompts.inside == {"a": 60, "b": 40}
    assert prompts.gate.waiting == 1
    await prompts.end("a")
    assert prompts.inside == {"b": 40, "c": 30}


async def test_who_is_let_in_and_cancelled_at_once_gives_the_room_back() -> None:
    """Between being let in and noticing it, a prompt may be cancelled; and one may go as another is let in."""
    prompts = Prompts(100)
    for name in ("a", "b", "c", "d"):
        await prompts.come(name, 100)
    prompts._ends["a"].set()
    while prompts.inside:
        await asyncio.sleep(0)
    await prompts.cancel("b", "c")
    assert prompts.inside == {"d": 100}


async def test_the_room_is_free_as_soon_as_the_prompt_is_computed() -> None:
    """Given back before the answer is over; giving back twice, and at the end, does no harm."""
    gate = PrefillGate(100)
    async with AsyncExitStack() as stack:
        computed = await stack.enter_async_context(gate.room(100))
        computed()
        computed()
        again = await stack.enter_async_context(gate.room(100))
        waiting = asyncio.create_task(stack.enter_async_context(gate.room(1)))
        await settle()
        assert gate.waiting == 1
        again()
        await waiting
    async with asyncio.timeout(5), gate.room(100):
        pass


async def test_an_error_inside_gives_the_room_back() -> None:
    """Whatever ends a prompt, the next one goes in."""
    gate = PrefillGate(100)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            async with asyncio.timeout(5), gate.room(100):
                raise ValueError("broken")


def test_a_picture_that_was_seen_costs_nothing() -> None:
    """Only the first prompt with a picture computes it; the least recently seen are forgotten."""
    gate = PrefillGate(1000)
    assert gate.cost(350, [CAT]) == 350
    assert gate.cost(780, [CAT, DOG]) == 480
    assert gate.cost(700, [CAT, DOG]) == 1
    for number in range(4095):
        assert gate.cost(320, [CAT, (b"%d" % number, 20)]) == 20
    assert gate.cost(310, [CAT]) == 10
    assert gate.cost(410, [DOG]) == 410


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_under_random_cancellation(seed: int) -> None:
    """Never more inside than fits, save one alone; and in the end everybody who stayed has been inside."""
    dice = Random(seed)
    prompts = Prompts(100)
    costs: dict[str, int] = {}
    cancelled: set[str] = set()
    for number in range(60):
        name = str(number)
        costs[name] = dice.randint(1, 130)
        await prompts.come(name, costs[name])
        if dice.random() < 0.4:
            chosen = dice.sample(sorted(costs), min(len(costs), 3))
            cancelled.update(chosen)
            await prompts.cancel(*chosen)
        if prompts.inside and dice.random() < 0.6:
            prompts._ends[dice.choice(sorted(prompts.inside))].set()
            if dice.random() < 0.5:
                await prompts.cancel(name)
                cancelled.add(name)
            await settle()
        assert len(prompts.inside) <= 1 or sum(prompts.inside.values()) <= 100
        assert prompts.inside or not prompts.gate.waiting
    while prompts.inside:
        await prompts.end(min(prompts.inside))
    assert prompts.gate.waiting == 0
    assert set(costs) - cancelled <= set(prompts.order)
    assert [int(name) for name in prompts.order] == sorted(int(name) for name in prompts.order)
