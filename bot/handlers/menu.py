"""The command menus that Telegram shows, in every language of the bot and with more commands for admins.

Telegram keeps a menu until it is deleted. The ledger therefore lists the users who were given the admin
menu. The next time the bot starts, it removes the menu for those who are no longer admins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from aiogram import Bot
from aiogram.types import BotCommand, BotCommandScopeChat, BotCommandScopeDefault

from bot.i18n import SOURCE_LANGUAGE, Say, Translator, later
from bot.settings import TelegramSettings
from bot.telegram.errors import CALL_ERRORS, Unreachable
from storage.errors import StorageError
from storage.ledger import Ledger

EVERYBODY: Final = {
    "new": later("Start a new conversation"),
    "retry": later("Get another answer to your last question"),
    "stop": later("Stop this answer"),
    "model": later("Show the current model and what it learned from"),
    "language": later("Choose a language"),
    "privacy": later("What I store about you and why"),
    "delete_my_data": later("Delete everything I store about you"),
    "help": later("What I can do"),
    "start": later("Show your user ID"),
}
"""The commands that everybody may use."""

ADMINS: Final = {
    "retrain": later("Learn from liked answers (dry: only show how many)"),
    "cancel": later("Cancel the run in progress"),
    "status": later("Show my status"),
    "schedule": later("Show when I retrain automatically"),
    "stats": later("Chart of answers and votes"),
    "review": later("Keep, drop or edit rated answers"),
    "models": later("List all models"),
    "promote": later("Switch to a model: /promote ID"),
    "rollback": later("Go back to the previous model"),
    "broadcast": later("Message everyone: /broadcast TEXT"),
}
"""The commands that only admins may use."""

log = structlog.get_logger()


def command_list(commands: Mapping[str, str], say: Say) -> str:
    """Return a list of the commands with their translated descriptions, one per line."""
    return "\n".join(f"/{name} – {say(text)}" for name, text in commands.items())


async def announce_commands(bot: Bot, settings: TelegramSettings, translator: Translator, ledger: Ledger) -> None:
    """Send the command menus to Telegram, and remove the admin menu of former admins.

    Failures are logged, not raised.
    """
    codes = ["" if language == SOURCE_LANGUAGE else language for language in translator.languages]
    given = {(admin, code) for admin in settings.admins for code in codes}
    try:
        for chat, language in sorted(await ledger.menus.all() - given):
            await _remove_admin_menu(bot, ledger, chat, language)
        await ledger.menus.add(given)
    except StorageError as error:
        log.warning("users with the admin menu not recorded", error=str(error))
    for language in translator.languages:
        say = translator.to(language)
        code = None if language == SOURCE_LANGUAGE else language
        await _announce(bot, _menu(EVERYBODY, say), BotCommandScopeDefault(), code)
        theirs = _menu(EVERYBODY | ADMINS, say)
        for admin in settings.admins:
            await _announce(bot, theirs, BotCommandScopeChat(chat_id=admin), code)


async def _announce(
    bot: Bot, menu: list[BotCommand], scope: BotCommandScopeDefault | BotCommandScopeChat, code: str | None
) -> None:
    try:
        await bot.set_my_commands(menu, scope=scope, language_code=code)
    except CALL_ERRORS as error:  # such as for an admin who never started the bot
        log.info("command menu not sent", scope=scope.type, language=code, error=str(error))


async def _remove_admin_menu(bot: Bot, ledger: Ledger, chat: int, language: str) -> None:
    """Delete the admin menu of a former admin, so that Telegram shows the default menu.

    If the deletion fails, the bot tries again the next time it starts.
    """
    try:
        await bot.delete_my_commands(scope=BotCommandScopeChat(chat_id=chat), language_code=language or None)
    except Unreachable as error:  # the chat is gone, and the menu with it
        log.info("former admin's chat is gone", chat=chat, error=str(error))
    except CALL_ERRORS as error:
        log.warning("admin menu not removed", chat=chat, language=language, error=str(error))
        return
    await ledger.menus.remove(chat, language)


def _menu(commands: Mapping[str, str], say: Say) -> list[BotCommand]:
    return [BotCommand(command=name, description=say(text)) for name, text in commands.items()]
