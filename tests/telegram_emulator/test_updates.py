"""Updates are delivered until they are confirmed, by long polling or by webhook, but never by both at once."""

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
    """An emulator with a user, Ada, and update IDs starting at 100; and a client for its bot."""
    emulator = Emulator(first_id=100)
    emulator.add_person(ADA, "Ada")
    async with running(emulator) as (_, bot):
        yield emulator, bot


def texts(updates: list[Update]) -> list[str | None]:
    """Return the texts of the messages in `updates`."""
    return [update.message.text for update in updates if update.message]


async def test_an_update_stays_until_it_is_confirmed(world: tuple[Emulator, Bot]) -> None:
    """getUpdates returns the same updates, at most `limit` of them, until a higher offset is requested."""
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
    """A long poll returns with the first update, or without updates after its timeout."""
    emulator, bot = world
    polling = asyncio.create_task(bot.get_updates(timeout=30))
    await until(lambda: "getupdates" in emulator.calls)
    emulator.people.writes(ADA, "hello")
    assert texts(await asyncio.wait_for(polling, 10)) == ["hello"]
    assert await bot.get_updates(offset=101, timeout=1) == []


async def test_a_second_poller_ends_the_first(world: tuple[Emulator, Bot]) -> None:
    """A second long poll ends the first with status 409 and receives the next update."""
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
    """Reactions are sent to the bot only if allowed_updates includes message_reaction.

    Updates of a kind not listed in allowed_updates are not sent.
    """
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
    """The emulator can be made to repeat confirmed updates and to reverse the order of a batch."""
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


async def test_no_update_is_repeated_without_those_before_it(world: tuple[Emulator, Bot]) -> None:
    """A batch that repeats an update has all unconfirmed ones, because confirming it would confirm them as well."""
    emulator, bot = world
    emulator.world.updates.held_back = 2
    emulator.world.updates.duplicates = 1
    for word in ("one", "two"):
        emulator.people.writes(ADA, word)
    assert texts(await bot.get_updates()) == ["two", "one"]  # and if the bot never received it:
    assert texts(await bot.get_updates()) == ["two", "one"]


class Receiver:
    """A webhook receiver that records updates and answers the next `failures` requests with an error."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.failures = 0
        self.arrived = asyncio.Event()

    async def post(self, request: web.Request) -> web.Response:
        """Record the update in `request`, and respond with an error while `failures` is positive."""
        self.received.append((request.headers.get(SECRET_HEADER, ""), await request.json()))
        self.arrived.set()
        if self.failures > 0:
            self.failures -= 1
            return web.Response(status=500)
        return web.Response()

    async def until(self, count: int) -> None:
        """Wait until `count` requests have been received."""
        while len(self.received) < count:
            self.arrived.clear()
            await asyncio.wait_for(self.arrived.wait(), 10)


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[str, Receiver]]:
    """Serve a webhook, and yield its URL and its receiver."""
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
    """A webhook receives updates in order, with its secret; each is repeated until the webhook returns 200."""
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
    """Setting a webhook ends a waiting poll, and new polls are refused until the webhook is deleted.

    No update is lost.
    """
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
    """Deleting a webhook with drop_pending_updates discards all pending updates."""
    emulator, bot = world
    emulator.people.writes(ADA, "old")
    await bot.delete_webhook(drop_pending_updates=True)
    assert await bot.get_updates() == []
