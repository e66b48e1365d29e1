"""👍 and 👎, by button or as a reaction: counted once, acknowledged, shown under the answer; and why not.

The same thumb again takes it back. What would have been a good answer is `demonstrations`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from aiogram import Bot, Router
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import CallbackQuery, InlineKeyboardMarkup, MessageReactionUpdated, ReactionTypeEmoji

from bot.handlers.callbacks import acknowledge, exchange_here
from bot.handlers.corrections import decide
from bot.i18n import Say, Translator
from bot.settings import BotSettings
from bot.telegram.button_updates import Repaints
from bot.telegram.keyboards import THUMBS, Because, Rate, Reason, rating
from bot.updates.inbox import Delivery
from storage.ledger import Ledger
from storage.records import Exchange, Rating

UNSHOWN_SECONDS: Final = 300.0
"""Votes this much older than the last one may still wait to be shown when a process ends."""


def router() -> Router:
    """The handlers of this module."""
    feedback = Router(name="feedback")
    feedback.callback_query.register(rated, Rate.filter())
    feedback.callback_query.register(because, Because.filter())
    feedback.message_reaction.register(reacted)
    return feedback


async def rated(
    query: CallbackQuery,
    callback_data: Rate,
    bot: Bot,
    delivery: Delivery,
    ledger: Ledger,
    say: Say,
    repaints: Repaints,
) -> None:
    """Count the thumb; the one that was given already is taken back."""
    here = await exchange_here(ledger, callback_data.exchange, query)
    if here is None:
        await acknowledge(query, say("I cannot find that answer any more."))
        return
    exchange, message = here
    known = await ledger.votes.by_update(delivery.update)
    latest = await ledger.votes.latest(exchange.id, query.from_user.id)
    value = 0 if latest == callback_data.value else callback_data.value
    value = known.value if known else value
    await ledger.votes.cast(Rating(exchange.id, query.from_user.id, value, delivery.update))
    await acknowledge(query, await _thanks(value, query.from_user.id, ledger, say))
    await _show(message.message_id, query.from_user.id, exchange, bot, repaints, ledger, say)


async def because(
    query: CallbackQuery,
    callback_data: Because,
    bot: Bot,
    delivery: Delivery,
    ledger: Ledger,
    say: Say,
    repaints: Repaints,
) -> None:
    """Note why somebody does not like an answer."""
    here = await exchange_here(ledger, callback_data.exchange, query)
    if here is None:
        await acknowledge(query, say("I cannot find that answer any more."))
        return
    exchange, message = here
    reason = callback_data.reason
    await ledger.votes.cast(Rating(exchange.id, query.from_user.id, -1, delivery.update, reason=reason.value))
    await acknowledge(query, await _thanks(-1, query.from_user.id, ledger, say))
    await _show(message.message_id, query.from_user.id, exchange, bot, repaints, ledger, say, reason)


async def reacted(
    message_reaction: MessageReactionUpdated,
    bot: Bot,
    delivery: Delivery,
    ledger: Ledger,
    say: Say,
    settings: BotSettings,
    repaints: Repaints,
) -> None:
    """Count a 👍 or 👎 put on an answer or taken off it; on a better answer it decides about that."""
    user, chat = message_reaction.user, message_reaction.chat.id
    before, now = _thumb(message_reaction.old_reaction), _thumb(message_reaction.new_reaction)
    if user is None or before == now:
        return
    exchange = await ledger.exchanges.for_message(chat, message_reaction.message_id)
    if exchange is not None:
        await ledger.votes.cast(Rating(exchange.id, user.id, now, delivery.update))
        shown = await ledger.replies.for_update(exchange.update)
        if shown and (last := shown[-1].message):
            await _show(last, user.id, exchange, bot, repaints, ledger, say)
    elif await ledger.exchanges.for_question(chat, message_reaction.message_id):
        return  # what was taken for a better answer was a question
    elif demonstration := await ledger.corrections.for_message(chat, message_reaction.message_id):
        await decide(demonstration, user.id, ledger, settings, teach=now > 0)


async def _show(
    message: int,
    rater: int,
    exchange: Exchange,
    bot: Bot,
    repaints: Repaints,
    ledger: Ledger,
    say: Say,
    reason: Reason | None = None,
) -> None:
    """Mark a person's own thumb under an answer; in a group show how many there are, as soon as there is room."""
    if exchange.chat != rater:
        repaints.want(exchange.chat, message, lambda: thumbs(exchange, ledger, say, rater))
        return
    markup = await thumbs(exchange, ledger, say, rater, reason)
    try:
        await bot.edit_message_reply_markup(chat_id=exchange.chat, message_id=message, reply_markup=markup)
    except TelegramBadRequest:
        return  # the answer was deleted meanwhile; the thumb counts all the same


async def repaint_lately_rated(repaints: Repaints, ledger: Ledger, translator: Translator) -> None:
    """Show the last votes in groups that the process before may have counted and not shown."""
    for exchange in await ledger.votes.recent_in_groups(UNSHOWN_SECONDS):
        shown = await ledger.replies.for_update(exchange.update)
        asker = await ledger.people.get(exchange.asker)
        say = translator.to(asker.language, asker.client_language) if asker else translator.to()
        if shown and (last := shown[-1].message):
            repaints.want(exchange.chat, last, partial(thumbs, exchange, ledger, say, exchange.asker))


async def thumbs(
    exchange: Exchange, ledger: Ledger, say: Say, rater: int, reason: Reason | None = None
) -> InlineKeyboardMarkup:
    """The buttons under an answer as they have to be now."""
    newest = await ledger.exchanges.newest_at(exchange.place) == exchange.id
    if exchange.chat != rater:
        return rating(exchange.id, tally=await ledger.votes.tally(exchange.id), newest=newest, say=say)
    chosen = await ledger.votes.latest(exchange.id, rater)
    return rating(exchange.id, chosen, reason=reason, newest=newest, say=say)


async def _thanks(value: int, rater: int, ledger: Ledger, say: Say) -> str:
    """Promises nothing to who has forbidden to be learned from."""
    person = await ledger.people.get(rater)
    if value and person is not None and person.opted_out:
        return say("Noted. I do not learn from it, as you wished: /privacy.")
    if value > 0:
        return say("Thank you! I will remember that you like this.")
    if value < 0:
        return say("Noted, thank you. I will try to do better.")
    return say("I have taken your thumb back.")


def _thumb(reactions: Sequence[object]) -> int:
    """The vote that somebody's reactions to a message make: 1, -1, or 0 for none."""
    emoji = {each.emoji for each in reactions if isinstance(each, ReactionTypeEmoji)}
    return next((value for value, thumb in THUMBS.items() if thumb in emoji), 0)
