"""Helpers for handlers of taps on buttons."""

from __future__ import annotations

import structlog
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import CallbackQuery, InlineKeyboardMarkup, Message

from bot.handlers.request import Request
from storage.chat_records import Exchange
from storage.errors import UnknownRecord

log = structlog.get_logger()


async def acknowledge(query: CallbackQuery, text: str = "") -> None:
    """Answer a tap. A `text` is shown as a line that fades away. A tap that is too old cannot be answered."""
    try:
        await query.answer(text)
    except TelegramBadRequest as error:
        if "query" not in error.message.lower():
            raise


async def redraw(query: CallbackQuery, request: Request, text: str, markup: InlineKeyboardMarkup | None) -> None:
    """Show the outcome of a tap on the message that was tapped, unless it was deleted meanwhile."""
    if query.message is None:
        return
    chat, message = query.message.chat.id, query.message.message_id
    try:
        await request.bot.edit_message_text(text, chat_id=chat, message_id=message, reply_markup=markup)
    except TelegramBadRequest as error:
        log.info("tapped message not redrawn", chat=chat, message=message, error=error.message)


async def tapped_exchange(query: CallbackQuery, number: int, request: Request) -> tuple[Exchange, Message] | None:
    """Return an exchange and the tapped message. If the chat has no such exchange, answer the tap and return None."""
    message = query.message
    try:
        exchange = await request.services.ledger.exchanges.get(number)
    except UnknownRecord:
        exchange = None
    if exchange and isinstance(message, Message) and exchange.chat == message.chat.id:
        return exchange, message
    await acknowledge(query, request.say("I can't find that answer any more."))
    return None
