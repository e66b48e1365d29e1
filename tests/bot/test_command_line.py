"""Commands run as programs: exit codes, output streams, confirmation, and files they must not create."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from bot.instance_lock import bot_is_running
from storage.chat_records import Chat, Person
from storage.ledger import Ledger
from tests.support.bot_process import ROOT, Thumbtune, command, write_config


def known(folder: Path) -> Path:
    """In `folder`, create a settings file and a ledger with user 7; return the path of the settings file."""
    config = folder / "config.toml"
    write_config(config, {"storage": {"dir": str(folder / "data")}})

    async def see() -> None:
        async with Ledger.open(folder / "data") as ledger:
            await ledger.people.save(Person(7, "Ada"), Chat(7))

    asyncio.run(see())
    return config


def is_known(folder: Path) -> bool:
    """Return whether the ledger under `folder` contains user 7."""

    async def look() -> bool:
        async with Ledger.open(folder / "data") as ledger:
            return await ledger.people.get(7) is not None

    return asyncio.run(look())


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("models",),
        ("retrain",),
        ("promote", "base"),
        ("rollback",),
        ("forget", "7", "--yes"),
        ("backup", "copy"),
        ("export", "out"),
    ],
    ids=lambda words: words[0],
)
def test_a_wrong_folder_is_named_and_stays_empty(thumbtune: Thumbtune, tmp_path: Path, words: tuple[str, ...]) -> None:
    """A command that finds no ledger names the folder, exits with an error, and creates no files."""
    ended = thumbtune(*words)
    assert (ended.code, ended.out) == (1, "")
    assert f"There is no database in {tmp_path / 'data'}" in ended.err and "--config" in ended.err
    assert list(tmp_path.iterdir()) == []


async def test_without_a_token_no_data_folder_is_created(tmp_path: Path) -> None:
    """`thumbtune run` without a token says where to get one, and creates no files."""
    config, data = tmp_path / "config.toml", tmp_path / "data"
    write_config(config, {"storage": {"dir": str(data)}})
    code, said = await command(config, "run")
    assert code == 1 and "telegram.token is not set" in said
    assert not data.exists()


@pytest.mark.parametrize("section", ["inference", "training"])
async def test_without_ray_the_bot_does_not_start(tmp_path: Path, section: str) -> None:
    """An engine `ray` whose interpreter has no Ray ends the start with one sentence that says how to install it."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # -S: without the installed packages
    bare.chmod(0o700)
    telegram = {"token": "1:none", "api_base": "http://127.0.0.1:1"}
    config = tmp_path / "config.toml"
    write_config(config, {"telegram": telegram, section: {"engine": "ray", "python": str(bare)}})
    code, said = await command(config, "run")
    assert code == 1
    starting, refusal = said.splitlines()
    assert starting.endswith("starting")
    assert refusal == (
        f'thumbtune: {section}.engine = "ray" needs Ray, which {bare} lacks: run make install-ray, and set '
        f'{section}.python to ".venv/ray/bin/python".'
    )


def test_the_doctor_makes_nothing(thumbtune: Thumbtune, tmp_path: Path) -> None:
    """Before the bot's first start, `thumbtune doctor` creates no files."""
    ended = thumbtune("doctor")
    assert ended.code == 1
    assert "not set, and no config.toml here" in ended.out and "thumbtune init" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_looking_for_a_bot_makes_nothing(tmp_path: Path) -> None:
    """Checking whether a bot is running does not create its lock file."""
    assert not bot_is_running(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("forget",), ("forget", "ada"), ("promote",), ("fly",), ("status", "--fast")])
def test_wrong_usage_is_exit_code_2(thumbtune: Thumbtune, words: tuple[str, ...]) -> None:
    """An invalid command line exits with code 2 and is reported on standard error."""
    ended = thumbtune(*words)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage" in ended.err


def test_no_terminal_is_no_yes(thumbtune: Thumbtune, tmp_path: Path) -> None:
    """Without a terminal, `thumbtune forget` deletes nothing unless --yes skips the confirmation."""
    config = known(tmp_path)
    refused = thumbtune("forget", "7", "--config", str(config))
    assert refused.code == 1
    assert "--yes" in refused.err
    assert is_known(tmp_path)
    assert "0 " not in refused.err
    done = thumbtune("forget", "7", "--yes", "--config", str(config))
    assert (done.code, done.err) == (0, "")
    assert not is_known(tmp_path)


async def test_a_terminal_is_asked(tmp_path: Path) -> None:
    """In a terminal, `thumbtune forget` asks first; if told no, it deletes nothing and exits with code 1."""
    config = await asyncio.to_thread(known, tmp_path)
    for typed, code in ((b"n\n", 1), (b"y\n", 0)):
        terminal, end = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bot.cli.main", "forget", "7", "--config", str(config)),
            cwd=ROOT,
            stdin=end,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(end)
        os.write(terminal, typed)
        out, err = await process.communicate()
        os.close(terminal)
        assert process.returncode == code, (out, err)
        assert b"Permanently delete all of it" in err
        assert await asyncio.to_thread(is_known, tmp_path) is bool(code)


def test_the_version_is_told(thumbtune: Thumbtune) -> None:
    """`thumbtune --version` prints the package's version on one line."""
    ended = thumbtune("--version")
    assert (ended.code, ended.out.strip(), ended.err) == (0, f"thumbtune {version('thumbtune')}", "")


async def test_it_starts_without_the_libraries_of_the_chat() -> None:
    """`thumbtune status` imports neither aiogram, openai, pandas nor torch, because importing them takes seconds."""
    program = "import bot.cli.main, sys; print(sorted({'aiogram', 'openai', 'pandas', 'torch'} & set(sys.modules)))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert output == b"[]\n"
