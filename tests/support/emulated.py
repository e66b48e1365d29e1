"""Helpers for tests of the emulator: a running emulator with an aiogram bot, pictures, and an echo bot."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiogram import Bot, Dispatcher, F
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import TelegramAPIError
from aiogram.types import CallbackQuery, InlineKeyboardButton, InlineKeyboardMarkup, Message
from PIL import Image

from telegram_emulator import Emulator
from tests.support.person import DOWN, UP

THUMBS = InlineKeyboardMarkup(
    inline_keyboard=[[InlineKeyboardButton(text=t, callback_data=f"rate:{t}") for t in (UP, DOWN)]]
)


def jpeg(width: int = 640, height: int = 480, colour: str = "teal") -> bytes:
    """Return a JPEG of one colour."""
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(encoded, "JPEG")
    return encoded.getvalue()


class _Session(AiohttpSession):
    """An aiogram session that closes without the quarter-second wait for TLS to shut down."""

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def client(url: str, token: str) -> Bot:
    """Return an aiogram bot that uses `url` as the Telegram server.

    Close the bot after use, or use it as a context manager.
    """
    return Bot(token, session=_Session(api=TelegramAPIServer.from_base(url)))


async def until(holds: Callable[[], bool]) -> None:
    """Poll until `holds()` is true, for conditions that have no event to wait for."""
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("the condition never held")


def acquainted(person: int, **options: Any) -> Emulator:
    """Return an emulator with `options` in which the user Ada, with ID `person`, has written to the bot."""
    emulator = Emulator(**options)
    emulator.add_person(person, "Ada")
    emulator.people.writes(person, "/start")
    return emulator


@asynccontextmanager
async def running(emulator: Emulator) -> AsyncIterator[tuple[str, Bot]]:
    """Run an emulator; yield its address and an aiogram bot connected to it."""
    url = await emulator.start()
    try:
        async with client(url, emulator.token) as bot:
            yield url, bot
    finally:
        await emulator.stop()


@contextmanager
def refusal(description: str) -> Iterator[pytest.ExceptionInfo[TelegramAPIError]]:
    """Expect a call to be refused with exactly the error message `description`."""
    with pytest.raises(TelegramAPIError) as raised:
        yield raised
    assert raised.value.message == description


@asynccontextmanager
async def echo_bot(bot: Bot) -> AsyncIterator[None]:
    """Run a bot that streams each answer by editing a message and adds rating buttons in the last edit."""
    dispatcher = Dispatcher()

    @dispatcher.callback_query(F.data.startswith("rate:"))
    async def rated(query: CallbackQuery) -> None:
        await query.answer("Thanks")

    @dispatcher.message(F.text.startswith("/"))
    async def command(message: Message) -> None:
        await message.answer(f"You said {message.text}")

    @dispatcher.message()
    async def answer(message: Message) -> None:
        reply = await message.answer("…")
        await reply.edit_text("I see")
        await reply.edit_text(f"I see: {message.text or message.caption}", reply_markup=THUMBS)

    polling = asyncio.create_task(dispatcher.start_polling(bot, handle_signals=False, polling_timeout=5))
    try:
        yield
    finally:
        await dispatcher.stop_polling()
        await polling
