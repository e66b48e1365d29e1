"""Corrections: better answers suggested by users, which the model learns once they are confirmed.

A user suggests a correction by replying to the question that the bot asks after a tap on ✍ or, in a
private chat, by replying to an answer that the user gave a 👎. A reply to an answer may also be a
question: it is answered if it ends with a question mark, or if its author taps the button saying that it
is one. A correction is confirmed by another user in the chat or by an admin, and its author may withdraw
it. Admins are shown the corrections from private chats, where nobody else could confirm them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final

import structlog
from aiogram import Router
from aiogram.types import BufferedInputFile, CallbackQuery, Message
from telegramify_markdown import utf16_len

from bot.admin.notifications import CAPTION_LIMIT
from bot.chat.responder import apology
from bot.handlers.button_taps import TapRefused, acknowledge, edit_buttons, tapped_exchange
from bot.handlers.request import Request, Services
from bot.telegram.callback_data import Asks, Better, Teach
from bot.telegram.errors import CALL_ERRORS
from bot.telegram.keyboards import correction_buttons
from bot.updates.ordering import command_of
from storage.chat_records import Exchange
from storage.errors import StorageError, UnknownRecord
from storage.learning_records import Correction
from storage.review_cards import Card

DAY_SECONDS: Final = 86_400.0

SHOWN: Final = 1000
"""How many characters of each text an admin is shown; a message has room for 4096."""


QUESTION_MARKS: Final = ("?", "？")

LONGEST: Final = 4096
"""The maximum length of a correction in characters, which is that of a Telegram message."""

log = structlog.get_logger()


def register(router: Router) -> None:
    """Register the handlers of this module."""
    router.message.register(correct, _is_correction)
    router.edited_message.register(correct, _is_correction)
    router.callback_query.register(ask_for_correction, Better.filter())
    router.callback_query.register(decided, Teach.filter())
    router.callback_query.register(answer, Asks.filter())


async def ask_for_correction(query: CallbackQuery, callback_data: Better, request: Request) -> None:
    """Ask the user to reply with a better answer."""
    await tapped_exchange(query, callback_data.exchange, request)
    await acknowledge(query)
    request.reply.place = replace(request.reply.place, quotes=True)
    await request.reply.ask(
        request.say("What would have been a better answer? Reply to this message with it, so that I can learn from it.")
    )


async def _is_correction(message: Message, request: Request) -> dict[str, Any] | bool:
    """Return the exchange that a text message corrects, as handler arguments, or False if it corrects none.

    The argument `doubtful` is True if the text may be a question instead.
    """
    to, ledger, chat = message.reply_to_message, request.services.ledger, message.chat.id
    if not message.text or command_of(message.text) or to is None:
        return False
    if to.from_user is None or to.from_user.id != request.bot.id:
        return False
    exchange = await ledger.exchanges.for_correction_prompt(chat, to.message_id)
    if exchange is not None:
        return {"exchange": exchange, "doubtful": False}
    asks = message.text.rstrip().endswith(QUESTION_MARKS) or await ledger.exchanges.for_question(
        chat, message.message_id
    )
    if message.chat.type == "private" and not asks:
        shown = await ledger.exchanges.for_message(chat, to.message_id)
        if shown is not None and await ledger.votes.latest(shown.id, chat) == -1:
            return {"exchange": shown, "doubtful": True}
    return False


async def correct(message: Message, exchange: Exchange, doubtful: bool, request: Request) -> None:
    """Store the correction in a message, and offer buttons to confirm or reject it.

    If the message is edited, the new text replaces the earlier correction.
    """
    services, reply, say, author = request.services, request.reply, request.say, request.user.id
    limit = 0 if request.is_admin else services.settings.limits.corrections_per_day
    since = time.time() - DAY_SECONDS
    if limit and await services.ledger.corrections.count_since(author, since, exchange.id) >= limit:
        await request.whisper(say("That's the limit: {limit} corrections a day. Try again tomorrow.", limit=limit))
        return
    text = (message.text or "").strip()[:LONGEST]
    earlier = await services.ledger.replies.for_question(message.chat.id, message.message_id)
    await reply.adopt([each.message for each in earlier if each.message is not None])
    number = await services.ledger.corrections.add(Correction(exchange.id, author, text, request.delivery.update))
    private = message.chat.type == "private"
    if request.is_admin:
        words = say("Should I learn this as the better answer?")
    elif private:
        words = say(
            "Thanks! I'll show it to my admins, with your name, the picture, your question and my answer, and learn it "
            "if they agree."
        )
    else:
        words = say("Thanks! I'll learn this once another person here, or an admin, gives it a 👍.")
    can_confirm = request.is_admin or not private
    await reply.finish(words, correction_buttons(number, say, can_confirm=can_confirm, doubtful=doubtful))
    if private and not request.is_admin and request.delivery.attempt == 1:
        await _ask_admins(number, text, exchange, request)


async def _ask_admins(number: int, text: str, exchange: Exchange, request: Request) -> None:
    """Ask each admin, at most once, to confirm a correction, under the picture that it is about."""
    services = request.services
    card = await services.ledger.review_cards.get(exchange)
    picture = await _picture(card, services)
    for admin in services.settings.telegram.admins:
        say = services.translator.for_person(await services.ledger.people.get(admin))
        words = say(
            "Should I learn from this correction by {name}?\n\nQuestion: {question}\n\nMy answer: {answer}\n\n"
            "Better: {better}",
            name=request.user.full_name,
            question=exchange.question[:SHOWN],
            answer=exchange.answer[:SHOWN],
            better=text[:SHOWN],
        )
        buttons = correction_buttons(number, say)
        try:
            if picture and utf16_len(words) <= CAPTION_LIMIT:
                await request.bot.send_photo(admin, picture, caption=words, reply_markup=buttons)
                continue
            if picture:
                await request.bot.send_photo(admin, picture)
            await request.bot.send_message(admin, words, reply_markup=buttons)
        except CALL_ERRORS as error:
            log.warning("correction not shown to an admin", admin=admin, error=str(error))


async def _picture(card: Card, services: Services) -> BufferedInputFile | None:
    """Return the first picture of a card, or None if it has none or the picture cannot be read."""
    try:
        content = await services.pictures.store.get(card.pictures[0].sha256) if card.pictures else None
    except StorageError as error:  # deleted in the meantime
        log.warning("picture of a correction not shown", error=str(error))
        return None
    return BufferedInputFile(content, "picture.jpg") if content else None


async def decided(query: CallbackQuery, callback_data: Teach, request: Request) -> None:
    """Confirm or reject a correction, depending on the tapped button, and mark the decision on the buttons."""
    say, message, teach = request.say, query.message, bool(callback_data.wanted)
    correction = await request.services.ledger.corrections.get(callback_data.correction)
    if not await decide(correction, request, teach=teach):
        raise TapRefused(say("Someone else or an admin has to decide that."))
    await acknowledge(query, say("Thanks! I'll learn this.") if teach else say("OK, I won't learn this."))
    assert message is not None
    can_confirm = request.is_admin or message.chat.type != "private"
    markup = correction_buttons(correction.id, say, wanted=teach, can_confirm=can_confirm)
    await edit_buttons(request, message.chat.id, message.message_id, markup)


async def answer(query: CallbackQuery, callback_data: Asks, request: Request) -> None:
    """Answer a question that was mistaken for a correction.

    The answer replaces the message that offered to learn the correction.
    """
    services, reply, say, author = request.services, request.reply, request.say, request.user.id
    message = query.message
    correction = await services.ledger.corrections.get(callback_data.correction)
    about = await services.ledger.exchanges.get(correction.exchange)
    offered = await services.ledger.replies.for_update(correction.update)
    if not isinstance(message, Message) or not offered or author != correction.author:
        raise TapRefused(say("Only the person who asked can do that."))
    reply.place = replace(reply.place, question=offered[0].question)
    if await request.show_recorded():
        return
    if await services.ledger.exchanges.for_question(reply.place.chat, reply.place.question):
        raise TapRefused(say("This button no longer works."))
    await acknowledge(query)
    await services.ledger.corrections.confirm(correction.id, None)
    await reply.adopt([message.message_id])
    question = replace(request.question(text=correction.text), message=reply.place.question)
    try:
        question = replace(question, pictures=await services.conversation.subject(about, question))
    except UnknownRecord as error:
        await reply.finish(apology(error, say))
        return
    await services.responder.answer(question, reply, say, say("Thinking…"))


async def decide(correction: Correction, request: Request, *, teach: bool) -> bool:
    """Confirm a correction if `teach` is set, or reject it otherwise.

    Admins may decide on every correction. Others decide in the chat of the corrected answer, and cannot confirm
    their own; both are checked because a client can send the data of any button.

    Returns:
        False if the user is not allowed to make the decision, otherwise True.
    """
    ledger = request.services.ledger
    if not request.is_admin:
        try:
            corrected = await ledger.exchanges.get(correction.exchange)
        except UnknownRecord:  # deleted in the meantime
            return False
        if request.reply.place.chat != corrected.chat or (teach and request.user.id == correction.author):
            return False
    await ledger.corrections.confirm(correction.id, request.user.id if teach else None)
    return True
