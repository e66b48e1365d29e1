"""The menu of commands that Telegram shows, in every language we speak; admins see theirs as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError
from aiogram.types import BotCommand, BotCommandScopeChat, BotCommandScopeDefault

from bot.settings import TelegramSettings
from bot.telegram import DeliveryError
from bot.translation import SOURCE_LANGUAGE, Say, Translator, later

EVERYBODY: Final = {
    "new": later("Begin a new conversation"),
    "retry": later("Another answer to your last question"),
    "stop": later("No more of this answer"),
    "model": later("Who answers, and what taught it"),
    "language": later("Choose my language"),
    "privacy": later("What I keep of you, and why"),
    "delete_my_data": later("Delete what I keep of you"),
    "help": later("What I can do"),
    "start": later("Show your user id"),
}
ADMINS: Final = {
    "retrain": later("Learn from what was liked; dry: only say how much that is"),
    "cancel": later("Stop learning"),
    "status": later("How I am"),
    "schedule": later("When I learn by myself"),
    "stats": later("Answers and votes over time, as a picture"),
    "models": later("Every model I have kept"),
    "promote": later("Answer with a certain model: /promote ID"),
    "rollback": later("Answer with the model before this one"),
    "broadcast": later("Write to everybody: /broadcast TEXT"),
}

log = structlog.get_logger()


def command_list(commands: Mapping[str, str], say: Say) -> str:
    """Every command with what it does, one a line."""
    return "\n".join(f"/{name} – {say(text)}" for name, text in commands.items())


async def announce_commands(bot: Bot, settings: TelegramSettings, translator: Translator) -> None:
    """Tell Telegram the menu. It is a courtesy: what cannot be told is logged."""
    for language in translator.languages:
        say = translator.to(language)
        code = None if language == SOURCE_LANGUAGE else language
        await _announce(bot, _menu(EVERYBODY, say), BotCommandScopeDefault(), code)
        for admin in settings.admins:
            await _announce(bot, _menu(EVERYBODY | ADMINS, say), BotCommandScopeChat(chat_id=admin), code)


async def _announce(
    bot: Bot, menu: list[BotCommand], scope: BotCommandScopeDefault | BotCommandScopeChat, code: str | None
) -> None:
    try:
        await bot.set_my_commands(menu, scope=scope, language_code=code)
    except (DeliveryError, TelegramAPIError) as error:  # an admin who never started the bot, say
        log.info("menu of commands not announced", scope=scope.type, language=code, error=str(error))


def _menu(commands: Mapping[str, str], say: Say) -> list[BotCommand]:
    return [BotCommand(command=name, description=say(text)) for name, text in commands.items()]
