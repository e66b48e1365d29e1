"""Everything else somebody may send: a clear, kind sentence instead of silence."""

from __future__ import annotations

from typing import Final

from aiogram import Bot, F, Router
from aiogram.types import CallbackQuery, Message

from bot.handlers.callbacks import acknowledge
from bot.i18n import Say
from bot.telegram.outbox import Reply
from bot.updates.addressing import addressed
from bot.updates.ordering import command_of

_SENT_BY_PEOPLE: Final = (
    F.voice
    | F.audio
    | F.video
    | F.video_note
    | F.animation
    | F.sticker
    | F.document
    | F.location
    | F.venue
    | F.contact
    | F.poll
    | F.dice
    | F.game
    | F.story
    | F.paid_media
)


def unknown_commands() -> Router:
    """To be asked before questions: a command is never a question."""
    unknown = Router(name="unknown commands")
    unknown.message.register(unknown_command, _is_command)
    return unknown


def router() -> Router:
    """To be asked last."""
    others = Router(name="others")
    others.message.register(unsupported, _SENT_BY_PEOPLE)
    others.callback_query.register(unknown_tap)
    return others


async def _is_command(message: Message) -> bool:
    return bool(command_of(message.text))


async def unknown_command(message: Message, bot: Bot, reply: Reply, say: Say) -> None:
    """In a group a command that does not name us may be another bot's."""
    named = (message.text or "").split(maxsplit=1)[0].partition("@")[2].lower()
    if message.chat.type == "private" or named == str((await bot.me()).username).lower():
        await reply.finish(say("I do not know that command. /help shows what I can do."))


async def unsupported(message: Message, bot: Bot, reply: Reply, say: Say) -> None:
    """Say what we can look at. In groups only to who means us, and a sticker or a GIF is no more than a smile there."""
    smile = message.sticker or message.animation
    if message.chat.type != "private" and (smile or not await addressed((message,), bot)):
        return
    if message.voice or message.audio or message.video_note:
        text = say("I cannot listen. Please write your question, and send me a picture to talk about.")
    elif message.video or message.animation or message.sticker:
        text = say("I cannot watch moving pictures. Please send a photo, or a screenshot of the moment you mean.")
    else:
        text = say("I cannot do anything with that. Please send me a photo or a picture file, and ask me about it.")
    await reply.finish(text)


async def unknown_tap(query: CallbackQuery, say: Say) -> None:
    """A button of another time."""
    await acknowledge(query, say("This button does not work any more."))
