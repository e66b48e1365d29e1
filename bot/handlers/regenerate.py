"""Handlers for /retry and 🔄, which give another answer, and /stop and ⏹, which end an unfinished one.

During the trial of a canary, the live model and the canary both give another answer, and the user may
choose the better one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from random import Random

from aiogram import Router
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import CallbackQuery, Message

from bot.handlers.button_taps import TapRefused, acknowledge, tapped_exchange
from bot.handlers.commands import Command
from bot.handlers.feedback import show_vote
from bot.handlers.request import Request
from bot.telegram.callback_data import Again, Prefer, Stop
from bot.telegram.keyboards import rating_buttons
from storage.chat_records import Exchange


def register(router: Router) -> None:
    """Register the handlers of this module."""
    router.message.register(retry, Command("retry"))
    router.message.register(stop, Command("stop"))
    router.callback_query.register(again, Again.filter())
    router.callback_query.register(stop_this, Stop.filter())
    router.callback_query.register(prefer, Prefer.filter())


async def retry(message: Message, request: Request) -> None:
    """Answer the user's last question in the conversation again."""
    if await request.show_recorded():
        return
    latest = await request.services.conversation.latest(request.question())
    if latest:
        await _answer_again(latest, request)
    else:
        await request.whisper(request.say("There's nothing to answer again yet. Send me a picture first."))


async def again(query: CallbackQuery, callback_data: Again, request: Request) -> None:
    """Answer a question again if an admin or the user who asked it tapped the button below the answer."""
    services, say = request.services, request.say
    former, _ = await tapped_exchange(query, callback_data.exchange, request)
    if await request.show_recorded():
        return
    if request.user.id != former.asker and not request.is_admin:
        raise TapRefused(say("Only the person who asked can do that."))
    if await services.ledger.exchanges.newest_at(former.position) != former.id:
        raise TapRefused(say("There's already a newer answer to this question."))
    await acknowledge(query)
    await _answer_again(former, request)


async def _answer_again(former: Exchange, request: Request) -> None:
    """Answer a question again in a new message.

    The message quotes the question or, if the question's message is unknown, the message with the tapped
    button. Only the newest answer to a question has a button to regenerate it.
    """
    services, reply, say = request.services, request.reply, request.say
    shown = await services.ledger.replies.for_update(former.update)
    quoted = next((each.question for each in shown if each.question), reply.place.question)
    reply.place = replace(reply.place, question=quoted, quotes=True)
    question = request.question(text=former.question, replaces=former)
    if trial := await services.ledger.canaries.running():
        models = [trial.live, trial.model]
        Random(request.delivery.update).shuffle(models)
        question = replace(question, models=tuple(models))
    exchange = await services.responder.answer(question, reply, say, say("Let me think again…"))
    if exchange and shown and (last := shown[-1].message):
        services.buttons.update(former, last, request.user.id, say)


async def prefer(query: CallbackQuery, callback_data: Prefer, request: Request) -> None:
    """Record which of two answers a user prefers.

    The conversation continues with the preferred answer, which gets the user's 👍. Only the first choice
    counts.
    """
    ledger, say = request.services.ledger, request.say
    duel = await ledger.duels.get(callback_data.duel)
    _, message = await tapped_exchange(query, duel.exchange.id, request)
    if request.user.id != duel.exchange.asker:
        raise TapRefused(say("Only the person who asked can do that."))
    chosen = await ledger.duels.choose(duel.id, request.user.id, callback_data.choice, request.delivery.update)
    await acknowledge(query, say("Thanks! I'll continue from that answer.") if chosen.better else say("Thanks!"))
    vote = await ledger.votes.latest(chosen.exchange.id, request.user.id)
    if callback_data.choice:
        await _show_choice(message, chosen.exchange, callback_data.choice, request)
    await show_vote(chosen.exchange, message.message_id, vote or 0, request)


async def _show_choice(message: Message, chosen: Exchange, choice: int, request: Request) -> None:
    """Replace the question below two answers with a statement of which one was chosen."""
    answers = (message.text or "").rpartition("\n\n")[0]
    said = request.say("You chose {answer}.", answer=("1️⃣", "2️⃣")[choice - 1])
    with suppress(TelegramBadRequest):  # the message was deleted in the meantime
        await request.bot.edit_message_text(
            f"{answers}\n\n{said}",
            chat_id=message.chat.id,
            message_id=message.message_id,
            entities=message.entities,
            reply_markup=rating_buttons(chosen.id, say=request.say),
        )


async def stop(message: Message, request: Request) -> None:
    """Stop the answers to the user's earlier questions in this chat, keeping the parts already written."""
    stopped = request.services.in_flight.stop_before(request.question())
    for each in stopped:
        await each.over.wait()
    say = request.say
    await request.reply.finish(say("I've stopped.") if stopped else say("There's nothing to stop."))


async def stop_this(query: CallbackQuery, callback_data: Stop, request: Request) -> None:
    """Stop the answer above the tapped button if an admin or the user who asked tapped the button.

    Return once the stopped answer is recorded.
    """
    services, say, update = request.services, request.say, callback_data.update
    if services.in_flight.find(update) is None:
        shown = await services.ledger.replies.for_update(update)
        if await services.ledger.exchanges.for_update(update) or all(each.final for each in shown):
            raise TapRefused(say("That answer is already finished."))
    answering = services.in_flight.find(update)  # the answer may have begun in the meantime
    if answering is None:
        services.in_flight.stop_later(update, None if request.is_admin else request.user.id)
    elif request.user.id != answering.question.asker and not request.is_admin:
        raise TapRefused(say("Only the person who asked can do that."))
    else:
        answering.stop()
    await acknowledge(query, say("Stopping…"))
    if answering is not None:
        await answering.over.wait()
