"""Handlers for updates that no other handler accepts, so that the bot does not stay silent."""

from __future__ import annotations

from typing import Final

from aiogram import F, Router
from aiogram.types import CallbackQuery, Message

from bot.handlers.button_taps import acknowledge
from bot.handlers.request import Request
from bot.updates.addressing import addressed

_SENT_BY_PEOPLE: Final = (
    *("voice", "audio", "video", "video_note", "animation", "sticker", "document", "location", "venue", "contact"),
    *("poll", "dice", "game", "story", "paid_media"),
)


def register(router: Router) -> None:
    """Register the handlers of this module; call after all other modules have registered theirs."""
    router.message.register(unsupported, F.content_type.in_(_SENT_BY_PEOPLE))
    router.callback_query.register(unknown_tap)


async def unsupported(message: Message, request: Request) -> None:
    """Explain what the user can send instead of an unsupported message.

    In a group, do so only if the bot is addressed, and not for a sticker or a GIF.
    """
    say, reaction = request.say, message.sticker or message.animation
    if message.chat.type != "private" and (reaction or not await addressed((message,), request.bot)):
        return
    if message.voice or message.audio or message.video_note:
        text = say("I can't listen to audio. Write your question, and send me a picture to talk about.")
    elif message.video or message.animation or message.sticker:
        text = say("I can't watch videos or animations. Send a photo, or a screenshot of the moment you mean.")
    else:
        text = say("I can't use that. Send me a photo or a picture file, and ask me about it.")
    await request.whisper(text)


async def unknown_tap(query: CallbackQuery, request: Request) -> None:
    """Tell the user that an unknown button, sent by an earlier version of the bot, no longer works."""
    await acknowledge(query, request.say("This button no longer works."))
