"""Handlers for /broadcast, with which an admin sends one text to every private chat.

Messages are sent one after another, as fast as the rate limit allows; answers to questions are sent in
between. The ledger holds each recipient's state. After a crash, the remaining recipients get the text,
and nobody gets it twice: a recipient is skipped and named in the report if it is unknown whether the
message arrived.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

import structlog
from aiogram import Router
from aiogram.exceptions import TelegramRetryAfter
from aiogram.filters import CommandObject
from aiogram.types import CallbackQuery, Message

from bot.handlers.button_taps import acknowledge
from bot.handlers.commands import Command
from bot.handlers.request import Request
from bot.i18n import Say
from bot.telegram.callback_data import CancelBroadcast
from bot.telegram.errors import CALL_ERRORS, Doubtful, Undelivered, Unreachable
from bot.telegram.keyboards import one_button
from storage.errors import NotSaved
from storage.ledger import Ledger
from storage.state_machines import RecipientState

PROGRESS_SECONDS: Final = 3.0
STOPPING_SECONDS: Final = 1.0
"""How long a stopping bot waits for the message in flight to arrive and be recorded."""

DISK_SECONDS: Final = 1.0
"""The pause between two attempts to write to a full disk."""

NAMED: Final = 20
"""The maximum number of recipients with an unknown outcome that the report names."""

Result = TypeVar("Result")

log = structlog.get_logger()


def register(router: Router) -> None:
    """Register the handlers of this module.

    Call after `access.register`, whose handlers refuse users who are not admins.
    """
    router.message.register(send, Command("broadcast"))
    router.callback_query.register(cancel, CancelBroadcast.filter())


async def send(message: Message, command: CommandObject, request: Request) -> None:
    """Send a text to every user who may use the bot, except the sending admin, and show the progress."""
    services, reply, say, update = request.services, request.reply, request.say, request.delivery.update
    limits, ledger = services.settings.limits, services.ledger
    chats = [
        chat for chat in await ledger.people.private_chats() if chat != request.user.id and limits.allows(chat, chat)
    ]
    text = (command.args or "").strip()
    if not text:
        await reply.finish(say("Usage: /broadcast TEXT. Recipients: {people}.", people=len(chats)))
        return
    await _written(lambda: ledger.broadcasts.begin(update, chats))
    button = one_button(say("✖ Cancel"), CancelBroadcast(update=update))
    await reply.show_partial(_progress(await ledger.broadcasts.recipients(update), say), button)
    shown = time.monotonic()
    while (chat := await _written(lambda: ledger.broadcasts.next_recipient(update))) is not None:
        await _send_to(chat, text, request)
        if time.monotonic() - shown >= PROGRESS_SECONDS:
            shown = time.monotonic()
            await reply.show_partial(_progress(await ledger.broadcasts.recipients(update), say), button)
    await reply.finish(await _report(request))


async def cancel(query: CallbackQuery, callback_data: CancelBroadcast, request: Request) -> None:
    """Cancel a broadcast, so that it is not sent to the remaining recipients."""
    say = request.say
    spared = await request.services.ledger.broadcasts.cancel(callback_data.update)
    if spared:
        await acknowledge(query, say("Stopped. Recipients who won't get it: {people}.", people=spared))
    else:
        await acknowledge(query, say("It has already been sent to everyone."))


async def _send_to(chat: int, text: str, request: Request) -> None:
    """Send `text` to one chat and record the outcome.

    If the bot is stopped in the meantime, wait briefly for the outcome to be recorded.

    Raises:
        Undelivered: Telegram cannot be reached; the chat remains due for a later attempt.
    """
    sending = asyncio.ensure_future(_send_and_record(chat, text, request))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOPPING_SECONDS):
                await asyncio.gather(sending, return_exceptions=True)
        raise


async def _send_and_record(chat: int, text: str, request: Request) -> None:
    ledger, update = request.services.ledger, request.delivery.update
    try:
        await request.bot.send_message(chat, text)
        state = RecipientState.DELIVERED
    except Unreachable:
        state = RecipientState.UNREACHABLE
    except Doubtful:
        state = RecipientState.DOUBTFUL
    except CALL_ERRORS as error:
        if isinstance(error, Undelivered) and not isinstance(error.__cause__, TelegramRetryAfter):
            await _written(lambda: ledger.broadcasts.set_recipient(update, chat, RecipientState.DUE))
            raise
        log.warning("broadcast not delivered", chat=chat, error=str(error))
        state = RecipientState.FAILED
    await _written(lambda: ledger.broadcasts.set_recipient(update, chat, state))


async def _written(write: Callable[[], Awaitable[Result]]) -> Result:
    """Return the result of `write`, retrying while the disk is too full to write to the ledger.

    Without the retries, it would be unknown who received the message.
    """
    while True:
        try:
            return await write()
        except NotSaved as error:
            log.warning("broadcast is waiting for disk space", error=str(error))
            await asyncio.sleep(DISK_SECONDS)


def _progress(receivers: Mapping[int, RecipientState], say: Say) -> str:
    sent = Counter(receivers.values())[RecipientState.DELIVERED]
    return say("Sending… {sent} of {people}", sent=sent, people=len(receivers))


async def _report(request: Request) -> str:
    """Return a report on the broadcast that the request started.

    The report gives the number of recipients for each outcome, and names those who may or may not have
    received the text.
    """
    ledger, say = request.services.ledger, request.say
    receivers = await ledger.broadcasts.recipients(request.delivery.update)
    numbers = Counter(receivers.values())
    lines = [say("Sent to {sent} of {people}.", sent=numbers[RecipientState.DELIVERED], people=len(receivers))]
    if gone := numbers[RecipientState.UNREACHABLE]:
        lines.append(say("No longer reachable: {gone}.", gone=gone))
    if failed := numbers[RecipientState.FAILED]:
        lines.append(say("Failed: {failed}.", failed=failed))
    if numbers[RecipientState.SKIPPED]:
        lines.append(say("Cancelled before sending: {spared}.", spared=numbers[RecipientState.SKIPPED]))
    doubtful = [chat for chat, state in receivers.items() if state is RecipientState.DOUBTFUL]
    if doubtful:
        names = [await _name(chat, ledger) for chat in doubtful[:NAMED]]
        lines.append(
            say(
                "Interrupted while sending: {doubtful} ({names}). The message may or may not have reached them; I "
                "didn't resend it, so that nobody gets it twice.",
                doubtful=len(doubtful),
                names=", ".join(names + ["…"] * (len(doubtful) > NAMED)),
            )
        )
    return "\n".join(lines)


async def _name(chat: int, ledger: Ledger) -> str:
    person = await ledger.people.get(chat)
    return f"{person.name} ({chat})" if person and person.name else str(chat)
