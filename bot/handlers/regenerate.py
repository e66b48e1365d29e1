"""/retry and 🔄 for another answer, and /stop and ⏹ to end the answer that is being written.

During the trial of a canary both models give another answer, and the person may say which one is better.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from random import Random

from aiogram import Router
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import CallbackQuery, Message

from bot.handlers.callbacks import acknowledge, tapped_exchange
from bot.handlers.commands import Command
from bot.handlers.request import Request
from bot.telegram.keyboards import Again, Prefer, Stop, rating_buttons
from storage.chat_records import Exchange
from storage.errors import UnknownRecord
from storage.learning_records import Rating


def router() -> Router:
    """Return the handlers of this module."""
    regenerate = Router(name="regenerate")
    regenerate.message.register(retry, Command("retry"))
    regenerate.message.register(stop, Command("stop"))
    regenerate.callback_query.register(again, Again.filter())
    regenerate.callback_query.register(stop_this, Stop.filter())
    regenerate.callback_query.register(prefer, Prefer.filter())
    return regenerate


async def retry(message: Message, request: Request) -> None:
    """Answer the person's last question in the conversation again."""
    if await request.show_recorded():
        return
    latest = await request.services.conversation.latest(request.question())
    if latest:
        await _answer_again(latest, request)
    else:
        await request.reply.finish(request.say("There's nothing to answer again yet. Send me a picture first."))


async def again(query: CallbackQuery, callback_data: Again, request: Request) -> None:
    """Answer the question above the button again, for the person who asked it."""
    services, say = request.services, request.say
    here = await tapped_exchange(query, callback_data.exchange, request)
    if here is None:
        return
    former, _ = here
    if await request.show_recorded():
        return
    if request.user.id != former.asker and not request.is_admin:
        await acknowledge(query, say("Only the person who asked can do that."))
    elif await services.ledger.exchanges.newest_at(former.position) != former.id:
        await acknowledge(query, say("There's already a newer answer to this question."))
    else:
        await acknowledge(query)
        await _answer_again(former, request)


async def _answer_again(former: Exchange, request: Request) -> None:
    """Answer a question again in a new message. Only the newest answer offers to be regenerated.

    The message quotes the question or, if the question's message is unknown, the message with the tapped button.
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
    """Go on with the better one of two answers, and count a 👍 for it. Only the first choice counts."""
    ledger, say, update = request.services.ledger, request.say, request.delivery.update
    try:
        duel = await ledger.duels.get(callback_data.duel)
    except UnknownRecord:
        await acknowledge(query, say("I can't find that answer any more."))
        return
    here = await tapped_exchange(query, duel.exchange.id, request)
    if here is None:
        return
    if request.user.id != duel.exchange.asker:
        await acknowledge(query, say("Only the person who asked can do that."))
        return
    chosen = await ledger.duels.choose(duel.id, request.user.id, callback_data.choice, update)
    exchange, better = chosen.exchange, bool(chosen.better)
    if better:
        await ledger.votes.cast(Rating(exchange.id, request.user.id, 1, update))
    await acknowledge(query, say("Thanks! I'll go on with that answer.") if better else say("Thanks!"))
    markup = rating_buttons(exchange.id, 1 if better else None, say=say)
    with suppress(TelegramBadRequest):  # the message was deleted meanwhile
        await request.bot.edit_message_reply_markup(
            chat_id=exchange.chat, message_id=here[1].message_id, reply_markup=markup
        )


async def stop(message: Message, request: Request) -> None:
    """End the answers to the person's earlier questions in this chat, and keep the parts that were written."""
    stopped = request.services.in_flight.stop_before(request.question())
    for each in stopped:
        await each.over.wait()
    say = request.say
    await request.reply.finish(say("I've stopped.") if stopped else say("There's nothing to stop."))


async def stop_this(query: CallbackQuery, callback_data: Stop, request: Request) -> None:
    """End the answer above the button, for the person who asked for it. Return once the answer is recorded."""
    services, say, update = request.services, request.say, callback_data.update
    if services.in_flight.find(update) is None:
        shown = await services.ledger.replies.for_update(update)
        if await services.ledger.exchanges.for_update(update) or all(each.final for each in shown):
            await acknowledge(query, say("That answer is already finished."))
            return
    answering = services.in_flight.find(update)  # the answer may have begun meanwhile
    if answering is None:
        services.in_flight.stop_later(update, None if request.is_admin else request.user.id)
    elif request.user.id != answering.question.asker and not request.is_admin:
        await acknowledge(query, say("Only the person who asked can do that."))
        return
    else:
        answering.stop()
    await acknowledge(query, say("Stopping…"))
    if answering is not None:
        await answering.over.wait()
