"""What would have been a good answer: asked for after a 👎, suggested by replying, taught once it is confirmed.

Suggestions come as replies to the question that ✍ brings, or, in a private chat, to an answer that the person does
not like. The latter may be questions as well: who ends them with a question mark, or says so, gets an answer. Another
person in the chat, or an admin, confirms; the author may take it back. Admins are shown what is suggested in private
chats, where nobody else could confirm it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import structlog
from aiogram import Bot, Router
from aiogram.exceptions import TelegramAPIError, TelegramBadRequest
from aiogram.types import CallbackQuery, Message, User

from bot.chat.conversation import Conversation, Question
from bot.chat.in_flight import Asked
from bot.chat.responder import Answers
from bot.handlers.callbacks import acknowledge, exchange_here
from bot.i18n import Say, Translator
from bot.settings import BotSettings
from bot.telegram.client import DeliveryError
from bot.telegram.keyboards import Asks, Better, Teach, teaching
from bot.telegram.outbox import Place, Reply
from bot.updates.inbox import Delivery
from bot.updates.ordering import command_of
from storage.errors import UnknownRecord
from storage.ledger import Ledger
from storage.records import Demonstration, Exchange

DAY_SECONDS: Final = 86_400.0
SHOWN: Final = 1000
"""So many characters of each text are shown to an admin; a message has room for 4096."""

QUESTION_MARKS: Final = ("?", "？")

LONGEST: Final = 4096
"""Characters of a suggestion; Telegram's messages have no more."""

log = structlog.get_logger()


def router() -> Router:
    """The handlers of this module."""
    demonstrations = Router(name="demonstrations")
    demonstrations.message.register(demonstrate, _betters)
    demonstrations.edited_message.register(demonstrate, _betters)
    demonstrations.callback_query.register(ask, Better.filter())
    demonstrations.callback_query.register(decided, Teach.filter())
    demonstrations.callback_query.register(answer, Asks.filter())
    return demonstrations


async def ask(
    query: CallbackQuery, callback_data: Better, bot: Bot, delivery: Delivery, ledger: Ledger, say: Say
) -> None:
    """Ask what would have been a good answer."""
    here = await exchange_here(ledger, callback_data.exchange, query)
    if here is None:
        await acknowledge(query, say("I cannot find that answer any more."))
        return
    await acknowledge(query, "")
    place = replace(Place.of(here[1]), quotes=True)
    reply = await Reply.open(bot, ledger, delivery.update, place)
    await reply.ask(say("What would have been a good answer? Reply to this message with it, and I can learn it."))


async def _betters(message: Message, bot: Bot, ledger: Ledger) -> dict[str, Exchange | bool] | bool:
    """Whether a text is meant as a better answer; to which exchange, handlers get to know as `exchange`, and as
    `doubtful` whether it may be a question.
    """
    to = message.reply_to_message
    if not message.text or command_of(message.text) or to is None or to.from_user is None or to.from_user.id != bot.id:
        return False
    chat = message.chat.id
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


async def demonstrate(
    message: Message,
    event_from_user: User,
    exchange: Exchange,
    doubtful: bool,
    delivery: Delivery,
    reply: Reply,
    say: Say,
    settings: BotSettings,
    ledger: Ledger,
    bot: Bot,
    translator: Translator,
) -> None:
    """Keep the suggestion, and let those who may confirm it; an edited one takes the former's place."""
    limit, author = settings.limits.corrections_per_day, event_from_user.id
    is_admin = author in settings.telegram.admins
    since = time.time() - DAY_SECONDS
    if limit and not is_admin and await ledger.corrections.count_since(author, since, exchange.id) >= limit:
        await reply.finish(say("That's the limit: {limit} corrections a day. Try again tomorrow.", limit=limit))
        return
    text = (message.text or "").strip()[:LONGEST]
    earlier = await ledger.replies.for_question(message.chat.id, message.message_id)
    await reply.adopt([each.message for each in earlier if each.message is not None])
    number = await ledger.corrections.add(Demonstration(exchange.id, author, text, delivery.update))
    private = message.chat.type == "private"
    if is_admin:
        words = say("Shall I learn this as the better answer?")
    elif private:
        words = say("Thank you! I show it to my admins, with your question and my answer. I learn it if they agree.")
    else:
        words = say("Thank you! With a 👍 from another person here, or from an admin, I will learn this.")
    await reply.finish(words, teaching(number, say, doubtful=doubtful))
    if private and not is_admin and delivery.attempt == 1:
        await _submit(number, text, exchange, bot, ledger, settings, translator)


