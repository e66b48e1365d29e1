"""Commands as people write them: at the beginning of a text, or of a picture's caption.

One in a caption is no command but /new, which begins anew with that picture; who expected another one hears why it was
not carried out. Knows which commands there are, and nothing of what they do.
"""

from __future__ import annotations

from typing import Any

from aiogram import Bot, Router, filters
from aiogram.types import Message

from bot.chat.images import picture_of
from bot.handlers.menu import ADMINS, EVERYBODY, NODES
from bot.i18n import Say
from bot.telegram.outbox import Reply
from bot.updates.inbox import Delivery
from bot.updates.ordering import command_of


class Command(filters.Command):
    """A filter for texts that begin with one of the commands, or with `captions` for captions that do.

    In any spelling: keyboards of phones write the first letter large.
    """

    def __init__(self, *names: str, captions: bool = False) -> None:
        super().__init__(*names, ignore_case=True)
        self._captions = captions

    async def __call__(self, message: Message, bot: Bot) -> bool | dict[str, Any]:
        written = message.caption if self._captions else message.text
        return bool(written) and await super().__call__(message, bot)


ANEW = Command("new", captions=True)
"""What the caption of a picture begins with that begins another conversation."""


def captioned() -> Router:
    """To be asked before questions: a picture is looked at unless its caption is a command."""
    captions = Router(name="captions")
    captions.message.register(
        not_looked_at, Command(*{**EVERYBODY, **ADMINS, **NODES}.keys() - {"new"}, captions=True), _pictured
    )
    return captions


async def _pictured(message: Message, delivery: Delivery) -> bool:
    return any(picture_of(each) for each in delivery.album or (message,))


async def not_looked_at(message: Message, reply: Reply, say: Say) -> None:
    """Do neither by halves: what was meant, the sender knows."""
    await reply.finish(
        say(
            "A picture and a command do not go together, so I have done nothing about either. Send me {command} alone, "
            "or the picture with a question. /new may stand with a picture: it begins anew with it.",
            command=f"/{command_of(message.caption)}",
        )
    )
