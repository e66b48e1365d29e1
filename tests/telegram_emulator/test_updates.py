"""Updates by long polling and by webhook: each until it is confirmed, never both ways at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiogram import Bot
from aiogram.exceptions import TelegramConflictError
from aiogram.types import Update
from aiohttp import web
from aiohttp.test_utils import TestServer

from telegram_emulator import Emulator
from telegram_emulator.webhook import SECRET_HEADER
from tests.support.emulated import refusal, running, until

ADA = 7


@pytest.fixture
async def world() -> AsyncIterator[tuple[Emulator, Bot]]:
    """An emulator with Ada in it, numbering from 100, and a bot."""
    emulator = Emulator(first_id=100)
    emulator.add_person(ADA, "Ada")
    async with running(emulator) as (_, bot):
        yield emulator, bot


def texts(updates: list[Update]) -> list[str | None]:
    """Return the texts of the messages in these updates."""
    return [update.message.text for update in updates if update.message]


async def test_an_update_stays_until_it_is_confirmed(world: tuple[Emulator, Bot]) -> None:
    """The same updates are returned until an offset above them is requested; limit cuts the batch."""
    emulator, bot = world
    for word in ("one", "two", "three"):
        emulator.people.writes(ADA, word)
    updates = await bot.get_updates()
    assert [update.update_id for update in updates] == [100, 101, 102]
    assert texts(await bot.get_updates(limit=2)) == ["one", "two"]
    assert texts(await bot.get_updates(offset=102)) == ["three"]
    assert texts(await bot.get_updates()) == ["three"]
    assert await bot.get_updates(offset=103) == []


async def test_a_long_poll_ends_with_the_first_update(world: tuple[Emulator, Bot]) -> None:
    """A waiting poll returns with the first update, or empty after its timeout."""
    emulator, bot = world
    polling = asyncio.create_task(bot.get_updates(timeout=30))
    await until(lambda: "getupdates" in emulator.calls)
    emulator.people.writes(ADA, "hello")
    assert texts(await asyncio.wait_for(polling, 10)) == ["hello"]
    assert await bot.get_updates(offset=101, timeout=1) == []


async def test_a_second_poller_ends_the_first(world: tuple[Emulator, Bot]) -> None:
    """The earlier waiting poll gets 409, the later one the update."""
    emulator, bot = world
    first = asyncio.create_task(bot.get_updates(timeout=30))
    await until(lambda: "getupdates" in emulator.calls)
    second = asyncio.create_task(bot.get_updates(timeout=30))
    with refusal(
        "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
    ) as raised:
        await asyncio.wait_for(first, 10)
    assert isinstance(raised.value, TelegramConflictError)
    emulator.people.writes(ADA, "hello")
    assert texts(await asyncio.wait_for(second, 10)) == ["hello"]


async def test_reactions_come_only_when_asked_for(world: tuple[Emulator, Bot]) -> None:
    """message_reaction is not a default update; allowed_updates includes it and excludes others."""
    emulator, bot = world
    emulator.people.writes(ADA, "/start")
    sent = await bot.send_message(ADA, "hello")
    emulator.people.reacts(ADA, sent.message_id, "👍")
    assert [update.event_type for update in await bot.get_updates()] == ["message"]
    await bot.get_updates(offset=101, allowed_updates=["message_reaction"])
    emulator.people.reacts(ADA, sent.message_id, "👎")
    emulator.people.writes(ADA, "not asked for")
    (update,) = await bot.get_updates()
    assert update.message_reaction is not None
    changes = [reactions[0].model_dump() for reactions in (
        update.message_reaction.old_reaction, update.message_reaction.new_reaction
    )]  # fmt: skip
    assert [change["emoji"] for change in changes] == ["👍", "👎"]
    emulator.people.reacts(ADA, sent.message_id, "")
    last = (await bot.get_updates())[-1].message_reaction
    assert last is not None and last.new_reaction == []


async def test_updates_can_come_twice_and_in_reverse(world: tuple[Emulator, Bot]) -> None:
    """On request the queue repeats confirmed updates and reverses a batch."""
    emulator, bot = world
    emulator.world.updates.duplicates = 1
    emulator.people.writes(ADA, "one")
    assert texts(await bot.get_updates()) == ["one"]
    assert texts(await bot.get_updates(offset=101)) == ["one"]
    assert await bot.get_updates(offset=101) == []
    emulator.world.updates.held_back = 2
    emulator.people.writes(ADA, "two")
    assert await bot.get_updates() == []
    emulator.people.writes(ADA, "three")
    assert texts(await bot.get_updates()) == ["three", "two"]


class Receiver:
    """The receiver of a webhook: records updates and fails `failures` times."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.failures = 0
        self.arrived = asyncio.Event()

    async def post(self, request: web.Request) -> web.Response:
        """Take one update."""
        self.received.append((request.headers.get(SECRET_HEADER, ""), await request.json()))
        self.arrived.set()
        if self.failures > 0:
            self.failures -= 1
            return web.Response(status=500)
        return web.Response()

    async def until(self, count: int) -> None:
        """Wait for this number of posts."""
        while len(self.received) < count:
            self.arrived.clear()
            await asyncio.wait_for(self.arrived.wait(), 10)


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[str, Receiver]]:
    """A webhook's address and what arrives there."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.post)
    server = TestServer(app)
    await server.start_server()
    yield str(server.make_url("/hook")), receiver
    await server.close()


async def test_a_webhook_gets_updates_in_order_with_its_secret(
    world: tuple[Emulator, Bot], receiver: tuple[str, Receiver]
) -> None:
    """Updates are posted one after the other, repeated until 200, with the secret."""
    emulator, bot = world
    url, received = receiver
    received.failures = 2
    assert await bot.set_webhook(url, secret_token="s3cret-x")
    for word in ("one", "two", "three"):
        emulator.people.writes(ADA, word)
    await received.until(5)
    assert {secret for secret, _ in received.received} == {"s3cret-x"}
    assert [update["update_id"] for _, update in received.received] == [100, 100, 100, 101, 102]


async def test_polling_and_a_webhook_exclude_each_other(
    world: tuple[Emulator, Bot], receiver: tuple[str, Receiver]
) -> None:
    """A webhook ends the waiting poll and refuses new ones until it is deleted; no update is lost."""
    emulator, bot = world
    url, received = receiver
    polling = asyncio.create_task(bot.get_updates(timeout=30))
    await until(lambda: "getupdates" in emulator.calls)
    await bot.set_webhook(url)
    with refusal("Conflict: terminated by setWebhook request"):
        await asyncio.wait_for(polling, 10)
    with refusal(
        "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
    ):
        await bot.get_updates()
    emulator.people.writes(ADA, "by webhook")
    await received.until(1)
    await bot.delete_webhook()
    emulator.people.writes(ADA, "by polling")
    assert texts(await bot.get_updates())[-1] == "by polling"


async def test_pending_updates_can_be_dropped(world: tuple[Emulator, Bot]) -> None:
    """drop_pending_updates empties the queue."""
    emulator, bot = world
    emulator.people.writes(ADA, "old")
    await bot.delete_webhook(drop_pending_updates=True)
    assert await bot.get_updates() == []
