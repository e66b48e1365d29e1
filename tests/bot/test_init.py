"""`thumbtune init`, run as a program against the Telegram emulator."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from bot.config import load_settings
from inference.serving.engine_launch import free_port
from telegram_emulator import Emulator
from tests.support.bot_process import ROOT, Ended
from tests.support.chatting import until


async def answered(
    folder: Path,
    api_base: str,
    *lines: str,
    emulator: Emulator | None = None,
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Ended:
    """Run `thumbtune init` in `folder` with `lines` as input; if given, user 7 writes to the emulator's bot meanwhile.

    The user writes once the bot's updates have been asked for. `environment` is added to the environment.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bot.cli.main", "init", *options),
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "THUMBTUNE_TELEGRAM__API_BASE": api_base,
            "COLUMNS": "500",
            **environment,
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    ending = asyncio.create_task(process.communicate("".join(f"{line}\n" for line in lines).encode()))
    if emulator is not None:
        await until(lambda: "getupdates" in emulator.calls or ending.done(), 60)
        emulator.people.writes(7, "Hello!")
    out, err = await ending
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def test_a_file_is_written_from_checked_answers(tmp_path: Path) -> None:
    """A wrong token is asked for again, the admin's ID is read from a message, and only the owner can read the file."""
    emulator = Emulator()
    url = await emulator.start()
    emulator.add_person(7, "Ada")
    try:
        wrong = ("nonsense", "4243:another")
        ended = await answered(
            tmp_path, url, *wrong, emulator.token, "0", "y", "nowhere", "n", "tiny", "cpu", emulator=emulator
        )
    finally:
        await emulator.stop()
    assert ended.code == 0, ended.err
    assert "That is not a token" in ended.err and "does not accept the token" in ended.err
    assert "Ada (7) wrote to the bot" in ended.err
    assert "nowhere is not a complete checkpoint: there is no such directory" in ended.err
    assert "Guest mode is on in @BotFather." in ended.out
    assert (
        "In groups:" in ended.out
        and "cannot join groups" not in ended.out
        and "Next: `thumbtune doctor` checks" in ended.out
    )
    assert ended.err.startswith("Starting …\n")
    file = tmp_path / "config.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert tomllib.loads(file.read_text(encoding="utf-8")) == {
        "telegram": {"token": emulator.token, "admins": [7], "api_base": url},
        "inference": {"model": "tiny", "engine": "cpu"},
    }


async def test_a_token_can_be_kept_unchecked(tmp_path: Path) -> None:
    """If Telegram cannot be reached, the token is not called wrong; it can be changed, or kept unchecked.

    The commands named at the end have the option --config if `init` had it.
    """
    url, token = f"http://127.0.0.1:{free_port()}", "4242:unchecked"
    options = ("--config", "my bot.toml")
    ended = await answered(tmp_path, url, "4243:other", "n", token, "y", "0", "tiny", "cpu", options=options)
    assert ended.code == 0, ended.err
    assert "does not accept" not in ended.err
    assert ended.err.count(f"{url} cannot be reached, so the token was not checked") == 2
    assert "connection and firewall" in ended.err and "telegram.api_base" in ended.err
    assert "The token has not been checked; `thumbtune doctor --config 'my bot.toml'`" in ended.out
    assert "`thumbtune run --config 'my bot.toml'` starts the bot" in ended.out
    telegram = tomllib.loads((tmp_path / "my bot.toml").read_text(encoding="utf-8"))["telegram"]
    assert telegram == {"token": token, "admins": [], "api_base": url}


async def test_other_settings_and_comments_are_kept(tmp_path: Path) -> None:
    """In an existing file only the answers and the environment's settings change, and Enter keeps what it says."""
    emulator = Emulator()
    url = await emulator.start()
    file = tmp_path / "config.toml"
    shipped = (ROOT / "config.toml").read_text(encoding="utf-8")
    file.write_text(shipped.replace('token = ""', f'token = "{emulator.token}"'), encoding="utf-8")
    before = file.read_text(encoding="utf-8")
    try:
        environment = {"THUMBTUNE_STORAGE__DIR": "elsewhere", "THUMBTUNE_TRAINING__RATER_AGE": "0"}
        ended = await answered(tmp_path, url, "", "12, 34", "", "lmdeploy", environment=environment)
    finally:
        await emulator.stop()
    assert ended.code == 0, ended.err
    assert "settings from the environment: telegram.api_base, storage.dir, training.rater_age." in ended.out
    expected = before.replace("admins = []", "admins = [12, 34]").replace('engine = "auto"', 'engine = "lmdeploy"', 1)
    expected = expected.replace("https://api.telegram.org", url, 1).replace('dir = "data"', 'dir = "elsewhere"', 1)
    expected = expected.replace("rater_age = 24.0", "rater_age = 0.0", 1)
    assert file.read_text(encoding="utf-8") == expected
    assert load_settings(file).telegram.admins == (12, 34)


async def test_a_hub_out_of_reach_costs_no_answers(tmp_path: Path) -> None:
    """If the model cannot be downloaded, a sentence names the command for the other hub, and `init` asks again.

    The question says what the stand-in knows.
    """
    url, hub = f"http://127.0.0.1:{free_port()}", {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    ended = await answered(
        tmp_path, url, "4242:unchecked", "y", "0", "InternVL2-2B", "y", "tiny", "cpu", environment=hub
    )
    assert ended.code == 0, ended.err
    assert "only knows coloured shapes" in ended.err
    (sentence,) = [line for line in ended.err.splitlines() if "hub cannot be reached" in line]
    assert sentence.endswith("or run `thumbtune fetch DIR --source modelscope`.")
    assert "refused" in sentence and "Error(" not in sentence
    assert "To continue without OpenGVLab/InternVL2-2B, answer tiny" in ended.err
    assert load_settings(tmp_path / "config.toml").inference.model == "tiny"


async def test_a_broken_file_is_left_alone(tmp_path: Path) -> None:
    """A file that is not valid TOML is named, and nothing is asked or written."""
    file = tmp_path / "config.toml"
    file.write_text("[telegram\n", encoding="utf-8")
    ended = await answered(tmp_path, "http://127.0.0.1:9", "")
    assert ended.code == 1
    assert "config.toml cannot be read" in ended.err
    assert file.read_text(encoding="utf-8") == "[telegram\n"
