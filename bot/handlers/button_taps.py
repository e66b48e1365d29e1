"""Helpers for handlers of button taps."""

from __future__ import annotations

from typing import Any

import structlog
from aiogram.exceptions import TelegramBadRequest
from aiogram.filters.callback_data import CallbackData
from aiogram.types import CallbackQuery, InlineKeyboardMarkup, Message, TelegramObject

from bot.handlers.request import Handler, Request
from storage.chat_records import Exchange
from storage.errors import UnknownRecord

log = structlog.get_logger()


class TapRefused(Exception):
    """A tap that is refused. The exception's message gives the reason in the user's language."""


async def answer_refused(handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
    """Handle a tap, answering the user if the tap is refused or concerns a deleted answer.

    This function is a middleware.
    """
    assert isinstance(event, CallbackQuery)
    try:
        return await handler(event, data)
    except TapRefused as refusal:
        await acknowledge(event, str(refusal))
    except UnknownRecord:
        await acknowledge(event, data["request"].say("I can't find that answer any more."))


async def acknowledge(query: CallbackQuery, text: str = "") -> None:
    """Answer a tap on a button; Telegram shows `text`, if any, as a brief notice.

    A tap that is too old to be answered is ignored.
    """
    try:
        await query.answer(text)
    except TelegramBadRequest as error:
        if "query" not in error.message.lower():
            raise


async def redraw(query: CallbackQuery, request: Request, text: str, markup: InlineKeyboardMarkup | None) -> None:
    """Show the outcome of a tap by replacing the text and the buttons of the tapped message.

    Nothing happens if the message was deleted in the meantime.
    """
    if query.message is None:
        return
    chat, message = query.message.chat.id, query.message.message_id
    try:
        await request.bot.edit_message_text(text, chat_id=chat, message_id=message, reply_markup=markup)
    except TelegramBadRequest as error:
        log.info("tapped message not updated", chat=chat, message=message, error=error.message)


async def edit_buttons(request: Request, chat: int, message: int, markup: InlineKeyboardMarkup) -> None:
    """Replace the buttons of a message, unless the message was deleted in the meantime."""
    try:
        await request.bot.edit_message_reply_markup(chat_id=chat, message_id=message, reply_markup=markup)
    except TelegramBadRequest as error:
        log.info("buttons not replaced", chat=chat, message=message, error=error.message)


async def remove_buttons(query: CallbackQuery, request: Request, *data: CallbackData) -> None:
    """Remove the buttons with the given callback data from the tapped message, and keep its other buttons."""
    message = query.message
    if not isinstance(message, Message) or message.reply_markup is None:
        return
    outdated = {each.pack() for each in data}
    rows = [
        [each for each in row if each.callback_data not in outdated] for row in message.reply_markup.inline_keyboard
    ]
    markup = InlineKeyboardMarkup(inline_keyboard=[row for row in rows if row])
    await edit_buttons(request, message.chat.id, message.message_id, markup)


async def tapped_exchange(query: CallbackQuery, number: int, request: Request) -> tuple[Exchange, Message]:
    """Return the exchange with the ID `number` and the message with the tapped button.

    Raises UnknownRecord if the chat has no such exchange.
    """
    message = query.message
    exchange = await request.services.ledger.exchanges.get(number)
    if isinstance(message, Message) and exchange.chat == message.chat.id:
        return exchange, message
    raise UnknownRecord(f"The chat has no exchange {number}.")


async def guest_exchange(inline: str, number: int, request: Request) -> Exchange:
    """Return the exchange with the ID `number`, which the tapped guest-mode message shows.

    Raises:
        UnknownRecord: The message `inline` does not show this exchange.
        TapRefused: The user who asked no longer allows the bot to learn from it.
    """
    ledger = request.services.ledger
    exchange = await ledger.exchanges.get(number)
    if all(each.inline != inline for each in await ledger.replies.for_update(exchange.update)):
        raise UnknownRecord(f"The message does not show exchange {number}.")
    if not await request.services.conversation.may_be_rated(exchange):
        raise TapRefused(request.say("This button no longer works."))
    return exchange
