"""The whole bot in the test process, with a Telegram emulator and an instant engine and trainer.

Everything is as in `thumbtune run` except for two interpreters: tests/support/fake_engine.py replaces
that of the engine, and tests/support/instant_trainer.py that of the trainer. Engine and trainer are
child processes that are started, monitored and stopped like real ones. Periodic checks run almost
continuously.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bot.app import Application
from bot.config import load_settings
from inference.internvl2.tiny import CHECKPOINT
from storage.learning_records import Run
from storage.ledger import Ledger
from storage.state_machines import RUN_TRANSITIONS
from telegram_emulator import Emulator
from tests.support.bot_process import write_config
from tests.support.children import notes
from tests.support.person import Message, Person, button

ROOT = Path(__file__).parents[2]
ADMIN = 7
QUICKLY = {
    "bot.telegram.rate_limit.PRIVATE_SECONDS": 0.0001,
    "bot.admin.periodic.PAUSE_SECONDS": 0.02,
    "bot.updates.inbox_processor.PAUSES": (0.02,),
    "training.run_progress._SECONDS": 0.02,
}


def picture(seed: int) -> bytes:
    """Return a PNG picture that is different for each `seed`."""
    written = BytesIO()
    Image.frombytes("RGB", (32, 32), random.Random(seed).randbytes(3 * 32 * 32)).save(written, "PNG")
    return written.getvalue()


class WholeBot:
    """A data folder for a bot, with an emulator and its users; created by `whole_bot`."""

    def __init__(self, emulator: Emulator, url: str, folder: Path, stack: AsyncExitStack) -> None:
        self.emulator = emulator
        self.url = url
        self.data = folder / "data"
        self.base = folder / "base"
        self._folder = folder
        self._stack = stack
        self.base.mkdir()
        (self.base / "cue.json").write_text("{}")
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(CHECKPOINT / name, self.base / name)

    async def person(self, number: int, name: str, language: str) -> Person:
        """Add a user who has pressed Start in the chat with the bot, and return the user."""
        person = await self._stack.enter_async_context(Person(self.url, number, name, language))
        self.emulator.world.users[number].started = True
        return person

    def config(self, **sections: dict[str, Any]) -> Path:
        """Write config.toml with the settings in `sections` overridden, and return its path."""
        given: dict[str, dict[str, Any]] = {
            "telegram": {
                "token": self.emulator.token,
                "api_base": self.url,
                "admins": [ADMIN],
                "poll_seconds": 5,
                "edit_seconds": 0.05,
                "calls_per_second": 10_000,
                "group_calls_per_minute": 600_000,
            },
            "chat": {"album_seconds": 0.1},
            "storage": {"dir": str(self.data), "min_free_gigabytes": 0},
            "inference": {
                "engine": "cpu",
                "model": str(self.base),
                "python": self._interpreter("fake_engine.py"),
                "restart_delay": 0.02,
            },
            "training": {
                "recipe": "tiny",
                "min_rated": 4,
                "min_raters": 1,
                "rater_age": 0,
                "canary": 0,
                "min_free_gigabytes": 0,
                "python": self._interpreter("instant_trainer.py"),
            },
            "web": {"port": 0},
        }
        for name, values in sections.items():
            given[name] = {**given.get(name, {}), **values}
        config = self._folder / "config.toml"
        write_config(config, given)
        return config

    @asynccontextmanager
    async def running(self, **sections: dict[str, Any]) -> AsyncIterator[Application]:
        """Run the bot with the settings in `sections` overridden, and yield the application."""
        async with Application(load_settings(self.config(**sections))) as application:
            yield application

    def cue(self, text: str) -> None:
        """Set the outcome of later runs to one of those listed in tests/support/instant_trainer.py."""
        (self.data / "runs").mkdir(parents=True, exist_ok=True)
        (self.data / "runs" / "cue").write_text(text)

    def ledger(self) -> Ledger:
        """Open the bot's ledger while the bot is running, and return it."""
        return Ledger.open(self.data)

    async def ended(self, number: int) -> Run:
        """Wait until run `number` has ended, and return the run."""
        async with self.ledger() as ledger, asyncio.timeout(30):
            while True:
                run = next((each for each in await ledger.runs.latest() if each.id == number), None)
                if run and not RUN_TRANSITIONS[run.state]:
                    return run
                await asyncio.sleep(0.02)

    async def says(
        self, chat: int, fits: Callable[[Message], bool] = lambda _: True, *, after: int = 0, seconds: float = 30
    ) -> Message:
        """Wait for the bot's first finished message in `chat` that `fits` accepts, and return it.

        Only messages with an ID above `after` count. A placeholder is not a finished message.
        """
        messages = self.emulator.world.chats[chat].messages
        async with asyncio.timeout(seconds):
            while True:
                for number, message in messages.items():
                    if number > after and message["from"]["is_bot"] and _is_whole(message) and fits(message):
                        return dict(message)
                await asyncio.sleep(0.005)

    async def edited(self, chat: int, message: Message, end: str) -> Message:
        """Wait until the text of a message in `chat` ends with `end`, and return the message."""
        messages = self.emulator.world.chats[chat].messages
        async with asyncio.timeout(30):
            while not words(messages[message["message_id"]]).endswith(end):
                await asyncio.sleep(0.005)
        return dict(messages[message["message_id"]])

    async def loses_buttons(self, chat: int, message: Message) -> None:
        """Wait until a message in `chat` has no buttons."""
        async with asyncio.timeout(30):
            while "reply_markup" in self.emulator.world.chats[chat].messages[message["message_id"]]:
                await asyncio.sleep(0.005)

    def engines(self) -> list[int]:
        """Return the process IDs of all engines started so far for the base model."""
        return [note["pid"] for note in notes(self.base, "start")]

    def _interpreter(self, script: str) -> str:
        path = self._folder / f"{script}.sh"
        path.write_text(
            f'#!/bin/sh\nexport PYTHONPATH={ROOT}\nexec {sys.executable} {ROOT}/tests/support/{script} "$@"\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        return str(path)


def words(message: Message) -> str:
    """Return the text or caption of a message, or an empty string if it has neither."""
    return str(message.get("text") or message.get("caption") or "")


def _is_whole(message: Message) -> bool:
    return not words(message).endswith("…") and button(message, "⏹") is None


@asynccontextmanager
async def whole_bot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WholeBot]:
    """Run an emulator, remove the bot's delays, and yield a `WholeBot` with an empty data folder."""
    for name, value in QUICKLY.items():
        monkeypatch.setattr(name, value)
    emulator = Emulator()
    url = await emulator.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(emulator.stop)
        yield WholeBot(emulator, url, folder, stack)
