"""The prefill limiter admits whole prompts with new pictures in order and loses no capacity on cancellation."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from random import Random

import pytest

from inference.engines.lmdeploy.prefill_limiter import PrefillLimiter

CAT, DOG = {b"cat": 300}, {b"dog": 400}
ITERATION = 133
"""An iteration that has room for 100 tokens of prompts with new pictures; the rest is for other prompts."""


def limiter_of(tokens: int = ITERATION, cache_tokens: int = 100_000) -> PrefillLimiter:
    return PrefillLimiter(tokens, cache_tokens)


class Prompts:
    """Prompts that share one limiter.

    Each has a picture of its own, which is new, unless its cost is 0. It is recorded when admitted and stays admitted
    until it is ended or cancelled.
    """

    def __init__(self) -> None:
        self.limiter = limiter_of()
        self.admitted: dict[str, int] = {}
        self.order: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, name: str, cost: int) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._stay(name, cost))
        await settle()

    async def _stay(self, name: str, cost: int) -> None:
        async with self.limiter.room(cost or 5, {name.encode(): 1} if cost else {}):
            self.admitted[name] = cost
            self.order.append(name)
            try:
                await self._ends[name].wait()
            finally:
                del self.admitted[name]

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self._tasks[name].cancel()
        await settle()


async def settle() -> None:
    """Let all tasks run until each of them is waiting."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_whole_prompts_first_come_first_served() -> None:
    """Prompts are admitted in order while they fit; a small one does not overtake an earlier large one."""
    prompts = Prompts()
    for name, cost in (("a", 60), ("b", 40), ("c", 50), ("d", 10)):
        await prompts.add(name, cost)
    assert prompts.admitted == {"a": 60, "b": 40}
    assert prompts.limiter.waiting == 2
    await prompts.end("b")
    assert prompts.admitted == {"a": 60}
    await prompts.end("a")
    assert prompts.order == ["a", "b", "c", "d"]
    assert prompts.limiter.waiting == 0


async def test_a_prompt_without_new_pictures_never_waits() -> None:
    """A prompt without new pictures is admitted at once, even before earlier prompts, and takes no other's room."""
    prompts = Prompts()
    for name, cost in (("a", 60), ("large", 90), ("follow-up", 0), ("another", 0), ("b", 40)):
        await prompts.add(name, cost)
    assert prompts.admitted == {"a": 60, "follow-up": 0, "another": 0}
    assert prompts.limiter.waiting == 2
    await prompts.end("a")
    assert prompts.admitted == {"follow-up": 0, "another": 0, "large": 90}
    await prompts.end("large")
    assert prompts.order == ["a", "follow-up", "another", "large", "b"]


async def test_a_prompt_larger_than_the_limit_is_admitted_alone() -> None:
    """A prompt larger than the limit is admitted alone: it waits for all earlier ones, and none joins it."""
    prompts = Prompts()
    for name, cost in (("small", 10), ("huge", 500), ("next", 10)):
        await prompts.add(name, cost)
    assert prompts.admitted == {"small": 10}
    await prompts.end("small")
    assert prompts.admitted == {"huge": 500}
    await prompts.end("huge")
    assert prompts.admitted == {"next": 10}


async def test_a_cancelled_waiting_prompt_does_not_block_the_next() -> None:
    """When a waiting prompt is cancelled, the next one is admitted and the count of waiting prompts is correct."""
    prompts = Prompts()
    for name, cost in (("a", 60), ("large", 90), ("b", 40), ("c", 30)):
        await prompts.add(name, cost)
    await prompts.cancel("large")
    assert prompts.admitted == {"a": 60, "b": 40}
    assert prompts.limiter.waiting == 1
    await prompts.end("a")
    assert prompts.admitted == {"b": 40, "c": 30}


async def test_a_prompt_cancelled_right_after_admission_gives_its_room_back() -> None:
    """A prompt cancelled between its admission and its task's next step releases its capacity."""
    prompts = Prompts()
    for name in ("a", "b", "c", "d"):
        await prompts.add(name, 100)
    prompts._ends["a"].set()
    while prompts.admitted:
        await asyncio.sleep(0)
    await prompts.cancel("b", "c")
    assert prompts.admitted == {"d": 100}


