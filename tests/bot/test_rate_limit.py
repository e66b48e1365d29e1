"""The overall call rate adapts to Telegram's refusals, and flood control in one chat slows only that chat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiogram import Bot

from bot.telegram import rate_limit
from bot.telegram.client import DeliveryMiddleware, open_bot
from bot.telegram.methods import Typing
from tests.support.chatting import Stage, settings, until

PEOPLE = range(4001, 4049)


@pytest.fixture(autouse=True)
def people(stage: Stage) -> None:
    """Add the users who receive the tests' messages; all of them have started the bot."""
    for person in PEOPLE:
        stage.emulator.add_person(person, f"P{person}").started = True


@asynccontextmanager
async def calling(stage: Stage, **telegram: Any) -> AsyncIterator[tuple[Bot, DeliveryMiddleware]]:
    """Yield a bot that only makes API calls, together with its delivery middleware."""
    made = settings(stage.url, stage.emulator.token, telegram).telegram
    middleware = DeliveryMiddleware(made)
    bot = open_bot(made, middleware)
    try:
        yield bot, middleware
    finally:
        await bot.session.close()


async def refused(stage: Stage, bot: Bot, middleware: DeliveryMiddleware, people: Iterable[int]) -> None:
    """Have Telegram refuse a message to each user in `people`, with a wait that outlasts the tests."""
    chats = list(people)
    for person in chats:
        stage.emulator.faults.plan("flood", chat=person, seconds=600)
    waiting = [asyncio.create_task(bot.send_message(person, "Hello")) for person in chats]
    await until(lambda: middleware.counts["floods"] == len(chats))
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)


async def test_a_rate_set_too_high_is_reduced(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the rate is set too high, it is reduced until refusals become rare, and every message arrives once."""
    monkeypatch.setattr(rate_limit, "PRIVATE_SECONDS", 1.0)
    stage.emulator.flood.on = True
    stage.emulator.flood.overall_per_second = 5
    refusals = []
    async with calling(stage, calls_per_second=80) as (bot, middleware):

        async def greet(person: int) -> None:
            await bot.send_message(person, "Hello")
            refusals.append(stage.emulator.flood.refusals)

        await asyncio.gather(*(greet(person) for person in PEOPLE))
        assert middleware.limiter.calls_per_second < 20
    assert [stage.emulator.counts(person).sends for person in PEOPLE] == [1] * len(PEOPLE)
    half = refusals[len(PEOPLE) // 2]
    assert half > len(PEOPLE) / 2
    assert refusals[-1] - half < half / 4


async def test_a_flooded_chat_does_not_slow_the_others(stage: Stage) -> None:
    """While one chat waits out flood control, messages to the other chats are sent without being refused."""
    flooded, *others = PEOPLE
    stage.emulator.faults.plan("flood", 2, chat=flooded, seconds=1)
    stage.emulator.faults.plan("flood", 1, chat=flooded, seconds=600)
    async with calling(stage, calls_per_second=80) as (bot, middleware):
        waiting = asyncio.create_task(bot.send_message(flooded, "Hello"))
        await until(lambda: not stage.emulator.faults.planned)
        for person in others:
            await bot.send_message(person, "Hello")
        assert not waiting.done()
        assert middleware.counts["floods"] == 3
        assert middleware.limiter.calls_per_second == 80
        waiting.cancel()
        await asyncio.wait((waiting,))


@pytest.mark.parametrize(("hurried", "slower"), [(False, True), (True, False)])
async def test_only_refusals_without_a_burst_reduce_the_overall_rate(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, hurried: bool, slower: bool
) -> None:
    """Refusals reduce the overall rate unless a burst of calls to the refused chats explains them."""
    monkeypatch.setattr(rate_limit, "REFUSAL_SECONDS", 1e9)
    monkeypatch.setattr(rate_limit, "PRIVATE_SECONDS", 3600.0)
    few = PEOPLE[: rate_limit.REFUSALS]
    async with calling(stage, calls_per_second=80) as (bot, middleware):
        for person in few if hurried else ():
            await bot.send_message(person, "Hello")
        await refused(stage, bot, middleware, few)
        assert (middleware.limiter.calls_per_second < 80) == slower


async def test_the_overall_rate_has_a_minimum_and_recovers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant refusals reduce the overall rate to one call per second; once they stop, it recovers fully."""
    monkeypatch.setattr(rate_limit, "REFUSAL_SECONDS", 1e9)
    monkeypatch.setattr(rate_limit, "SETTLING_SECONDS", 0.0)
    monkeypatch.setattr(rate_limit, "RECOVERY_SECONDS", 1e9)
    async with calling(stage, calls_per_second=80) as (bot, middleware):
        await refused(stage, bot, middleware, PEOPLE[1:])
        assert middleware.limiter.calls_per_second == pytest.approx(1, rel=0.01)
        await bot.send_message(PEOPLE[0], "Hello")
        monkeypatch.setattr(rate_limit, "RECOVERY_SECONDS", 1.0)
        await until(lambda: middleware.limiter.calls_per_second == 80)


async def test_typing_has_its_own_budget(stage: Stage) -> None:
    """Typing actions beyond a third of the overall rate are dropped; all messages are sent."""
    async with calling(stage, calls_per_second=30) as (bot, middleware):
        told = await asyncio.gather(*(bot(Typing(chat_id=person, action="typing")) for person in PEOPLE))
        assert 30 / rate_limit.TYPING <= told.count(True) < len(PEOPLE)
        assert middleware.counts["dropped"] == told.count(False)
        await asyncio.gather(*(bot.send_message(person, "Hello") for person in PEOPLE))
    assert [stage.emulator.counts(person).sends for person in PEOPLE] == [1] * len(PEOPLE)
