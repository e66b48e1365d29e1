"""The two bots that `benchmarks.bot_load` compares.

    python -m benchmarks.bots thumbtune|echo --url URL --token TOKEN --dir DIR

`thumbtune` is the real product, with only its engine replaced by `Instant`, which answers at once.
`echo` is a bare aiogram bot that makes the same calls. SIGTERM ends the process.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import structlog
from aiogram import Bot, Dispatcher
from aiogram.types import InlineKeyboardButton, InlineKeyboardMarkup, Message

from bot.process import shorten_switch_interval
from inference.messages import Answer, Delta, Prompt, Usage
from tests.support.chatting import Notebook, RunningBot, ScriptedEngine, settings
from tests.support.emulated import THUMBS, client

CALLS_PER_SECOND = 300.0
"""Ten times Telegram's limit, and more than one Python process can make, so it limits only typing actions."""

STOP = InlineKeyboardMarkup(inline_keyboard=[[InlineKeyboardButton(text="⏹ Stop", callback_data="stop")]])


class Instant(ScriptedEngine):
    """An engine that answers at once and does not record its prompts."""

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Yield the answer's text, then the complete answer."""
        text = f"About {prompt.turns[-1].text}"
        yield Delta(text=text, model="instant")
        yield Delta(answer=Answer(text, "instant", "stop", Usage(11, 3, 0, 1), 0.001, 0.001))


async def thumbtune(url: str, token: str, folder: Path) -> None:
    """Run thumbtune with the instant engine until cancelled."""
    telegram = {"edit_seconds": 1.0, "poll_seconds": 25, "calls_per_second": CALLS_PER_SECOND}
    shorten_switch_interval()
    running = RunningBot(settings(url, token, telegram), folder, Instant(), Notebook())
    running.start()
    try:
        await asyncio.Event().wait()
    finally:
        await running.stop()


async def echo(url: str, token: str, _: Path) -> None:
    """Run a bot like aiogram's introductory example, but with the same calls as thumbtune, until cancelled."""
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def answer(message: Message, bot: Bot) -> None:
        placeholder = await message.answer("Thinking…", reply_markup=STOP)
        await bot.send_chat_action(message.chat.id, "typing")
        if message.photo:
            file = await bot.get_file(message.photo[-1].file_id)
            await bot.download_file(file.file_path or "")
        text = f"About {message.text or message.caption}"
        await placeholder.edit_text(text, reply_markup=STOP)
        await placeholder.edit_text(text, reply_markup=THUMBS)

    async with client(url, token) as bot:
        polling = asyncio.create_task(dispatcher.start_polling(bot, handle_signals=False, polling_timeout=25))
        try:
            await asyncio.Event().wait()
        finally:
            await dispatcher.stop_polling()
            await polling


async def until_terminated(url: str, token: str, folder: Path, which: str) -> None:
    """Run the bot named `which` until the process receives SIGTERM."""
    bot = asyncio.create_task({"thumbtune": thumbtune, "echo": echo}[which](url, token, folder))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, bot.cancel)
    await asyncio.gather(bot, return_exceptions=True)
    if not bot.cancelled() and (error := bot.exception()):
        raise error


def main() -> None:
    """Parse the command line and run the chosen bot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=("thumbtune", "echo"))
    parser.add_argument("--url", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--dir", type=Path, required=True)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    asyncio.run(until_terminated(given.url, given.token, given.dir, given.which))


if __name__ == "__main__":
    main()
