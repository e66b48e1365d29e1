"""`thumbtune init`: ask for what the bot needs, check it, and write config.toml."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, get_args

import tomlkit
import typer
from aiogram.exceptions import AiogramError, TelegramAPIError
from aiogram.types import User
from aiogram.utils.token import TokenValidationError
from rich.markup import escape
from tomlkit.exceptions import TOMLKitError

from bot.cli.fetch import REPO
from bot.cli.fetch import fetch as fetch_checkpoint
from bot.cli.telegram_account import REFUSED, UNREACHABLE_CURE, open_bot, read_account
from bot.cli.terminal import notes, results
from bot.config import DEFAULT_PATH, ConfigError, load_settings
from bot.live_settings import json_value
from bot.telegram.client import GUEST_MODE
from inference.hub.listing import Hub, HubError
from inference.internvl2.checkpoint_check import problems
from inference.settings import TINY, InferenceSettings
from storage.atomic_files import PART
from storage.errors import StorageError

WAIT_SECONDS: Final = 120
"""How long to wait for a message that reveals the admin's user ID."""
_POLL_SECONDS: Final = 5
_FROM_ENVIRONMENT: Final = ("telegram.api_base", "storage.dir", "training.rater_age")
"""Settings that are written too if the environment sets them, so that the bot also starts without the environment."""
_ENGINES: Final = get_args(InferenceSettings.model_fields["engine"].annotation)


def initialize(config: Path | None) -> None:
    """Ask for the token, the admin, the model and the engine, and write them to the settings file `config`.

    An existing file keeps its other settings and its comments.

    Raises:
        ConfigError: The file cannot be read or written, or the answers do not make valid settings.
    """
    path = config or DEFAULT_PATH
    document = _read(path)
    telegram, inference = (document.setdefault(name, tomlkit.table()) for name in ("telegram", "inference"))
    environment = load_settings(Path(os.devnull))
    kept = [key for key in _FROM_ENVIRONMENT if key in environment.origins]
    for key in kept:
        section, _, name = key.partition(".")
        document.setdefault(section, tomlkit.table())[name] = json_value(environment, key)
    api_base = str(telegram.get("api_base", environment.telegram.api_base))
    token, account = _ask_for_token(api_base, str(telegram.get("token", "")))
    telegram["token"] = token
    telegram["admins"] = _ask_for_admins(api_base, token, account, list(telegram.get("admins", [])))
    inference["model"] = _ask_for_model(str(inference.get("model", TINY)))
    inference["engine"] = _ask(
        "Engine",
        str(inference.get("engine", _ENGINES[0])),
        type=StrEnum("Engine", zip(_ENGINES, _ENGINES, strict=True)),
    )
    _write(path, tomlkit.dumps(document))
    option = f" --config {shlex.quote(str(config))}" if config else ""
    doctor, run = (escape(f"`thumbtune {name}{option}`") for name in ("doctor", "run"))
    results.print(f"{escape(str(path))} was written; only you can read it.")
    if kept:
        results.print(f"It also has these settings from the environment: {', '.join(kept)}.")
    if account:
        results.print(_group_advice(account))
        results.print(_guest_advice(account), soft_wrap=True)
    else:
        results.print(f"The token has not been checked; {doctor} checks it once Telegram can be reached.")
    results.print(f"Next: {doctor} checks the installation, and {run} starts the bot.")


def _read(path: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return tomlkit.document()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _write(path: Path, text: str) -> None:
    """Write the settings file if its settings are valid; only the owner may read it, because it contains the token.

    Raises:
        ConfigError: The settings are invalid, or the file cannot be written.
    """
    written = path.with_name(path.name + PART)
    try:
        written.touch(mode=0o600)
        written.write_text(text, encoding="utf-8")
        load_settings(written)
        written.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): choose another file with --config") from error
    finally:
        written.unlink(missing_ok=True)


def _ask(question: str, default: str, **options: Any) -> str:
    return str(typer.prompt(question, default=default, err=True, **options)).strip()


