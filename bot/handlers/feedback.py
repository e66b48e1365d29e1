"""👍 and 👎: a tap is counted once, acknowledged, and marked under the answer."""

from __future__ import annotations

from aiogram import Bot, Router
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import CallbackQuery

from bot.handlers.basics import acknowledge
from bot.inbox import Delivery
from bot.keyboards import THUMBS, Rate, rating
from bot.translation import Say
from storage.ledger import Ledger
from storage.records import Rating, UnknownRecord


def router() -> Router:
    """The handlers of this module."""
    feedback = Router(name="feedback")
    feedback.callback_query.register(rated, Rate.filter())
    return feedback


async def rated(
    query: CallbackQuery, callback_data: Rate, bot: Bot, delivery: Delivery, ledger: Ledger, say: Say
) -> None:
    """Count the thumb. In a group each member has their own, so only private chats mark it under the answer."""
    message = query.message
    number, value = callback_data.exchange, callback_data.value
    try:
        exchange = await ledger.exchange(number)
        if value not in THUMBS or message is None or exchange.chat != message.chat.id:
            raise UnknownRecord(f"no such rating: {query.data}")
        await ledger.rate(Rating(number, query.from_user.id, value, delivery.update))
    except UnknownRecord:
        await acknowledge(query, say("I cannot find that answer any more."))
        return
    await acknowledge(
        query,
        say("Thank you! I will remember that you like this.")
        if value > 0
        else say("Noted, thank you. I will try to do better."),
    )
    if message.chat.type != "private":
        return
    latest = await ledger.rating(number, query.from_user.id)
    newest = await ledger.standing(exchange.place) == number
    try:
        await bot.edit_message_reply_markup(
            chat_id=message.chat.id,
            message_id=message.message_id,
            reply_markup=rating(number, latest, newest=newest),
        )
    except TelegramBadRequest:
        return  # the answer was deleted meanwhile; the thumb counts all the same
