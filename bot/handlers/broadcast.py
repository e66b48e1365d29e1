"""/broadcast: one text from an admin to everybody with a private chat.

One after the other, at the pace of the gate (`bot.telegram.client`), which also waits where Telegram asks for it.
Answers to questions go out in between. Whom it concerns and who was told is in the ledger, so after a crash the rest
are told, and nobody twice: where it is unknown whether somebody was told, they are left out and named. To be asked
behind `admin`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

import structlog
from aiogram import Bot, Router
from aiogram.exceptions import TelegramAPIError, TelegramRetryAfter
from aiogram.filters import CommandObject
from aiogram.types import CallbackQuery, Message, User

from bot.handlers.callbacks import acknowledge
from bot.handlers.commands import Command
from bot.i18n import Say
from bot.settings import BotSettings
from bot.telegram.client import DeliveryError, Doubtful, Undelivered, Unreachable
from bot.telegram.formatting import Page
from bot.telegram.keyboards import CancelBroadcast, cancelling
from bot.telegram.outbox import Reply
from bot.updates.inbox import Delivery
from storage.errors import NotSaved
from storage.ledger import Ledger
from storage.states import ReceiverState

PROGRESS_SECONDS: Final = 3.0
STOPPING_SECONDS: Final = 1.0
"""How long a message that is under way when the bot stops has to arrive and be noted."""

DISK_SECONDS: Final = 1.0
"""Between two looks whether the disk takes notes again."""

NAMED: Final = 20
"""So many of those who are in doubt are named."""

Result = TypeVar("Result")

log = structlog.get_logger()


def router() -> Router:
    """The handlers of this module."""
    broadcast = Router(name="broadcast")
    broadcast.message.register(send, Command("broadcast"))
    broadcast.callback_query.register(cancel, CancelBroadcast.filter())
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
        for chat in await ledger.people.private_chats()
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
    update = delivery.update
    await _noted(lambda: ledger.broadcasts.begin(update, chats))
    button = cancelling(CancelBroadcast(update=update), say)
    await reply.begin(_progress(await ledger.broadcasts.receivers(update), say), button)
    shown = time.monotonic()
    while (chat := await _noted(lambda: ledger.broadcasts.next_receiver(update))) is not None:
        await _tell(bot, ledger, update, chat, text)
        if time.monotonic() - shown >= PROGRESS_SECONDS:
            shown = time.monotonic()
            await reply.glimpse([Page(_progress(await ledger.broadcasts.receivers(update), say))], button)
    await reply.finish(await _report(ledger, update, say))


async def cancel(query: CallbackQuery, callback_data: CancelBroadcast, say: Say, ledger: Ledger) -> None:
    """Tell nobody any more."""
    spared = await ledger.broadcasts.cancel(callback_data.update)
    if spared:
        await acknowledge(query, say("I stop here. {people} people do not get it.", people=spared))
    else:
        await acknowledge(query, say("There is nobody left to be told."))


async def _tell(bot: Bot, ledger: Ledger, update: int, chat: int, text: str) -> None:
    """Send it to one chat and note what became of it. Raises `Undelivered` where Telegram is away: not their turn yet.

    A bot that is stopped meanwhile waits for the note for a moment, so that there is no doubt.
    """
    telling = asyncio.ensure_future(_told(bot, ledger, update, chat, text))
    try:
        await asyncio.shield(telling)
    except asyncio.CancelledError:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOPPING_SECONDS):
                await asyncio.gather(telling, return_exceptions=True)
        raise


async def _told(bot: Bot, ledger: Ledger, update: int, chat: int, text: str) -> None:
    try:
        await bot.send_message(chat, text)
        state = ReceiverState.TOLD
    except Unreachable:
        state = ReceiverState.UNREACHABLE
    except Doubtful:
        state = ReceiverState.DOUBTFUL
    except (DeliveryError, TelegramAPIError) as error:
        if isinstance(error, Undelivered) and not isinstance(error.__cause__, TelegramRetryAfter):
            await _noted(lambda: ledger.broadcasts.set_receiver(update, chat, ReceiverState.DUE))
            raise
        log.warning("broadcast not delivered", chat=chat, error=str(error))
        state = ReceiverState.FAILED
    await _noted(lambda: ledger.broadcasts.set_receiver(update, chat, state))


async def _noted(note: Callable[[], Awaitable[Result]]) -> Result:
    """Wait until the disk takes a note: without it nobody would know who was told."""
    while True:
        try:
            return await note()
        except NotSaved as error:
            log.warning("broadcast waits", error=str(error))
            await asyncio.sleep(DISK_SECONDS)


def _progress(receivers: Mapping[int, ReceiverState], say: Say) -> str:
    sent = Counter(receivers.values())[ReceiverState.TOLD]
    return say("Sending… {sent} of {people}", sent=sent, people=len(receivers))


async def _report(ledger: Ledger, update: int, say: Say) -> str:
    """What became of a broadcast."""
    receivers = await ledger.broadcasts.receivers(update)
    numbers = Counter(receivers.values())
    lines = [
        say(
            "Sent to {sent} of {people} people. {gone} cannot be reached any more; with {failed} it failed.",
            sent=numbers[ReceiverState.TOLD],
            people=len(receivers),
            gone=numbers[ReceiverState.UNREACHABLE],
            failed=numbers[ReceiverState.FAILED],
        )
    ]
    if numbers[ReceiverState.SPARED]:
        lines.append(say("It was cancelled before {spared} got it.", spared=numbers[ReceiverState.SPARED]))
    doubtful = [chat for chat, state in receivers.items() if state is ReceiverState.DOUBTFUL]
    if doubtful:
        names = [await _name(ledger, chat) for chat in doubtful[:NAMED]]
        lines.append(
            say(
                "With {doubtful} I was interrupted in the middle. They may have it or not, and nobody shall get it "
                "twice, so I left it at that: {names}.",
                doubtful=len(doubtful),
                names=", ".join(names + ["…"] * (len(doubtful) > NAMED)),
            )
        )
    return "\n".join(lines)


async def _name(ledger: Ledger, chat: int) -> str:
    person = await ledger.people.get(chat)
    return f"{person.name} ({chat})" if person and person.name else str(chat)
