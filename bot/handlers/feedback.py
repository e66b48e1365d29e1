"""Handlers for 👍 and 👎, given by button or as a reaction, and for the reason for a 👎.

Tapping the same thumb again withdraws the vote.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiogram import Router
from aiogram.types import CallbackQuery, MessageReactionUpdated, ReactionTypeEmoji

from bot.handlers.button_taps import acknowledge, edit_buttons, guest_exchange, tapped_exchange
from bot.handlers.corrections import decide
from bot.handlers.request import Request
from bot.telegram.callback_data import THUMBS, Because, DislikeReason, Rate
from bot.telegram.keyboards import rating_buttons
from storage.chat_records import Exchange
from storage.learning_records import Rating


def register(router: Router) -> None:
    """Register the handlers of this module."""
    router.callback_query.register(rated, Rate.filter())
    router.callback_query.register(because, Because.filter())
    router.message_reaction.register(reacted)


async def rated(query: CallbackQuery, callback_data: Rate, request: Request) -> None:
    """Record the tapped thumb as the user's vote, or take the vote back if the user had already given it."""
    shown: int | str
    if query.inline_message_id:
        exchange = await guest_exchange(query.inline_message_id, callback_data.exchange, request)
        shown = query.inline_message_id
    else:
        exchange, message = await tapped_exchange(query, callback_data.exchange, request)
        shown = message.message_id
    ledger, rater, update = request.services.ledger, request.user.id, request.delivery.update
    counted = await ledger.votes.by_update(update) if request.delivery.attempt > 1 else None
    if counted:
        value = counted.value
    else:
        value = 0 if await ledger.votes.latest(exchange.id, rater) == callback_data.value else callback_data.value
    await ledger.votes.cast(Rating(exchange.id, rater, value, update))
    await acknowledge(query, _thanks(value, request))
    await show_vote(exchange, shown, value, request)


async def because(query: CallbackQuery, callback_data: Because, request: Request) -> None:
    """Record why the user dislikes an answer."""
    exchange, message = await tapped_exchange(query, callback_data.exchange, request)
    reason = callback_data.reason
    vote = Rating(exchange.id, request.user.id, -1, request.delivery.update, reason=reason.value)
    await request.services.ledger.votes.cast(vote)
    await acknowledge(query, _thanks(-1, request))
    await show_vote(exchange, message.message_id, -1, request, reason)


async def reacted(message_reaction: MessageReactionUpdated, request: Request) -> None:
    """Update the user's vote when a 👍 or 👎 reaction to an answer is added or removed.

    On a correction, a 👍 confirms the correction; a 👎 or the removal of a thumb rejects it.
    """
    ledger, chat, message = request.services.ledger, message_reaction.chat.id, message_reaction.message_id
    before, now = _thumb(message_reaction.old_reaction), _thumb(message_reaction.new_reaction)
    if before == now:
        return
    exchange = await ledger.exchanges.for_message(chat, message)
    if exchange is not None:
        await ledger.votes.cast(Rating(exchange.id, request.user.id, now, request.delivery.update))
        shown = await ledger.replies.for_update(exchange.update)
        if shown and (last := shown[-1].message):
            await show_vote(exchange, last, now, request)
    elif await ledger.exchanges.for_question(chat, message):
        return  # the reply was a question after all
    elif correction := await ledger.corrections.for_message(chat, message):
        await decide(correction, request, teach=now > 0)


async def show_vote(
    exchange: Exchange, message: int | str, value: int, request: Request, reason: DislikeReason | None = None
) -> None:
    """Mark the user's thumb under an answer; in a group, show the tally once the rate limit allows."""
    services, say = request.services, request.say
    if isinstance(message, str) or exchange.chat != request.user.id:
        services.buttons.update(exchange, message, request.user.id, say)
        return
    newest = await services.ledger.exchanges.newest_at(exchange.position) == exchange.id
    markup = rating_buttons(exchange.id, value or None, reason=reason, newest=newest, say=say)
    await edit_buttons(request, exchange.chat, message, markup)


def _thanks(value: int, request: Request) -> str:
    """Return the reply to a vote, without a promise to learn from it if the user has opted out."""
    say = request.say
    if value and request.person is not None and request.person.opted_out:
        return say("Noted. I won't learn from it, as you chose in /privacy.")
    if value > 0:
        return say("Thanks! I'll remember that you like this.")
    if value < 0:
        return say("Noted, thanks. I'll try to do better.")
    return say("I've removed your vote.")


def _thumb(reactions: Sequence[object]) -> int:
    """Return the vote that a user's reactions to a message express: 1 (👍), -1 (👎), or 0 if there is none."""
    emoji = {each.emoji for each in reactions if isinstance(each, ReactionTypeEmoji)}
    return next((value for value, thumb in THUMBS.items() if thumb in emoji), 0)