def _ask_for_token(api_base: str, default: str) -> tuple[str, User | None]:
    """Ask until Telegram accepts the token, and return the token and the bot's account.

    If Telegram cannot be reached, the token may be kept unchecked; the account is then None.
    """
    while True:
        shown = "Token of the bot (@BotFather gives you one after /newbot)"
        token = str(typer.prompt(shown, default=default or None, show_default=False, err=True)).strip()
        try:
            account = asyncio.run(read_account(api_base, token))
        except TokenValidationError:
            notes.print("That is not a token: a token looks like 123456789:AAF….")
        except REFUSED as error:
            notes.print(f"{escape(api_base)} does not accept the token ({escape(error.message)}).")
            notes.print("Copy it again from @BotFather (/mybots, API Token).")
        except AiogramError as error:
            notes.print(f"{escape(api_base)} cannot be reached, so the token was not checked: {escape(str(error))}")
            notes.print(f"What to do: {UNREACHABLE_CURE}.")
            if typer.confirm("Keep the unchecked token and continue?", default=True, err=True):
                return token, None
        else:
            notes.print(f"The bot is @{account.username} ({escape(account.full_name)}).")
            return token, account


def _ask_for_admins(api_base: str, token: str, account: User | None, default: list[int]) -> list[int]:
    """Ask for the admins' user IDs, and read one from a message to the bot if none is given.

    Without an `account`, no message can be read.
    """
    zero = f"read yours from a message that you send to @{account.username} now" if account else "add them later"
    shown = f"User IDs of the admins (0: {zero})"
    while True:
        given = _ask(shown, ", ".join(map(str, default)) or "0")
        try:
            admins = [int(each) for each in given.replace(",", " ").split() if int(each) > 0]
        except ValueError:
            notes.print("User IDs are numbers, such as 123456789.")
            continue
        if admins:
            return admins
        if account is None:
            notes.print("Once the bot runs, /start shows each user their ID. Add yours to telegram.admins.")
            return default
        try:
            writer = asyncio.run(_writer(api_base, token))
        except TelegramAPIError as error:
            notes.print(f"Messages cannot be read: {escape(str(error))}. Stop the bot if it is running.")
            return default
        if writer is None:
            notes.print("No message arrived; /start shows each user their ID. Add it to telegram.admins.")
            return default
        if typer.confirm(f"{writer.full_name} ({writer.id}) wrote to the bot. Is this you?", default=True, err=True):
            return [writer.id]


def _ask_for_model(default: str) -> str:
    """Ask for a model until a complete one is given, and offer to download one into a folder that does not exist."""
    while True:
        model = _ask(
            f"Folder of the model, or {TINY} for the stand-in that ships with thumbtune and only knows coloured shapes",
            default,
        )
        directory = Path(model).expanduser()
        if model == TINY:
            return model
        if not directory.exists() and typer.confirm(f"Download {REPO} into {directory}?", default=True, err=True):
            try:
                asyncio.run(fetch_checkpoint(directory, Hub.HUGGING_FACE, REPO, ""))
            except (HubError, StorageError) as error:
                notes.print(escape(str(error)), soft_wrap=True)
                notes.print(f"To continue without {REPO}, answer {TINY}; you can run `thumbtune init` again later.")
                continue
        if not (wrong := problems(directory)):
            return model
        notes.print(f"{escape(str(directory))} is not a complete checkpoint: {escape('; '.join(wrong))}.")


async def _writer(api_base: str, token: str) -> User | None:
    """Return the sender of the newest private message to the bot, waiting for one if there is none.

    The updates stay in Telegram's queue, so the bot still answers them.
    """
    notes.print(f"Waiting {WAIT_SECONDS} s for a message to the bot …")
    until = time.monotonic() + WAIT_SECONDS
    async with open_bot(api_base, token) as bot:
        while time.monotonic() < until:
            updates = await bot.get_updates(timeout=_POLL_SECONDS, allowed_updates=["message"])
            for update in reversed(updates):
                if update.message and update.message.chat.type == "private":
                    return update.message.from_user
            if updates:  # they would be returned again at once
                await asyncio.sleep(1)
    return None


def _group_advice(account: User) -> str:
    """Describe what the bot needs in groups."""
    privacy = (
        "Telegram sends the bot all messages, and it answers those that mention it or reply to it."
        if account.can_read_all_group_messages
        else "Telegram sends the bot only the messages meant for it, which is enough (BotFather: /setprivacy)."
    )
    join = "" if account.can_join_groups else " It cannot join groups yet: allow it with /setjoingroups in @BotFather."
    return f"In groups: {privacy}{join} To count reactions as votes, make it an administrator of the group."


def _guest_advice(account: User) -> str:
    """Describe what the bot requires in order to answer in chats where it is not a member."""
    mode = "Guest mode is on in @BotFather." if account.supports_guest_queries else f"Guest mode: {GUEST_MODE}."
    return f"To answer in chats where it is not a member, the bot needs guest mode and chat.guests = true. {mode}"
