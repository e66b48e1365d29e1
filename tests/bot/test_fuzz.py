"""Arbitrary callback data and update payloads are handled or given up at once and never block a lane."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from aiogram import Bot
from aiogram.client.session.middlewares.base import NextRequestMiddlewareType
from aiogram.filters.callback_data import CallbackData
from aiogram.methods import AnswerCallbackQuery, TelegramMethod
from hypothesis import HealthCheck, given, settings, strategies
from structlog.testing import capture_logs

from bot.telegram import keyboards
from bot.updates.inbox_processor import UNREADABLE
from storage.errors import UnknownRecord
from tests.support.chatting import ADMIN, RunningBot, Stage, until

PREFIXES: Final = sorted(
    each.__prefix__
    for each in vars(keyboards).values()
    if isinstance(each, type) and issubclass(each, CallbackData) and each is not CallbackData
)
PEOPLE: Final = (1001, ADMIN)

numbers = itertools.count(1_000_000)


def sender(person: int) -> dict[str, Any]:
    """Return a user with the ID `person`, as Telegram describes one."""
    return {"id": person, "is_bot": False, "first_name": "Ada", "language_code": "en"}


def private(person: int, **more: Any) -> dict[str, Any]:
    """Return a message in the private chat of `person`, with the fields in `more`."""
    chat = {"id": person, "type": "private", "first_name": "Ada"}
    return {"message_id": 5, "date": 1, "chat": chat, "from": sender(person), **more}


def tap(person: int, data: str) -> dict[str, Any]:
    """Return a callback query for a tap by `person` on a button with `data` under one of the bot's messages."""
    message = private(person, text="An answer", **{"from": {"id": 42, "is_bot": True, "first_name": "bot"}})
    return {"id": "1", "from": sender(person), "chat_instance": "1", "message": message, "data": data}


TEMPLATES: Final[tuple[dict[str, Any], ...]] = (
    {"message": private(1001, text="What is this?")},
    {"message": private(1001, text="/start", entities=[{"type": "bot_command", "offset": 0, "length": 6}])},
    {"message": private(ADMIN, text="/stats 12")},
    {"message": private(ADMIN, text="/promote run-1")},
    {
        "message": private(
            1001, caption="This?", photo=[{"file_id": "a", "file_unique_id": "a", "width": 9, "height": 9}]
        )
    },
    {"message": private(1001, document={"file_id": "a", "file_unique_id": "a", "mime_type": "image/png"})},
    {"message": private(1001, media_group_id="1", photo=[])},
    {"message": private(1001, text="Better", reply_to_message=private(1001, text="An answer"))},
    {"message": private(1001, text="In groups", chat={"id": -5, "type": "supergroup", "title": "Us"})},
    {"message": private(1001, sticker={"file_id": "a", "file_unique_id": "a", "type": "regular"})},
    {"edited_message": private(1001, text="What was this?", edit_date=2)},
    {"callback_query": tap(1001, "rate:1:1")},
    {"callback_query": tap(ADMIN, "cancel:1")},
    {
        "message_reaction": {
            "chat": {"id": 1001, "type": "private"},
            "message_id": 5,
            "user": sender(1001),
            "date": 1,
            "old_reaction": [],
            "new_reaction": [{"type": "emoji", "emoji": "👍"}],
        }
    },
    {"stopped_message_generation": {"chat": {"id": 1001, "type": "private"}, "draft_id": 3}},
)

