"""Helpers for the commands: common options, and access to the ledger and to a running bot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from bot.config import ConfigError, Settings, load_settings
from bot.instance_lock import bot_is_running
from bot.live_settings import LiveSettings
from storage.ledger import FILE_NAME, Ledger
from storage.setting_changes import recorded_changes

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="PATH", help="The settings file; default: config.toml here.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


def load_in_force(config: Path | None) -> Settings:
    """Return the settings that a running bot uses, including the changes made on the operator's page."""
    settings = load_settings(config)
    return LiveSettings(settings, recorded_changes(settings.storage.dir / FILE_NAME)).now


def with_ledger(config: Path | None, work: Callable[[Ledger, Settings], Awaitable[None]]) -> None:
    """Run `work` with the existing ledger.

    Raises:
        ConfigError: There is no database. This function never creates one.
    """
    settings = load_in_force(config)
    require_data(settings, FILE_NAME)

    async def session() -> None:
        async with Ledger.open(settings.storage.dir) as ledger:
            await work(ledger, settings)

    asyncio.run(session())


def with_bot(config: Path | None, work: Callable[[Ledger, Settings, Callable[[], bool]], Awaitable[None]]) -> None:
    """Run `work` with the ledger and a function that returns whether a bot is using the data folder."""
    with_ledger(config, lambda ledger, settings: work(ledger, settings, lambda: bot_is_running(settings.storage.dir)))


def require_data(settings: Settings, file: str = "") -> None:
    """Raise ConfigError if the data folder, or `file` in the data folder, does not exist."""
    folder = settings.storage.dir.absolute()
    if not (folder / file).exists():
        raise ConfigError(
            f"There is no {'database in' if file else 'data folder'} {folder}: pass the bot's settings with --config,"
            " or change to its folder. `thumbtune run` creates one. For a demo, start it with --keep DIR and set"
            " THUMBTUNE_STORAGE__DIR=DIR."
        )
