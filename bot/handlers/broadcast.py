"""/broadcast: one text from an admin to everybody with a private chat.

One after the other, at the pace of the gate (`bot.telegram`), which also waits where Telegram asks for it. Answers to
questions go out in between. Not sent again after a crash, so that nobody gets it twice. To be asked behind `admin`.
"""

from __future__ import annotations

import time
from typing import Final

import structlog
from aiogram import Bot, Router
from aiogram.exceptions import TelegramAPIError
from aiogram.filters import Command, CommandObject
from aiogram.types import Message, User

from bot.handlers.admin import BROADCAST
from bot.inbox import Delivery
from bot.pages import Page
from bot.replies import Reply
from bot.settings import BotSettings
from bot.telegram import DeliveryError, Unreachable
from bot.translation import Say
from storage.ledger import Ledger

PROGRESS_SECONDS: Final = 3.0

log = structlog.get_logger()


def router() -> Router:
    """The handler of this module."""
    broadcast = Router(name="broadcast")
    broadcast.message.register(send, Command(BROADCAST))
    return broadcast


async def send(
    message: Message,
    command: CommandObject,
    event_from_user: User,
    bot: Bot,
    delivery: Delivery,
    reply: Reply,
    say: Say,
    settings: BotSettings,
    ledger: Ledger,
) -> None:
    """Write to everybody who may talk with the bot but the admin who sent it, showing how far it is."""
    chats = [
        chat
        for chat in await ledger.private_chats()
        if chat != event_from_user.id and settings.limits.welcome(chat, chat)
    ]
    text = (command.args or "").strip()
    if not text:
        await reply.finish(
            say(
                "What shall I write? Send /broadcast and the text; it goes to {people} people.",
                people=len(chats),
            )
        )
        return
    if delivery.attempt > 1:
        await reply.finish(
            say(
                "I was interrupted while I was sending this. Some have it already, so I do not begin again: nobody "
                "shall get it twice."
            )
        )
        return
    sent = gone = failed = 0
    await reply.begin(say("Sending… {sent} of {people}", sent=0, people=len(chats)))
    told = time.monotonic()
    for chat in chats:
        try:
            await bot.send_message(chat, text)
            sent += 1
        except Unreachable:
            gone += 1
        except (DeliveryError, TelegramAPIError) as error:
            log.warning("broadcast not delivered", chat=chat, error=str(error))
            failed += 1
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            await reply.glimpse([Page(say("Sending… {sent} of {people}", sent=sent, people=len(chats)))])
    await reply.finish(
        say(
            "Sent to {sent} of {people} people. {gone} cannot be reached any more; with {failed} it failed.",
            sent=sent,
            people=len(chats),
            gone=gone,
            failed=failed,
        )
    )