huge = strategies.sampled_from((2**31, 2**63, -(2**63) - 1, 10**40, "9" * 40, "1", 1.0, 1e300))
junk = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | huge
    | strategies.floats()
    | strategies.text(strategies.characters(codec=None), max_size=20),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=5), inner),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value, prefixed with `path`."""
    found = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in found:
        yield (*path, key)
        yield from places(child, (*path, key))


@strategies.composite
def updates(draw: strategies.DrawFn) -> dict[str, Any]:
    """Draw an update of any type with one to three of its values replaced or removed."""
    update: dict[str, Any] = copy.deepcopy(draw(strategies.sampled_from(TEMPLATES)))
    for _ in range(draw(strategies.integers(1, 3))):
        *way, last = draw(strategies.sampled_from(sorted(places(update), key=repr) or [("message",)]))
        inside: Any = update
        for key in way:
            inside = inside[key]
        if isinstance(inside, dict) and draw(strategies.booleans()):
            inside.pop(last, None)
        else:
            inside[last] = draw(junk)
    return update


fields = (
    strategies.integers().map(str)
    | strategies.text(max_size=20)
    | strategies.sampled_from(("1", "9" * 40, "", "wrong"))
)
callback_data = strategies.text(max_size=64) | strategies.builds(
    lambda prefix, rest: ":".join((prefix, *rest)),
    strategies.sampled_from(PREFIXES),
    strategies.lists(fields, max_size=3),
)


@contextmanager
def answered_taps(bot: Bot) -> Iterator[Counter[str]]:
    """Yield a counter of the answers to each tap, by callback query ID."""
    found: Counter[str] = Counter()

    async def note(make_request: NextRequestMiddlewareType[Any], bot: Bot, method: TelegramMethod[Any]) -> Any:
        if isinstance(method, AnswerCallbackQuery):
            found[method.callback_query_id] += 1
        return await make_request(bot, method)

    bot.session.middleware.register(note)
    yield found
    bot.session.middleware.unregister(note)


async def handle(running: RunningBot, update: dict[str, Any]) -> int:
    """Pass `update` to the inbox, wait until it is done, and return its ID."""
    number = next(numbers)
    await running.inbox.store([{"update_id": number, **update}])
    await until(lambda: not running.inbox.pending, seconds=60)
    return number


async def attacked(attack: Callable[..., Awaitable[None]], *given_: strategies.SearchStrategy[Any]) -> None:
    """Run `attack` on this event loop with many examples drawn from the strategies in `given_`."""
    loop = asyncio.get_running_loop()

    @settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategies.tuples(*given_))
    def examples(values: tuple[Any, ...]) -> None:
        asyncio.run_coroutine_threadsafe(attack(*values), loop).result(120)  # type: ignore[arg-type]

    await asyncio.to_thread(examples)


@pytest.mark.parametrize(
    "data", [f"{prefix}:{'9' * 40}:1" for prefix in PREFIXES] + [f"{prefix}:{'9' * 40}" for prefix in PREFIXES]
)
async def test_a_number_of_forty_digits_is_an_expired_button(stage: Stage, data: str) -> None:
    """A tap with a forty-digit number in its data, whatever the prefix, is answered and done without an alert."""
    async with stage.bot() as running:
        with answered_taps(running.bot) as taps, capture_logs() as logs:
            for person in PEOPLE:
                number = await handle(running, {"callback_query": {**tap(person, data), "id": str(person)}})
                assert (await running.ledger.inbox.get(number)).state == "done"
    assert set(taps) == {str(person) for person in PEOPLE}
    assert not [each for each in logs if each["log_level"] in ("warning", "error")]


async def test_any_callback_data_is_answered_and_done(stage: Stage) -> None:
    """Any tap is answered and done without an error, whatever its callback data."""
    async with stage.bot() as running:
        with answered_taps(running.bot) as taps:

            async def attack(person: int, data: str) -> None:
                name = f"tap-{next(numbers)}"
                with capture_logs() as logs:
                    number = await handle(running, {"callback_query": {**tap(person, data), "id": name}})
                assert (await running.ledger.inbox.get(number)).state == "done"
                assert taps[name]
                assert not [each for each in logs if each["event"] in ("update failed", "dead letter")]

            await attacked(attack, strategies.sampled_from(PEOPLE), callback_data)


async def test_no_update_stops_a_lane(stage: Stage) -> None:
    """An unreadable update is given up at the first attempt; the next one in its lane is handled."""
    unreadable = tuple(f"{each.__name__}" for each in UNREADABLE)
    async with stage.bot() as running:

        async def attack(update: dict[str, Any]) -> None:
            with capture_logs() as logs:
                number = await handle(running, update)
                after = await handle(running, {"message": private(1001, text="/help")})
            assert (await running.ledger.inbox.get(after)).state == "done"
            try:
                stored = await running.ledger.inbox.get(number)
            except UnknownRecord:
                return  # not said to the bot: acknowledged, and never stored
            failed = [each for each in logs if each["event"] == "update failed"]
            assert stored.state == "done" or (stored.error.startswith(unreadable) and len(failed) == 1), logs

        await attacked(attack, updates())
