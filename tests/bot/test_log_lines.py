"""Log lines of `thumbtune run`: JSON objects that collectors can read, without the bot's token."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from inference.serving.engine_launch import free_port
from telegram_emulator import Emulator
from tests.support.bot_process import BotProcess, write_config

TOKEN = "4242:the-secret-part-of-a-token"

TROUBLE = f"""
import asyncio, logging, warnings
import bot.app

opened = bot.app.Application.__aenter__

async def troubled(self):
    entered = await opened(self)
    logging.getLogger("a.library").warning("GET https://api.example.org/bot{TOKEN}/getMe\\nfailed %s", "twice")
    logging.getLogger("a.library").info("not worth a line")
    warnings.warn("an old call", DeprecationWarning)
    try:
        raise ConnectionError("cannot reach https://api.example.org/bot{TOKEN}/getMe")
    except ConnectionError:
        logging.getLogger("a.library").exception("a request failed")
    async def lost():
        raise RuntimeError("nobody waits for this")
    task = asyncio.create_task(lost())
    await asyncio.sleep(0)
    del task
    return entered

bot.app.Application.__aenter__ = troubled
warnings.simplefilter("default")
"""

BROKEN = f"""
import bot.app

async def broken(self):
    raise OSError("no disk for bot{TOKEN}")

bot.app.Application.__aenter__ = broken
"""


def lines(process: BotProcess) -> list[dict[str, Any]]:
    """Return the log as objects; every line must be one, with a time, a level and an event."""
    text = process.log.read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    for each in found:
        assert datetime.fromisoformat(each["timestamp"]).tzinfo is not None
        assert each["level"] in ("info", "warning", "error", "critical")
        assert each["event"]
    assert "the-secret-part" not in text
    return found


async def test_every_line_is_an_object(tmp_path: Path, warm_python: str) -> None:
    """Events of the bot, of libraries, warnings and exceptions are one object a line each, without the token."""
    emulator = Emulator(token=TOKEN)
    url = await emulator.start()
    try:
        process = bot_process(tmp_path, url, warm_python)
        process.sabotage = TROUBLE
        await process.start()
        assert await process.stop() == 0
    finally:
        await emulator.stop()
    found = lines(process)
    events = {each["event"].partition("\n")[0]: each for each in found}
    assert events["running"]["mode"] == "polling"
    assert events["running"]["level"] == "info"
    assert "stopped" in events
    quoted = events["GET https://api.example.org/bot<token>/getMe"]
    assert (quoted["logger"], quoted["level"]) == ("a.library", "warning")
    assert quoted["event"].endswith("\nfailed twice")
    assert "not worth a line" not in events
    assert any(each.get("logger") == "py.warnings" and "an old call" in each["event"] for each in found)
    failed = events["a request failed"]["exception"]
    assert failed.startswith("  File ") and failed.endswith(
        "ConnectionError: cannot reach https://api.example.org/bot<token>/getMe"
    )
    assert events["Task exception was never retrieved"]["exception"].endswith("RuntimeError: nobody waits for this")


async def test_the_error_that_ends_the_bot_is_an_object(tmp_path: Path) -> None:
    """An error at the start is logged as an object as well, and the exit status is 1."""
    process = bot_process(tmp_path, "http://127.0.0.1:9")
    process.sabotage = BROKEN
    await process.start(healthy=False)
    assert await process.ended() == 1
    started, found = lines(process)
    assert started["event"] == "starting"
    assert (found["level"], found["error"]) == ("critical", "no disk for bot<token>")
    assert "in broken" in found["exception"]


def bot_process(folder: Path, api: str, python: str = "") -> BotProcess:
    port = free_port()
    config = folder / "config.toml"
    write_config(
        config,
        {
            "telegram": {"token": TOKEN, "api_base": api},
            "storage": {"dir": str(folder / "data")},
            "inference": {"threads": 1, "python": python},
            "web": {"port": port},
        },
    )
    return BotProcess(config, f"http://127.0.0.1:{port}", options=("--log-format", "json"))
