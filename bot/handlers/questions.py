"""Pictures and questions, both new and edited. Each gets one final answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aiogram import Router
from aiogram.types import Message

from bot.chat.errors import NoPictureYet, Refused
from bot.chat.question import Question, picture_in, starts_over, text_of
from bot.chat.responder import UNANSWERED, apology
from bot.handlers.request import Request
from bot.i18n import later
from bot.updates.addressing import addressed
from bot.updates.ordering import command_of
from inference.messages import Picture


def router() -> Router:
    """Return the handlers of this module."""
    questions = Router(name="questions")
    questions.message.register(ask, _is_question)
    questions.edited_message.register(ask, _is_question)
    return questions


async def _is_question(message: Message, request: Request) -> bool:
    """Return whether a message is a text other than a command, or has a picture, even next to a video in an album."""
    pictured = any(picture_in(each) for each in request.messages)
    return pictured or bool(message.text and not command_of(message.text))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question on its way to the responder.

    `shown` are the messages that show the answer to its former wording. `starts_over` is set if it begins with /new.
    """

    message: Message
    question: Question
    shown: tuple[int, ...]
    starts_over: bool


async def ask(message: Message, request: Request) -> None:
    """Answer a question, or say why not. The answer to an edited question replaces the earlier answer."""
    services, reply, say = request.services, request.reply, request.say
    if await request.show_recorded():
        return
    asked = await _admit(message, request)
    if asked is None:
        return
    try:
        resolved = await _resolve_target(asked, request)
        if resolved is None:
            return
        question = await _collect_pictures(resolved, request)
    except UNANSWERED as error:
        await reply.adopt(asked.shown)
        await reply.finish(apology(error, say))
        return
    await reply.adopt(asked.shown)
    pictured = asked.question.files or question.files
    placeholder = say("Looking at your picture…") if pictured else say("Thinking…")
    await services.responder.answer(question, reply, say, placeholder)


async def _admit(message: Message, request: Request) -> _Asked | None:
    """Return the question, or None if it is not meant for the bot or is too old to be answered."""
    services, user, say = request.services, request.user, request.say
    chat = message.chat.id
    username = str((await request.bot.me()).username)
    earlier = await services.ledger.replies.for_question(chat, message.message_id) if request.edited else []
    new = not request.edited and starts_over(message, username)
    if message.chat.type != "private" and not (earlier or new or await addressed(request.messages, request.bot)):
        return None
    if services.stale_questions.is_stale(message):
        if services.stale_questions.should_apologise(chat, user.id) or request.reply.begun:
            await request.reply.finish(
                say(
                    "I was offline for a while and didn't answer the messages that came in. If you still want an "
                    "answer, please ask again."
                )
            )
        return None
    services.stale_questions.reset(chat, user.id)
    text = text_of([services.in_flight.newest(each) for each in request.messages], username)
    question = replace(
        request.question(text=text or say(services.settings.chat.default_question)),
        message=message.message_id,
        messages=request.messages,
        files=tuple(file for each in request.messages if (file := picture_in(each))),
        sender=user.id,
    )
    return _Asked(message, question, tuple(each.message for each in earlier if each.message is not None), new)


async def _resolve_target(asked: _Asked, request: Request) -> _Asked | None:
    """Add the exchange that an edited question replaces; return None if the edit changed nothing.

    Raises:
        Refused: The question is too long, or has too many pictures or one that is not accepted.
        DeletedMeanwhile: The person's data was deleted.
    """
    services, question = request.services, asked.question
    settings = services.settings.chat
    former = await services.ledger.exchanges.for_question(question.chat, question.message) if request.edited else None
    if former is not None:
        files = question.files
        pictures: tuple[Picture, ...] = ()
        if len(files) == len(former.pictures) == 1:
            received = await services.pictures.receive_all(files, question.sender, question.update)
            pictures = received if received[0].sha256 != former.pictures[0] else ()
        if former.question == question.text and not pictures:
            # Telegram also reports edits that change nothing visible, such as a link's preview. Besides, a question
            # that was edited while it was in flight has already been answered in its new wording.
            return None
        question = replace(question, files=(), pictures=pictures, replaces=former)
    if len(question.text) > settings.max_question_characters:
        raise Refused(
            later("That's too long: {length} characters, and the limit is {limit}. Please shorten your question."),
            length=len(question.text),
            limit=settings.max_question_characters,
        )
    if len(asked.question.files) > settings.max_pictures:
        raise Refused(
            later("I can look at up to {limit} pictures at once, and you sent {number}. Please send fewer."),
            limit=settings.max_pictures,
            number=len(asked.question.files),
        )
    return replace(asked, question=question)


async def _collect_pictures(asked: _Asked, request: Request) -> Question:
    """Return the question with the pictures it is about, unless its conversation already is about them.

    A reply to a picture is about that picture. A reply to an answer in another conversation is about that answer's
    pictures.

    Raises:
        NoPictureYet: There is no picture to talk about.
        UnknownRecord: A picture was deleted.
    """
    services, question = request.services, asked.question
    if asked.starts_over:
        await services.conversation.restart(question)
    if question.files or question.replaces:
        return question
    to = asked.message.reply_to_message
    elsewhere = asked.message.external_reply  # the replied-to message is in another chat
    if elsewhere and (file := picture_in(elsewhere)):
        question = replace(question, files=(file,))
    elif to and (file := picture_in(to)):
        question = replace(question, files=(file,), sender=(to.from_user or request.user).id)
    elif to and (answered := await services.ledger.exchanges.for_message(question.chat, to.message_id)):
        pictures = await services.conversation.subject(answered, question)
        question = replace(question, pictures=pictures)
    if not (question.files or question.pictures or await services.conversation.has_picture(question)):
        raise NoPictureYet
    return question
