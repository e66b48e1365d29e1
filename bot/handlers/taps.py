"""What the handlers of taps on buttons share."""

from __future__ import annotations

from aiogram import Bot
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import CallbackQuery, Message

from bot.inbox import Delivery
from bot.replies import Place, Reply
from storage.errors import UnknownRecord
from storage.ledger import Ledger
from storage.records import Exchange


async def acknowledge(query: CallbackQuery, text: str) -> None:
    """Answer a tap with a line that fades away. A tap that is too old cannot be answered; nobody waits for it."""
    try:
        await query.answer(text)
    except TelegramBadRequest as error:
        if "query" not in error.message.lower():
            raise


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
        exchange = await ledger.exchange(number)
    except UnknownRecord:
        return None
    message = query.message
    return (exchange, message) if isinstance(message, Message) and exchange.chat == message.chat.id else None