async def test_room_is_free_once_the_prompt_is_processed() -> None:
    """A prompt's capacity is released once its prefill is complete, before the answer ends.

    A second release has no effect.
    """
    limiter = limiter_of()
    async with AsyncExitStack() as stack:
        processed = await stack.enter_async_context(limiter.room(100, {b"a": 1}))
        processed()
        processed()
        again = await stack.enter_async_context(limiter.room(100, {b"b": 1}))
        waiting = asyncio.create_task(stack.enter_async_context(limiter.room(1, {b"c": 1})))
        await settle()
        assert limiter.waiting == 1
        again()
        await waiting
    async with asyncio.timeout(5), limiter.room(100, {b"d": 1}):
        pass


async def test_an_error_inside_gives_the_room_back() -> None:
    """An exception during prefill releases the prompt's capacity, so the next prompt is admitted."""
    limiter = limiter_of()
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            async with asyncio.timeout(5), limiter.room(100, {b"a": 1}):
                raise ValueError("broken")


async def test_a_picture_is_new_until_it_has_been_processed() -> None:
    """A question asked again about a picture that was never processed waits like the first one."""
    limiter = limiter_of()
    async with limiter.room(100, {b"a": 90}):
        cancelled = asyncio.create_task(limiter.room(100, {b"b": 90}).__aenter__())
        await settle()
        cancelled.cancel()
        await settle()
        assert limiter.cost(100, {b"b": 90}) == limiter.cost(100, {b"a": 90}) == 100
    assert limiter.cost(100, {b"a": 90}) == 100, "the answer ended before the first token"


async def test_processed_pictures_cost_nothing_while_they_fit_in_the_cache() -> None:
    """The tokens of a recently processed picture do not count towards the limit again, and text alone costs nothing.

    The pictures that were processed least recently no longer fit in the cache, so their tokens count again.
    """
    limiter = limiter_of(1000, cache_tokens=750)

    async def process(pictures: dict[bytes, int]) -> None:
        async with limiter.room(350, pictures) as processed:
            processed()

    assert limiter.cost(350, {}) == 0
    assert limiter.cost(350, CAT) == 350
    await process(CAT)
    assert limiter.cost(780, CAT | DOG) == 480
    await process(DOG)
    assert limiter.cost(800, CAT | DOG) == 0
    await process(CAT)
    await process({b"bird": 60})
    assert limiter.cost(310, CAT) == 0
    assert limiter.cost(410, DOG) == 410


@pytest.mark.parametrize(("tokens", "pictures"), [(16384, 4), (8192, 2), (4096, 1)])
async def test_pictures_of_thirteen_tiles_in_one_iteration(tokens: int, pictures: int) -> None:
    """An iteration of 16384, 8192 or 4096 tokens has room for four pictures of 13 tiles, two or one."""
    limiter = limiter_of(tokens)
    async with AsyncExitStack() as stack:
        for number in range(pictures):
            await stack.enter_async_context(limiter.room(3523, {b"%d" % number: 3328}))
        waiting = asyncio.create_task(stack.enter_async_context(limiter.room(3523, {b"one more": 3328})))
        await settle()
        assert limiter.waiting == 1
        waiting.cancel()
        await settle()


@pytest.mark.parametrize("seed", range(20))
async def test_random_cancellation_loses_no_room(seed: int) -> None:
    """Random cancellation loses no capacity: every prompt that is not cancelled is eventually admitted.

    Admitted prompts with new pictures never exceed the limit, except for an oversized prompt admitted alone.
    """
    dice = Random(seed)
    prompts = Prompts()
    costs: dict[str, int] = {}
    cancelled: set[str] = set()
    for number in range(60):
        name = str(number)
        costs[name] = max(dice.randint(-20, 130), 0)
        await prompts.add(name, costs[name])
        if dice.random() < 0.4:
            chosen = dice.sample(sorted(costs), min(len(costs), 3))
            cancelled.update(chosen)
            await prompts.cancel(*chosen)
        if prompts.admitted and dice.random() < 0.6:
            prompts._ends[dice.choice(sorted(prompts.admitted))].set()
            if dice.random() < 0.5:
                await prompts.cancel(name)
                cancelled.add(name)
            await settle()
        admitted = [cost for cost in prompts.admitted.values() if cost]
        assert len(admitted) <= 1 or sum(admitted) <= 100
        assert admitted or not prompts.limiter.waiting
    while prompts.admitted:
        await prompts.end(min(prompts.admitted))
    assert prompts.limiter.waiting == 0
    assert set(costs) - cancelled <= set(prompts.order)
    in_order = [int(name) for name in prompts.order if costs[name]]
    assert in_order == sorted(in_order)
