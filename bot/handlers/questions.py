"""Pictures and questions: what somebody asks, and how the answer reaches them exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from aiogram import Bot, Router
from aiogram.types import Document, Message, PhotoSize, User

from bot.conversation import Conversation, EmptyAnswer, Forgotten, NoPictureYet, Question
from bot.inbox import Delivery
from bot.incoming import Incoming, PictureRefused
from bot.keyboards import rating
from bot.pages import markdown_pages
from bot.replies import Reply
from bot.settings import BotSettings
from bot.streaming import Screen
from bot.translation import Say
from inference.messages import EngineCrashed, EngineUnavailable, InferenceError, Picture, PictureError, PromptTooLong
from storage.ledger import Ledger

GROUP_EDITS: Final = 3
"""Groups take 20 messages a minute, private chats 60: their edits come that many times slower."""

_SUFFIXES: Final = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif")


def router() -> Router:
    """The handlers of this module."""
    questions = Router(name="questions")
    questions.message.register(ask, _asks)
    return questions


async def ask(
    message: Message,
    event_from_user: User,
    bot: Bot,
    delivery: Delivery,
    reply: Reply,
    say: Say,
    settings: BotSettings,
    ledger: Ledger,
    incoming: Incoming,
    conversation: Conversation,
) -> None:
    """Answer a question, or say kindly why not."""
    messages = delivery.album or (message,)
    if message.chat.type != "private" and not await _addressed(messages, bot):
        return
    if delivery.attempt > 1 and (recorded := await ledger.exchange_for_update(delivery.update)):
        await reply.finish(markdown_pages(recorded.answer), rating(recorded.id))
        return
    text = await _said(messages, bot)
    files = [file for each in messages if (file := _picture_of(each))]
    limit = settings.chat.max_question_characters
    topic = reply.place.topic or 0
    if len(text) > limit:
        await reply.finish(
            say(
                "That is too long for me: {length} characters, and I read at most {limit}. Please ask in fewer words.",
                length=len(text),
                limit=limit,
            )
        )
        return
    if not files and not await conversation.has_picture(message.chat.id, event_from_user.id, topic):
        await reply.finish(_ask_for_picture(say))
        return
    placeholder = say("Looking at your picture…") if files else say("Thinking…")
    seconds = settings.telegram.edit_seconds * (1 if message.chat.type == "private" else GROUP_EDITS)
    try:
        async with Screen(reply, say, placeholder, seconds) as screen:
            question = Question(
                update=delivery.update,
                chat=message.chat.id,
                asker=event_from_user.id,
                topic=topic,
                text=text or say(settings.chat.default_question),
                pictures=await _taken(incoming, bot, files, event_from_user.id),
            )
            exchange = await conversation.ask(question, screen.show)
    except PictureRefused as refused:
        await reply.finish(say(refused.sentence, **refused.values))
    except Forgotten:
        await reply.finish(say("You have had your data deleted meanwhile, so I have dropped this question as well."))
    except NoPictureYet:
        await reply.finish(_ask_for_picture(say))
    except (EmptyAnswer, InferenceError) as error:
        await reply.finish(_sorry(error, say))
    else:
        await reply.finish(markdown_pages(exchange.answer), rating(exchange.id))


async def _taken(
    incoming: Incoming, bot: Bot, files: Sequence[PhotoSize | Document], sender: int
) -> tuple[Picture, ...]:
    """All pictures, fetched side by side; the first that is refused ends the others."""
    tasks = [asyncio.create_task(incoming.take(bot, file, sender)) for file in files]
    try:
        return tuple([await task for task in tasks])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _ask_for_picture(say: Say) -> str:
    return say(
        "I talk about pictures, and I have not seen one yet. Please send me one, with your question or before it."
    )


def _sorry(error: Exception, say: Say) -> str:
    """What to say, and what to do, when there is no answer."""
    if isinstance(error, EmptyAnswer):
        return say("I am at a loss for words. Please ask in other words, or send the picture again.")
    if isinstance(error, PromptTooLong):
        return say("That is more than I can keep in mind at once. Please ask more briefly or send fewer pictures.")
    if isinstance(error, PictureError):
        return say("I could not look at this picture. Please send it as a photo.")
    if isinstance(error, EngineUnavailable):
        return say("I cannot answer just now. Please ask again in a minute or two.")
    if isinstance(error, EngineCrashed):
        return say("Something broke while I was answering, and it was not your fault. Please ask once more.")
    return say("I could not make sense of that. Please ask in other words, or begin anew with /new.")


def _asks(message: Message) -> bool:
    """Whether a message is for us to answer: a text or a picture."""
    return bool(message.text) or _picture_of(message) is not None


def _is_picture(document: Document) -> bool:
    """Whether a file claims to be a picture; what it is, its bytes tell later."""
    name = (document.file_name or "").lower()
    return (document.mime_type or "").startswith("image/") or name.endswith(_SUFFIXES)


def _picture_of(message: Message) -> PhotoSize | Document | None:
    """The message's picture, a photo in its largest size."""
    if message.photo:
        return max(message.photo, key=lambda size: size.width * size.height)
    return message.document if message.document and _is_picture(message.document) else None


async def _said(messages: Sequence[Message], bot: Bot) -> str:
    """The text of a message, or the captions of an album; without the bot's own name, which only calls it."""
    texts = [each.text or each.caption or "" for each in messages]
    text = "\n".join(part for part in texts if part.strip())
    if messages[0].chat.type == "private":
        return text.strip()
    me = await bot.me()
    return text.replace(f"@{me.username}", "").strip()


async def _addressed(messages: Sequence[Message], bot: Bot) -> bool:
    """Whether a message in a group is meant for us: it names us, or answers one of our messages."""
    me = await bot.me()
    for each in messages:
        if each.reply_to_message and each.reply_to_message.from_user and each.reply_to_message.from_user.id == me.id:
            return True
        text = each.text or each.caption or ""
        for entity in each.entities or each.caption_entities or ():
            if entity.type == "mention" and entity.extract_from(text).lower() == f"@{me.username}".lower():
                return True
            if entity.type == "text_mention" and entity.user and entity.user.id == me.id:
                return True
    return False
