"""Forum topics for pictures in private chats, if turned on in the settings and in @BotFather."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import structlog

from bot.chat.question import Question
from bot.handlers.request import Request
from bot.i18n import later
from bot.telegram.errors import CALL_ERRORS

LONGEST_NAME: Final = 128
"""The longest name of a topic (https://core.telegram.org/bots/api#createforumtopic)."""

ASK_THERE: Final = later("Ask in the topic of a picture, or send me a new picture.")

log = structlog.get_logger()


async def may_open(request: Request) -> bool:
    """Return whether a new picture opens a topic in the chat of the request."""
    place = request.reply.place
    wanted = request.services.settings.chat.picture_threads and place.chat > 0 and place.topic is None
    return wanted and bool((await request.bot.me()).has_topics_enabled)


async def in_own_topic(question: Question, request: Request) -> Question:
    """Move a question and its reply to a new topic named after the question, and return the moved question.

    In a group, in a topic that the user has chosen, or if Telegram cannot create a topic, return the question
    unchanged. If the bot crashes before it has recorded the reply, an empty topic remains.
    """
    place = request.reply.place
    if not await may_open(request):
        return question
    name = " ".join(question.text.split())[:LONGEST_NAME]
    try:
        topic = (await request.bot.create_forum_topic(chat_id=place.chat, name=name)).message_thread_id
    except CALL_ERRORS as error:
        log.info("no topic could be opened for a picture", update=question.update, error=str(error))
        return question
    request.reply.place = replace(place, topic=topic)
    return replace(question, topic=topic)
