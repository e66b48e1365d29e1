"""Pictures and questions, as they are sent and as they are edited: one final answer for each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from aiogram import Bot, Router
from aiogram.types import Message, Update, User

from bot.chat.conversation import Conversation, NoPictureYet, Question
from bot.chat.history import Forgotten
from bot.chat.images import Incoming, PictureRefused, Sent, picture_of
from bot.chat.in_flight import Asked, Steering
from bot.chat.responder import Answers, sorry
from bot.handlers.commands import ANEW
from bot.i18n import Say
from bot.settings import BotSettings
from bot.telegram.outbox import Reply
from bot.updates.addressing import addressed
from bot.updates.inbox import Delivery
from bot.updates.ordering import command_of
from bot.updates.staleness import Lateness
from inference.messages import Picture
from storage.ledger import Ledger


def router() -> Router:
    """The handlers of this module."""
    questions = Router(name="questions")
    questions.message.register(ask, _asks)
    questions.edited_message.register(ask, _asks)
    return questions


async def ask(
    message: Message,
    event_from_user: User,
    event_update: Update,
    bot: Bot,
    delivery: Delivery,
    reply: Reply,
    say: Say,
    settings: BotSettings,
    ledger: Ledger,
    incoming: Incoming,
    conversation: Conversation,
    steering: Steering,
    lateness: Lateness,
    answers: Answers,
) -> None:
    """Answer a question, or say kindly why not; an edited one anew, in the place of the earlier answer."""
    if delivery.attempt > 1 and (recorded := await ledger.exchanges.for_update(delivery.update)):
        await answers.show_again(recorded, reply, say)
        return
    chat, topic = message.chat.id, reply.place.topic or 0
    messages = delivery.album or (message,)
    edited = event_update.edited_message is not None
    shown = await ledger.replies.for_question(chat, message.message_id) if edited else []
    anew = not edited and await ANEW(message, bot)
    if message.chat.type != "private" and not (shown or anew or await addressed(messages, bot)):
        return
    if lateness.late(message):
        if lateness.excuse(chat, event_from_user.id) or reply.begun:
            await reply.finish(
                say(
                    "I was away for a while and have not answered what came in meanwhile. Please ask again what you "
                    "still want to know."
                )
            )
        return
    lateness.recent(chat, event_from_user.id)
    former = await ledger.exchanges.for_question(chat, message.message_id) if edited else None

    async def said() -> str:
        """The text of the question, edited while it waited or not."""
        return await _said([steering.newest(each) for each in messages], bot)

    files = [file for each in messages if (file := picture_of(each))]
    sender = event_from_user
    pictures: tuple[Picture, ...] = ()
    if former is not None and len(files) == len(former.pictures) == 1:
        try:
            pictures = await _taken(incoming, bot, files, sender.id, delivery.update)
        except (PictureRefused, Forgotten) as error:
            await reply.adopt([each.message for each in shown if each.message is not None])
            await reply.finish(sorry(error, say))
            return
        if pictures[0].sha256 == former.pictures[0]:
            pictures = ()
    text = await said() or say(settings.chat.default_question)
    if former is not None and former.question == text and not pictures:
        # Telegram calls a message edited also when nothing was changed that we see, such as a link's preview; and a
        # question edited while it was being answered has been answered as edited.
        return
    await reply.adopt([each.message for each in shown if each.message is not None])
    limit = settings.chat.max_question_characters
    if len(text) > limit:
        await reply.finish(
            say(
                "That is too long for me: {length} characters, and I read at most {limit}. Please ask in fewer words.",
                length=len(text),
                limit=limit,
            )
        )
        return
    most = settings.chat.max_pictures
    if len(files) > most:
        await reply.finish(
            say(
                "I look at {limit} pictures at once at most, and these are {number}. Please send fewer together.",
                limit=most,
                number=len(files),
            )
        )
        return
    if anew:  # after a crash perhaps once more: an empty conversation is as good as another
        await ledger.sessions.restart(chat, settings.chat.talker(chat, event_from_user.id), topic)
    to, elsewhere = message.reply_to_message, message.external_reply
    if not files and not former and elsewhere:
        files = [file] if (file := picture_of(elsewhere)) else []
    if not files and not former and to:
        # Whoever replies to a picture means that; whoever replies to an answer of another talk means what it is about.
        files = [file] if (file := picture_of(to)) else []
        sender = to.from_user or event_from_user
        if not files and (answered := await ledger.exchanges.for_message(chat, to.message_id)):
            pictures = await conversation.subject(answered, chat, event_from_user.id, topic)
    if not (files or pictures or former or await conversation.has_picture(chat, event_from_user.id, topic)):
        await reply.finish(sorry(NoPictureYet(), say))
        return

    async def question() -> Question:
        nonlocal pictures
        text = (await said())[:limit] or say(settings.chat.default_question)
        if former is not None:
            return await conversation.once_more(former, delivery.update, text, pictures)
        pictures = pictures or await _taken(incoming, bot, files, sender.id, delivery.update)
        return Question(delivery.update, chat, event_from_user.id, topic, text, pictures)

    asked = Asked(delivery.update, chat, topic, event_from_user.id, message.message_id, delivery.received)
    placeholder = say("Looking at your picture…") if files else say("Thinking…")
    await answers.give(asked, question, reply, say, placeholder=placeholder)


async def _taken(incoming: Incoming, bot: Bot, files: Sequence[Sent], sender: int, update: int) -> tuple[Picture, ...]:
    """All pictures, fetched side by side; the first that is refused ends the others."""
    tasks = [asyncio.create_task(incoming.take(bot, file, sender, update)) for file in files]
    try:
        return tuple([await task for task in tasks])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _asks(message: Message, delivery: Delivery) -> bool:
    """Whether a message is for us to answer: a text that is no command, or a picture, if only beside a video."""
    pictured = any(picture_of(each) for each in delivery.album or (message,))
    return pictured or bool(message.text and not command_of(message.text))


async def _said(messages: Sequence[Message], bot: Bot) -> str:
    """The text of a message, or the captions of an album; without the bot's own name, which only calls it, and without
    the command that begins anew.
    """
    texts = [each.text or each.caption or "" for each in messages]
    if await ANEW(messages[0], bot):
        texts[0] = "".join(texts[0].split(maxsplit=1)[1:])
    text = "\n".join(part for part in texts if part.strip())
    if messages[0].chat.type == "private":
        return text.strip()
    me = await bot.me()
    return re.sub(rf"@{me.username}\b", "", text, flags=re.IGNORECASE).strip()
