"""The handler for questions in guest mode, that is, in chats where the bot is not a member.

Each question has one picture and gets one answer. Telegram delivers a message that mentions the bot, and the
message that it replies to (https://core.telegram.org/api/bots/guest-mode).
"""

from __future__ import annotations

from dataclasses import replace

from aiogram import Router
from aiogram.types import Message

from bot.chat.errors import Refused
from bot.chat.question import picture_in, text_of
from bot.chat.responder import UNANSWERED, apology
from bot.handlers.questions import check_size, is_stale
from bot.handlers.request import Request
from bot.i18n import later
from storage.translatable_reason import Reason

NO_PICTURE = later("Mention me in a message with a picture, or in a reply to one.")


def register(router: Router) -> None:
    """Register the handler of this module."""
    router.guest_message.register(ask)


async def ask(message: Message, request: Request) -> None:
    """Answer a question about the picture in a message, or in the message to which it replies."""
    services, reply, say = request.services, request.reply, request.say
    if await request.show_recorded() or await is_stale(message, request):
        return
    to = message.reply_to_message or message.external_reply
    text = text_of([message], str((await request.bot.me()).username)) or say(services.settings.chat.default_question)
    question = request.question(text=text)
    try:
        if file := picture_in(message):
            question = replace(question, files=(file,), sender=request.user.id)
        elif to and (file := picture_in(to)):
            sender = to.from_user if isinstance(to, Message) else None
            question = replace(question, files=(file,), sender=(sender or request.user).id)
        else:
            raise Refused(Reason(NO_PICTURE))
        check_size(question, services.settings.chat)
        await services.conversation.restart(question)  # each question starts a new conversation
    except UNANSWERED as error:
        await reply.finish(apology(error, say))
        return
    await services.responder.answer(question, reply, say, say("Looking at your picture…"))
