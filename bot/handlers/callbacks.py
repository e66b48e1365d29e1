"""What the handlers of taps on buttons share."""

from __future__ import annotations

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import CallbackQuery, InlineKeyboardMarkup, Message

from bot.telegram.outbox import Place, Reply
from bot.updates.inbox import Delivery
from storage.errors import UnknownRecord
from storage.ledger import Ledger
from storage.records import Exchange

log = structlog.get_logger()


async def acknowledge(query: CallbackQuery, text: str) -> None:
    """Answer a tap with a line that fades away. A tap that is too old cannot be answered; nobody waits for it."""
    try:
        await query.answer(text)
    except TelegramBadRequest as error:
        if "query" not in error.message.lower():
            raise


async def redraw(query: CallbackQuery, bot: Bot, text: str, markup: InlineKeyboardMarkup | None) -> None:
    """Show what came of a tap on the message that was tapped; one that was deleted meanwhile stays away."""
    if query.message is None:
        return
    chat, message = query.message.chat.id, query.message.message_id
    try:
        await bot.edit_message_text(text, chat_id=chat, message_id=message, reply_markup=markup)
    except TelegramBadRequest as error:
        log.info("a message that was tapped is not redrawn", chat=chat, message=message, error=error.message)


async def reply_to(query: CallbackQuery, bot: Bot, delivery: Delivery, ledger: Ledger) -> Reply | None:
    """The message that tells what came of a tap; None where it has been told."""
    await acknowledge(query, "")
    if not isinstance(query.message, Message):
        return None
    reply = await Reply.open(bot, ledger, delivery.update, Place.of(query.message))
    return None if reply.finished else reply


async def exchange_here(ledger: Ledger, number: int, query: CallbackQuery) -> tuple[Exchange, Message] | None:
    """The exchange of that id with the message that was tapped on, if the exchange belongs to its chat."""
    try:
        exchange = await ledger.exchanges.get(number)
    except UnknownRecord:
        return None
    message = query.message
    return (exchange, message) if isinstance(message, Message) and exchange.chat == message.chat.id else None
