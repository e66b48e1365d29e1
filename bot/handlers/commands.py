"""Filters for commands at the beginning of a text message or of a picture's caption.

In a caption, only /new is accepted: it begins a new conversation about the picture. A picture with any
other command of the bot is refused.
"""

from __future__ import annotations

from typing import Any, Final

from aiogram import Bot, Router, filters
from aiogram.types import Message

from bot.chat.question import picture_in
from bot.handlers.menu import ADMINS, EVERYBODY
from bot.handlers.request import Request
from bot.updates.ordering import command_of

_ERASURE: Final = frozenset({"delete", "delete_me", "deletemydata", "erase", "forget", "forget_me", "forgetme", "gdpr"})
"""Commands that people may try in order to delete their data.

They do not exist; the reply names the one that does.
"""


class Command(filters.Command):
    """A filter for texts (or captions, if `captions` is set) that begin with one of the given commands.

    Case is ignored, because phone keyboards capitalize the first letter.
    """

    def __init__(self, *names: str, captions: bool = False) -> None:
        """Create the filter.

        Raises:
            ValueError: A command is not listed in `bot.handlers.menu`, which says who may use it.
        """
        if unlisted := sorted(set(names) - {**EVERYBODY, **ADMINS}.keys()):
            raise ValueError(f"list {', '.join(unlisted)} in bot/handlers/menu.py: it says who may use a command")
        super().__init__(*names, ignore_case=True)
        self._captions = captions

    async def __call__(self, message: Message, bot: Bot) -> bool | dict[str, Any]:
        """Return the parsed `command` for the handler if `message` matches, or False otherwise."""
        written = message.caption if self._captions else message.text
        return bool(written) and await super().__call__(message, bot)


def register(router: Router) -> None:
    """Register the handlers for commands that no other module handles.

    Call this before registering the handlers for questions.
    """
    router.message.register(unknown_command, _is_command)
    router.message.register(refuse_caption, Command(*({*EVERYBODY, *ADMINS} - {"new"}), captions=True), _pictured)


async def _is_command(message: Message) -> bool:
    return bool(command_of(message.text))


async def unknown_command(message: Message, request: Request) -> None:
    """Refuse an unknown command.

    In a group, ignore a command that does not name this bot, because it may be meant for another bot.
    """
    named = (message.text or "").split(maxsplit=1)[0].partition("@")[2].lower()
    if message.chat.type == "private" or named == str((await request.bot.me()).username).lower():
        if command_of(message.text) in _ERASURE:
            text = request.say("/delete_my_data deletes everything I store about you.")
        else:
            text = request.say("I don't know that command. /help shows what I can do.")
        await request.whisper(text)


async def _pictured(message: Message, request: Request) -> bool:
    return any(picture_in(each) for each in request.messages)


async def refuse_caption(message: Message, request: Request) -> None:
    """Refuse both a picture and the command in its caption, because it is unclear which of the two was meant."""
    await request.whisper(
        request.say(
            "A picture can't be sent with a command, so I ignored both. Send {command} on its own, or the picture "
            "with a question. Only /new can go with a picture: it starts a new conversation about it.",
            command=f"/{command_of(message.caption)}",
        )
    )
