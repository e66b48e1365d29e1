"""The whole bot in this process, over an emulator, with an engine and a trainer that take no time.

Everything is as in `thumbtune run` except two interpreters: the engine's is tests/support/fake_engine.py, the
trainer's tests/support/instant_trainer.py. Both are child processes, started, watched and ended as the real ones are.
Periodic checks run continuously.
"""

from __future__ import annotations

import asyncio
import json
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
from storage.states import RUN_TRANSITIONS
from telegram_emulator import Emulator
from tests.support.bot_process import write_config
from tests.support.person import Message, Person, button

ROOT = Path(__file__).parents[2]
ADMIN = 7
QUICKLY = {
    "bot.telegram.rate_limit.PRIVATE_SECONDS": 0.0001,
    "bot.admin.background.PAUSE_SECONDS": 0.02,
    "bot.updates.inbox.PAUSES": (0.02,),
    "training.run_progress._SECONDS": 0.02,
}


def picture(seed: int) -> bytes:
    """Return a distinct picture for each number."""
    written = BytesIO()
    Image.frombytes("RGB", (32, 32), random.Random(seed).randbytes(3 * 32 * 32)).save(written, "PNG")
    return written.getvalue()


class WholeBot:
    """A data folder for a bot, with its emulator and people. Created by `whole_bot`."""

    def __init__(self, emulator: Emulator, url: str, folder: Path, stack: AsyncExitStack) -> None:
        self.emulator = emulator
        self.url = url
        self.data = folder / "data"
        self.base = folder / "base"
        self._folder = folder
        self._stack = stack
        self.base.mkdir()
        (self.base / "cue.json").write_text("{}")
        (self.base / "model.safetensors").write_bytes(b"weights")
        shutil.copyfile(CHECKPOINT / "config.json", self.base / "config.json")

    async def person(self, number: int, name: str, language: str) -> Person:
        """Return a person who has pressed Start."""
        person = await self._stack.enter_async_context(Person(self.url, number, name, language))
        self.emulator.world.users[number].started = True
        return person

    def config(self, **sections: dict[str, Any]) -> Path:
        """Write config.toml with changed settings and return its path."""
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
        """Run the bot with changed settings."""
        async with Application(load_settings(self.config(**sections))) as application:
            yield application

    def cue(self, text: str) -> None:
        """Set the outcome of later runs (tests/support/instant_trainer.py)."""
        (self.data / "runs").mkdir(parents=True, exist_ok=True)
        (self.data / "runs" / "cue").write_text(text)

    def ledger(self) -> Ledger:
        """The bot's ledger, opened beside it."""
        return Ledger.open(self.data)

    async def ended(self, number: int) -> Run:
        """Wait until the run has ended and return it."""
        async with self.ledger() as ledger, asyncio.timeout(30):
            while True:
                run = next((each for each in await ledger.runs.latest() if each.id == number), None)
                if run and not RUN_TRANSITIONS[run.state]:
                    return run
                await asyncio.sleep(0.02)

    async def says(
        self, chat: int, fits: Callable[[Message], bool] = lambda _: True, *, after: int = 0, seconds: float = 30
    ) -> Message:
        """Return the bot's first matching message to a chat after message `after` that is not a placeholder."""
        messages = self.emulator.world.chats[chat].messages
        async with asyncio.timeout(seconds):
            while True:
                for number, message in messages.items():
                    if number > after and message["from"]["is_bot"] and _is_whole(message) and fits(message):
                        return dict(message)
                await asyncio.sleep(0.005)

    def engines(self) -> list[int]:
        """Return the process ids of all engines started for the base model so far."""
        file = self.base / "events.jsonl"
        notes = map(json.loads, file.read_text().splitlines() if file.exists() else ())
        return [note["pid"] for note in notes if note["event"] == "start"]

    def _interpreter(self, script: str) -> str:
        path = self._folder / f"{script}.sh"
        path.write_text(
            f'#!/bin/sh\nexport PYTHONPATH={ROOT}\nexec {sys.executable} {ROOT}/tests/support/{script} "$@"\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        return str(path)


def words(message: Message) -> str:
    """Return the text of a message."""
    return str(message.get("text") or message.get("caption") or "")


def _is_whole(message: Message) -> bool:
    return not words(message).endswith("…") and button(message, "⏹") is None


@asynccontextmanager
async def whole_bot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WholeBot]:
    """Run an emulator and yield an empty data folder for a bot with all delays removed."""
    for name, value in QUICKLY.items():
        monkeypatch.setattr(name, value)
    emulator = Emulator()
    url = await emulator.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(emulator.stop)
        yield WholeBot(emulator, url, folder, stack)
