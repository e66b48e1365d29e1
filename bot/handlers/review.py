"""Handlers for /review and its buttons, with which admins keep, drop or edit the answers that a run learns from.

With `web.public_url`, a button opens the review page as a Mini App. Without it, the answers that have not been
reviewed are shown one by one, newest first, and an admin edits one by replying to it. The answers are shown in
private chats only, because they contain other people's pictures and words.
"""

from __future__ import annotations

from typing import Any, Final

from aiogram import Router
from aiogram.types import BufferedInputFile, CallbackQuery, InaccessibleMessage, Message

from bot.handlers.button_taps import acknowledge, edit_buttons
from bot.handlers.commands import Command
from bot.handlers.request import Request
from bot.i18n import later
from bot.telegram.callback_data import THUMBS, Judge, ReviewAction, parsed
from bot.telegram.keyboards import mini_app_button, review_buttons
from bot.updates.ordering import command_of
from storage.errors import StorageError
from storage.learning_records import Review, ReviewDecision
from storage.review_cards import Card, CardFilter

DECIDED: Final = {
    ReviewDecision.KEEP: later("Kept."),
    ReviewDecision.DROP: later("Dropped: no run uses it for training or evaluation."),
    ReviewDecision.UNDO: later("Undone: this answer counts as not reviewed."),
}
SHOWN: Final = 350
"""How many characters of each text are shown; a caption has room for 1024."""


def register(router: Router) -> None:
    """Register the handlers of this module.

    Call after `access.register`, whose handlers refuse users who are not admins.
    """
    router.message.register(show, Command("review"))
    router.message.register(edit, _edits)
    router.edited_message.register(edit, _edits)
    router.callback_query.register(decide, Judge.filter())


async def show(message: Message, request: Request) -> None:
    """Show the button of the Mini App or, without a public address, the newest unreviewed answer."""
    say, address = request.say, request.services.settings.web.public_url
    if message.chat.type != "private":
        await request.whisper(say("I only show that in a private chat with you."))
    elif address:
        button = mini_app_button(say("Open"), f"{address}/app")
        await request.reply.finish(say("Keep, drop or edit rated answers"), button)
    else:
        await _show_next(None, request)


async def decide(query: CallbackQuery, callback_data: Judge, request: Request) -> None:
    """Record the decision whose button was tapped, mark it, and show the next answer unless a decision was undone."""
    say, exchange = request.say, callback_data.exchange
    if callback_data.verdict is ReviewAction.NEXT:
        await acknowledge(query)
    else:
        decision = ReviewDecision(callback_data.verdict)
        await request.services.ledger.reviews.add(Review(exchange, decision, request.user.full_name))
        await acknowledge(query, say(DECIDED[decision]))
        if query.message is not None:
            await _mark(query.message, exchange, decision, request)
        if decision is ReviewDecision.UNDO:
            return
    await _show_next(exchange, request)


async def _mark(
    message: Message | InaccessibleMessage, exchange: int, decision: ReviewDecision, request: Request
) -> None:
    """Show the decision on an exchange in the buttons of the message that shows the exchange."""
    chosen = "" if decision is ReviewDecision.UNDO else decision
    markup = review_buttons(exchange, request.say, chosen=chosen)
    await edit_buttons(request, message.chat.id, message.message_id, markup)


async def _edits(message: Message, request: Request) -> dict[str, Any] | bool:
    """Return the exchange that an admin's message edits, as a handler argument, or False if it edits none."""
    to = message.reply_to_message
    if not request.is_admin or message.chat.type != "private" or not message.text or command_of(message.text):
        return False
    if to is None or to.reply_markup is None or to.from_user is None or to.from_user.id != request.bot.id:
        return False
    buttons = [button.callback_data for row in to.reply_markup.inline_keyboard for button in row]
    found = [button.exchange for each in buttons if (button := parsed(Judge, each))]
    return {"exchange": found[0]} if found else False


async def edit(message: Message, exchange: int, request: Request) -> None:
    """Record the message's text, which replaces the answer in training."""
    review = Review(exchange, ReviewDecision.EDIT, request.user.full_name, message.text or "")
    try:
        await request.services.ledger.reviews.add(review)
    except StorageError as error:
        await request.reply.finish(request.say(str(error)))
    else:
        await request.reply.finish(
            request.say("Edited: this text replaces the answer in training. /review shows the next answer.")
        )
        if message.reply_to_message is not None:
            await _mark(message.reply_to_message, exchange, review.decision, request)


async def _show_next(before: int | None, request: Request) -> None:
    """Show the newest unreviewed answer; if `before` is given, only exchanges older than `before` are considered."""
    services, say, reply = request.services, request.say, request.reply
    cards, _ = await services.ledger.review_cards.page(CardFilter(unreviewed=True), before, 1)
    if not cards:
        await reply.finish(say("There's nothing left to review. The operator page shows all decisions."))
        return
    [card] = cards
    buttons = review_buttons(card.exchange.id, say)
    if card.pictures:
        picture = await services.pictures.store.get(card.pictures[0].sha256)
        await reply.finish_with_picture(BufferedInputFile(picture, "picture.jpg"), _text(card, request), buttons)
    else:
        await reply.finish(_text(card, request), buttons)


def _text(card: Card, request: Request) -> str:
    """Return the question, the answer and the votes of a card as text."""
    say, exchange = request.say, card.exchange
    votes = " ".join(
        f"{thumb} {count}" for value, thumb in THUMBS.items() if (count := sum(v.value == value for v in card.votes))
    )
    lines = [f"{card.asker}: {exchange.question[:SHOWN]}", f"{exchange.model}: {exchange.answer[:SHOWN]}"]
    if card.correction:
        lines.append(say("Correction: {text}", text=card.correction[:SHOWN]))
    lines += [votes, say("To replace this answer in training, reply to this message with your text.")]
    return "\n\n".join(line for line in lines if line)
