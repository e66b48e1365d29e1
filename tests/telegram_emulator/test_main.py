"""`python -m telegram_emulator`, run as a program, with `thumbtune doctor` as its bot."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.support.bot_process import ROOT
from tests.support.person import Person

RUN = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    " runpy.run_module('telegram_emulator', run_name='__main__', alter_sys=True)"
)
"""`python -m telegram_emulator`. A shell makes its background jobs ignore SIGINT, and the tests may be one."""


@asynccontextmanager
async def emulating(*words: str) -> AsyncIterator[Process]:
    """Yield the emulator's process, which is killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, *words), cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def printed(process: Process) -> str:
    """Return what the emulator prints once it is ready."""
    assert process.stdout is not None
    return (await process.stdout.readuntil(b"deletes its chats.\n")).decode()


async def test_a_bot_can_be_rehearsed_without_telegram(tmp_path: Path) -> None:
    """With the environment that it prints, a bot accepts the token, and the chat page has people and pictures."""
    async with emulating("--port", "0") as process:
        text = await printed(process)
        variables = dict(re.findall(r"(THUMBTUNE_\w+)='?([^\s']+)", text))
        assert variables.pop("THUMBTUNE_STORAGE__DIR") == "rehearsal"
        page = variables["THUMBTUNE_TELEGRAM__API_BASE"]
        doctor = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bot.cli.main", "doctor", "--verbose"),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "500", **variables},
            stdout=PIPE,
        )
        found, _ = await doctor.communicate()
        assert re.search(r"ok +Telegram +@\w+", found.decode()) and "admins is empty" not in found.decode()
        async with aiohttp.ClientSession() as session:
            async with session.get(page) as answer:
                assert "<title>thumbtune" in await answer.text()
            async with session.get(f"{page}/samples") as answer:
                sample = (await answer.json())["samples"][0]
            async with session.get(f"{page}{sample['url']}") as answer:
                picture = await answer.read()
            async with session.get(f"{page}/people") as answer:
                (admin,) = [each for each in (await answer.json())["people"] if each["admin"]]
            assert variables["THUMBTUNE_TELEGRAM__ADMINS"] == f"[{admin['id']}]"
        async with Person(page, admin["id"], admin["name"]) as person:
            await person.sends(photo=picture, caption="What is this?")
        process.send_signal(signal.SIGINT)
        assert (await process.wait(), await process.stderr.read() if process.stderr else b"") == (0, b"")


async def test_a_port_in_use_is_one_sentence() -> None:
    """A port in use ends the emulator with a sentence that names the option for another one."""
    async with emulating("--port", "0") as process:
        port = re.search(r":(\d+)\n", await printed(process))
        assert port is not None
        async with emulating("--port", port[1]) as second:
            _, error = await second.communicate()
            assert second.returncode == 1
            assert "--port" in error.decode() and "Traceback" not in error.decode()
