"""Removal of stray placeholders: messages whose IDs the bot does not know although Telegram accepted them.

A placeholder becomes stray if the connection breaks while it is being sent; the bot then sends another
one, which becomes the answer. The stray placeholder is found when a user taps its ⏹ button or replies to
it.
"""

from __future__ import annotations

from typing import Any

import structlog
from aiogram.types import Message, TelegramObject, Update

from bot.handlers.request import Handler, Request
from bot.telegram.callback_data import Stop, parsed
from bot.telegram.errors import CALL_ERRORS
from bot.telegram.reply import PENDING

log = structlog.get_logger()


async def delete_stray_placeholder(handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
    """Delete a stray placeholder that a tap or a reply refers to, then handle the update.

    This function is a middleware. A stray placeholder is a message from the bot whose ID the bot does not
    know.
    """
    assert isinstance(event, Update)
    request: Request = data["request"]
    to: object = None
    if event.callback_query:
        to = event.callback_query.message
    elif event.message:
        to = event.message.reply_to_message
    if isinstance(to, Message) and await _is_stray(to, request):
        try:
            await request.bot.delete_message(to.chat.id, to.message_id)
        except CALL_ERRORS as error:
            log.info("stray placeholder not deleted", chat=to.chat.id, error=str(error))
    return await handler(event, data)


async def _is_stray(message: Message, request: Request) -> bool:
    """Return whether `message` is a placeholder that the bot sent but did not use for the reply."""
    if message.from_user is None or message.from_user.id != request.bot.id:
        return False
    ledger = request.services.ledger
    update = _stoppable(message)
    if update is not None:
        shown = await ledger.replies.for_update(update)
        return all(each.message not in (None, message.message_id) for each in shown)
    return message.text == PENDING.text and not await ledger.replies.exists(message.chat.id, message=message.message_id)


def _stoppable(message: Message) -> int | None:
    """Return the update whose answer the ⏹ button under `message` stops, or None if there is no such button."""
    rows = message.reply_markup.inline_keyboard if message.reply_markup else []
    found = parsed(Stop, next((button.callback_data for row in rows for button in row if button.callback_data), ""))
    return found.update if found else None
