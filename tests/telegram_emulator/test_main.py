"""`python -m telegram_emulator`, run as a program, with the commands that it prints."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bot.config import load_settings
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


def commands(text: str) -> dict[str, str]:
    """Return the commands that the emulator prints, by subcommand; `export` holds the exports."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    exports = [line for line in lines if line.startswith("export ")]
    named = {re.sub(r"^\S+ ", "", line).split()[0]: line for line in lines if line not in exports}
    assert list(named) == ["init", "doctor", "run"]
    return {"export": "\n".join(exports), **named}


async def shell(script: str, folder: Path, given: str = "") -> str:
    """Run a script in `folder`, as in a new terminal, with `given` as input, and return its output."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", script),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "500"},
        stdin=PIPE,
        stdout=PIPE,
        stderr=STDOUT,
    )
    output, _ = await process.communicate(given.encode())
    return output.decode()


async def test_a_bot_can_be_rehearsed_without_telegram(tmp_path: Path) -> None:
    """The printed commands set a bot up, in their order; the settings file then needs no exports.

    The chat page has people and pictures.
    """
    async with emulating("--port", "0") as process:
        text = await printed(process)
        said = commands(text)
        token, admin = re.findall(r"^(?:Token|User ID of Mia, the admin): (.+)$", text, re.MULTILINE)
        answers = "".join(f"{line}\n" for line in (token, admin, "tiny", "cpu"))
        assert "rehearsal.toml was written" in await shell(f"{said['export']}\n{said['init']}", tmp_path, answers)
        settings = load_settings(tmp_path / "rehearsal.toml")
        assert (settings.storage.dir, settings.training.rater_age) == (Path("rehearsal"), 0)
        page = settings.telegram.api_base
        found = await shell(f"{said['doctor']} --verbose", tmp_path)
        assert re.search(r"ok +Telegram +@\w+", found) and "admins is empty" not in found
        assert "only knows coloured shapes" in text
        async with aiohttp.ClientSession() as session:
            async with session.get(page) as answer:
                assert "<title>thumbtune" in await answer.text()
            async with session.get(f"{page}/samples") as answer:
                shown = await answer.json()
            assert len(shown["samples"]) == 12 and "coloured shapes" in shown["note"]
            async with session.get(f"{page}{shown['samples'][0]['url']}") as answer:
                picture = await answer.read()
            async with session.get(f"{page}/people") as answer:
                (mia,) = [each for each in (await answer.json())["people"] if each["admin"]]
            assert settings.telegram.admins == (mia["id"],)
        async with Person(page, mia["id"], mia["name"]) as person:
            await person.sends(photo=picture, caption="What is this?")
        process.send_signal(signal.SIGINT)
        assert (await process.wait(), await process.stderr.read() if process.stderr else b"") == (0, b"")


async def test_a_port_in_use_is_one_sentence() -> None:
    """A port in use ends the emulator with a sentence that names the option for another one."""
    async with emulating("--port", "0") as process:
        port = re.search(r"page: \S+:(\d+)\n", await printed(process))
        assert port is not None
        async with emulating("--port", port[1]) as second:
            _, error = await second.communicate()
            assert second.returncode == 1
            assert "--port" in error.decode() and "Traceback" not in error.decode()
