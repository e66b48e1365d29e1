"""The emulator's flood control and injected faults."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiogram import Bot
from aiogram.exceptions import TelegramNetworkError, TelegramRetryAfter, TelegramServerError
from aiogram.types import BufferedInputFile

from telegram_emulator import Emulator
from tests.support.emulated import acquainted, jpeg, running

ADA = 7


@dataclass
class Clock:
    """A clock whose time is set by the tests."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock that the emulator uses for flood control."""
    return Clock()


@pytest.fixture
async def world(clock: Clock) -> AsyncIterator[tuple[Emulator, Bot, str]]:
    """An emulator in which a user, Ada, has written to the bot; the bot's client; and the emulator's URL."""
    emulator = acquainted(ADA, clock=clock)
    async with running(emulator) as (url, bot):
        yield emulator, bot, url


async def test_flood_control_is_off_until_switched_on(world: tuple[Emulator, Bot, str]) -> None:
    """Flood control is off by default, so a bot may send at any rate."""
    _, bot, _ = world
    for _ in range(40):
        await bot.send_message(ADA, "x")


async def test_a_chat_takes_a_message_a_second_with_small_bursts(
    world: tuple[Emulator, Bot, str], clock: Clock
) -> None:
    """With flood control, a chat accepts one message per second, with small bursts; edits count as messages.

    A refusal says how long to wait. A call made too early is refused again, with the remaining time.
    """
    emulator, bot, _ = world
    emulator.flood.on = True
    sent = await bot.send_message(ADA, "0")
    for number in (1, 2, 3):
        await sent.edit_text(str(number))
    with pytest.raises(TelegramRetryAfter) as raised:
        await sent.edit_text("4")
    assert raised.value.retry_after == 1
    emulator.flood.penalty = 30
    clock.now += 2
    await bot.send_message(ADA, "x")
    await bot.send_message(ADA, "x")
    with pytest.raises(TelegramRetryAfter) as raised:
        await bot.send_message(ADA, "x")
    assert raised.value.retry_after == 30
    clock.now += 10
    with pytest.raises(TelegramRetryAfter) as raised:
        await bot.send_message(ADA, "x")
    assert raised.value.retry_after == 20
    clock.now += 20
    await bot.send_message(ADA, "x")
    assert (emulator.counts(ADA).sends, emulator.counts(ADA).edits, emulator.flood.refusals) == (4, 3, 3)


async def test_a_group_takes_twenty_messages_a_minute(world: tuple[Emulator, Bot, str], clock: Clock) -> None:
    """A group accepts twenty messages per minute; the next one must wait until the first is a minute old."""
    emulator, bot, _ = world
    emulator.flood.on = True
    group = emulator.add_group("friends", [ADA])
    for _ in range(20):
        await bot.send_message(group.id, "x")
        clock.now += 0.5
    with pytest.raises(TelegramRetryAfter) as raised:
        await bot.send_message(group.id, "x")
    assert raised.value.retry_after == 50
    clock.now += 50
    await bot.send_message(group.id, "x")


async def test_thirty_messages_a_second_in_all(world: tuple[Emulator, Bot, str], clock: Clock) -> None:
    """All chats together accept at most thirty messages per second."""
    emulator, bot, _ = world
    emulator.flood.on = True
    for person in range(100, 131):
        emulator.add_person(person, "Somebody")
        emulator.people.writes(person, "/start")
    for person in range(100, 130):
        await bot.send_message(person, "x")
    with pytest.raises(TelegramRetryAfter):
        await bot.send_message(130, "x")
    clock.now += 1
    await bot.send_message(130, "x")


async def test_refused_edits_cost_nothing(world: tuple[Emulator, Bot, str]) -> None:
    """A call that fails a check, such as an edit that changes nothing, does not count against the rate limit."""
    emulator, bot, _ = world
    emulator.flood.on = True
    emulator.flood.chat_burst = 2
    sent = await bot.send_message(ADA, "same")
    for _ in range(3):
        with pytest.raises(Exception, match="not modified"):
            await sent.edit_text("same")
    await sent.edit_text("other")


async def test_the_next_calls_can_fail(world: tuple[Emulator, Bot, str]) -> None:
    """A given number of upcoming calls can be made to fail with 502, as JSON or an HTML page, or with 429.

    Failed calls are not carried out.
    """
    emulator, bot, _ = world
    emulator.faults.plan("bad_gateway", 2)
    for _ in range(2):
        with pytest.raises(TelegramServerError, match="Bad Gateway"):
            await bot.send_message(ADA, "x")
    emulator.faults.plan("html_page", methods=["sendMessage"])
    assert await bot.get_me()
    with pytest.raises(Exception, match="<title>502 Bad Gateway"):
        await bot.send_message(ADA, "x")
    emulator.faults.plan("flood", seconds=17, chat=ADA, skip=1)
    await bot.send_message(ADA, "passes")
    with pytest.raises(TelegramRetryAfter) as raised:
        await bot.send_message(ADA, "x")
    assert raised.value.retry_after == 17
    assert emulator.counts(ADA).sends == 1


async def test_connections_can_break_before_and_after_the_deed(world: tuple[Emulator, Bot, str]) -> None:
    """A connection can be made to break before or after a call is carried out.

    The bot gets the same error in both cases, but the message is sent only in the second.
    """
    emulator, bot, _ = world
    emulator.faults.plan("reset_before", methods=["sendMessage"])
    with pytest.raises(TelegramNetworkError):
        await bot.send_message(ADA, "never sent")
    assert emulator.counts(ADA).sends == 0
    emulator.faults.plan("reset_after", methods=["sendMessage"])
    with pytest.raises(TelegramNetworkError):
        await bot.send_message(ADA, "sent")
    assert emulator.counts(ADA).sends == 1
    await bot.send_message(ADA, "well again")


async def test_answers_can_be_late(world: tuple[Emulator, Bot, str]) -> None:
    """A call whose answer is delayed is still carried out."""
    emulator, bot, _ = world
    emulator.faults.plan("delay", seconds=0.2)
    before = time.monotonic()
    await bot.send_message(ADA, "late")
    assert time.monotonic() - before >= 0.2


def test_an_unknown_fault_is_refused() -> None:
    """Planning a fault with an unknown name raises ValueError, so that a test with a typo fails at once."""
    emulator = Emulator()
    with pytest.raises(ValueError, match="earthquake"):
        emulator.faults.plan("earthquake")
    emulator.faults.plan("flood", 3)
    emulator.faults.clear()
    assert not emulator.faults.planned


async def test_uploads_suffer_faults_like_any_call(world: tuple[Emulator, Bot, str]) -> None:
    """A fault planned for a chat also affects multipart calls, such as photo uploads."""
    emulator, bot, _ = world
    emulator.faults.plan("bad_gateway", chat=ADA)
    with pytest.raises(TelegramServerError):
        await bot.send_photo(ADA, BufferedInputFile(jpeg(), "x.jpg"))
    assert emulator.faults.struck == 1