async def _submit(
    number: int,
    text: str,
    exchange: Exchange,
    bot: Bot,
    ledger: Ledger,
    settings: BotSettings,
    translator: Translator,
) -> None:
    """Ask each admin whether a suggestion may teach; at most once, since their /retrain dry counts what was taken."""
    for admin in settings.telegram.admins:
        person = await ledger.people.get(admin)
        say = translator.to(person.language, person.client_language) if person else translator.to(None)
        words = say(
            "Shall I learn this correction?\n\nQuestion: {question}\n\nMy answer: {answer}\n\nBetter: {better}",
            question=exchange.question[:SHOWN],
            answer=exchange.answer[:SHOWN],
            better=text[:SHOWN],
        )
        try:
            await bot.send_message(admin, words, reply_markup=teaching(number, say))
        except (DeliveryError, TelegramAPIError) as error:
            log.warning("an admin was not asked about a correction", admin=admin, error=str(error))


async def decided(
    query: CallbackQuery,
    callback_data: Teach,
    bot: Bot,
    ledger: Ledger,
    say: Say,
    settings: BotSettings,
) -> None:
    """Teach the suggestion, or do not, and show which."""
    message, teach = query.message, bool(callback_data.wanted)
    try:
        demonstration = await ledger.corrections.get(callback_data.demonstration)
    except UnknownRecord:
        await acknowledge(query, say("I cannot find that answer any more."))
        return
    if not await decide(demonstration, query.from_user.id, ledger, settings, teach=teach):
        await acknowledge(query, say("Only another person, or an admin, can do that."))
        return
    await acknowledge(query, say("Thank you! I will learn this.") if teach else say("I will not learn this."))
    assert message is not None
    try:
        await bot.edit_message_reply_markup(
            chat_id=message.chat.id,
            message_id=message.message_id,
            reply_markup=teaching(demonstration.id, say, wanted=teach),
        )
    except TelegramBadRequest:
        return  # deleted meanwhile; what was decided counts all the same


async def answer(
    query: CallbackQuery,
    callback_data: Asks,
    bot: Bot,
    delivery: Delivery,
    ledger: Ledger,
    say: Say,
    conversation: Conversation,
    answers: Answers,
) -> None:
    """Answer what was taken for a suggestion, in the message that offered to learn it."""
    message, author = query.message, query.from_user.id
    try:
        demonstration = await ledger.corrections.get(callback_data.demonstration)
        about = await ledger.exchanges.get(demonstration.exchange)
    except UnknownRecord:
        await acknowledge(query, say("I cannot find that answer any more."))
        return
    offered = await ledger.replies.for_update(demonstration.update)
    if not isinstance(message, Message) or not offered or author != demonstration.author:
        await acknowledge(query, say("Only who asked can do that."))
        return
    place = replace(Place.of(message), question=offered[0].question)
    chat, topic = place.chat, place.topic or 0
    reply = await Reply.open(bot, ledger, delivery.update, place)
    if recorded := await ledger.exchanges.for_update(delivery.update):
        await answers.show_again(recorded, reply, say)
        return
    if await ledger.exchanges.for_question(chat, place.question):
        await acknowledge(query, say("This button does not work any more."))
        return
    await acknowledge(query, "")
    await ledger.corrections.confirm(demonstration.id, None)
    await reply.adopt([message.message_id])

    async def question() -> Question:
        pictures = await conversation.subject(about, chat, author, topic)
        return Question(delivery.update, chat, author, topic, demonstration.text, pictures)

    asked = Asked(delivery.update, chat, topic, author, place.question, delivery.received)
    await answers.give(asked, question, reply, say, placeholder=say("Thinking…"))


async def decide(demonstration: Demonstration, by: int, ledger: Ledger, settings: BotSettings, *, teach: bool) -> bool:
    """Let a suggestion teach, or not, if this person may decide about it."""
    if teach and by == demonstration.author and by not in settings.telegram.admins:
        return False
    await ledger.corrections.confirm(demonstration.id, by if teach else None)
    return True
