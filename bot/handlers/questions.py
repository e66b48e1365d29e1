"""Handlers for pictures and questions, both new and edited. Each question gets one final answer."""

from __future__ import annotations

from dataclasses import replace

from aiogram import Router
from aiogram.types import Message

from bot.chat.errors import NoPictureYet, Refused
from bot.chat.question import Question, picture_in, starts_over, text_of
from bot.chat.responder import UNANSWERED, apology
from bot.handlers.picture_topics import ASK_THERE, in_own_topic, may_open
from bot.handlers.request import Request
from bot.settings import ChatSettings
from bot.updates.addressing import addressed
from bot.updates.ordering import command_of
from inference.messages import Picture
from storage.translatable_reason import Reason


def register(router: Router) -> None:
    """Register the handlers of this module."""
    router.message.register(ask, _is_question)
    router.edited_message.register(ask, _is_question)


async def _is_question(message: Message, request: Request) -> bool:
    """Return whether a message is a question.

    A question is a text other than a command, or a message or album with a picture, even if the album also
    contains a video.
    """
    pictured = any(picture_in(each) for each in request.messages)
    return pictured or bool(message.text and not command_of(message.text))


async def ask(message: Message, request: Request) -> None:
    """Answer a question, or explain why it cannot be answered.

    The answer to an edited question replaces the earlier answer.
    """
    services, reply, say = request.services, request.reply, request.say
    if await request.show_recorded():
        return
    username = str((await request.bot.me()).username)
    earlier = await services.ledger.replies.for_question(message.chat.id, message.message_id) if request.edited else []
    new = not request.edited and starts_over(message, username)
    if earlier and earlier[0].topic:
        reply.place = replace(reply.place, topic=earlier[0].topic)
    if message.chat.type != "private" and not (earlier or new or await addressed(request.messages, request.bot)):
        return
    if await is_stale(message, request):
        return
    text = text_of([services.in_flight.newest(each) for each in request.messages], username)
    asked = replace(
        request.question(text=text or say(services.settings.chat.default_question)),
        message=message.message_id,
        messages=request.messages,
        files=tuple(file for each in request.messages if (file := picture_in(each))),
        sender=request.user.id,
    )
    shown = [each.message for each in earlier if each.message is not None]
    try:
        question = await _edited(asked, request) if request.edited else asked
        if question is None:
            return
        check_size(asked, services.settings.chat)
        if question.files and not request.edited:
            question = await in_own_topic(question, request)
        if new:
            await services.conversation.restart(question)
        if not (question.files or question.replaces):
            question = await _about(message, question, request)
    except UNANSWERED as error:
        await reply.adopt(shown)
        await request.whisper(apology(error, say))
        return
    await reply.adopt(shown)
    placeholder = say("Looking at your picture…") if asked.files or question.files else say("Thinking…")
    await services.responder.answer(question, reply, say, placeholder)


async def is_stale(message: Message, request: Request) -> bool:
    """Return whether a message is too old to be answered.

    If so, reply with a request to ask again, unless the sender has already received one.
    """
    stale, say, chat = request.services.stale_questions, request.say, message.chat.id
    if not stale.is_stale(message):
        stale.reset(chat, request.user.id)
        return False
    if stale.should_apologize(chat, request.user.id) or request.reply.begun:
        await request.whisper(
            say(
                "I was offline for a while and didn't answer the messages that came in. If you still want an "
                "answer, please ask again."
            )
        )
    return True


async def _edited(asked: Question, request: Request) -> Question | None:
    """Return the edited question `asked` with the exchange that it replaces.

    If there is no such exchange, `asked` is returned unchanged.

    Returns:
        The question, or None if the edit changed nothing visible.

    Raises:
        Refused: The new picture is not accepted.
        DeletedMeanwhile: The user's data was deleted.
    """
    services = request.services
    former = await services.ledger.exchanges.for_question(asked.chat, asked.message)
    if former is None:
        return asked
    pictures: tuple[Picture, ...] = ()
    if len(asked.files) == len(former.pictures) == 1:
        received = await services.pictures.receive_all(asked.files, asked.sender, asked.update)
        pictures = received if received[0].sha256 != former.pictures[0] else ()
    if former.question == asked.text and not pictures:
        # Telegram also reports edits that change nothing visible, such as a new link preview. Besides, a question
        # that was edited while it was in flight has already been answered in its new wording.
        return None
    return replace(asked, files=(), pictures=pictures, replaces=former)


def check_size(question: Question, settings: ChatSettings) -> None:
    """Raise Refused if a question is too long or has too many pictures."""
    if len(question.text) > settings.max_question_characters:
        raise Refused(
            Reason(
                "That's too long: {length} characters, and the limit is {limit}. Please shorten your question.",
                length=len(question.text),
                limit=settings.max_question_characters,
            )
        )
    if len(question.files) > settings.max_pictures:
        raise Refused(
            Reason(
                "I can look at up to {limit} pictures at once, and you sent {number}. Please send fewer.",
                limit=settings.max_pictures,
                number=len(question.files),
            )
        )


async def _about(message: Message, question: Question, request: Request) -> Question:
    """Return the question, adding the pictures it is about unless its conversation is already about them.

    A reply to a picture is about that picture. A reply to an answer in another conversation is about the
    answer's pictures.

    Raises:
        NoPictureYet: There is no picture to talk about.
        Refused: The pictures have topics of their own.
        UnknownRecord: A picture was deleted.
    """
    services = request.services
    to = message.reply_to_message
    elsewhere = message.external_reply  # the replied-to message is in another chat
    if elsewhere and (file := picture_in(elsewhere)):
        question = replace(question, files=(file,))
    elif to and (file := picture_in(to)):
        question = replace(question, files=(file,), sender=(to.from_user or request.user).id)
    elif to and (answered := await services.ledger.exchanges.for_message(question.chat, to.message_id)):
        pictures = await services.conversation.subject(answered, question)
        question = replace(question, pictures=pictures)
    if not (question.files or question.pictures or await services.conversation.has_picture(question)):
        if await may_open(request):
            raise Refused(Reason(ASK_THERE))
        raise NoPictureYet
    return question
