"""/retry and 🔄, /stop and ⏹: another answer, and no more of this one."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from aiogram import Bot, Router
from aiogram.types import CallbackQuery, Message, User

from bot.chat.in_flight import Asked, Steering
from bot.chat.responder import Answers
from bot.handlers.callbacks import acknowledge, exchange_here
from bot.handlers.commands import Command
from bot.handlers.feedback import thumbs
from bot.i18n import Say
from bot.settings import BotSettings
from bot.telegram.button_updates import Repaints
from bot.telegram.keyboards import Again, Stop
from bot.telegram.outbox import Place, Reply
from bot.updates.inbox import Delivery
from storage.ledger import Ledger
from storage.records import Exchange

LATEST: Final = 64
"""So far back /retry looks for a question of the person's own; in a shared conversation others' stand between."""


def router() -> Router:
    """The handlers of this module."""
    steering = Router(name="steering")
    steering.message.register(retry, Command("retry"))
    steering.message.register(stop, Command("stop"))
    steering.callback_query.register(again, Again.filter())
    steering.callback_query.register(stop_this, Stop.filter())
    return steering


async def retry(
    message: Message,
    event_from_user: User,
    bot: Bot,
    delivery: Delivery,
    reply: Reply,
    say: Say,
    settings: BotSettings,
    ledger: Ledger,
    answers: Answers,
    repaints: Repaints,
) -> None:
    """Answer the person's last question of the conversation once more."""
    if recorded := await ledger.exchanges.for_update(delivery.update):
        await answers.show_again(recorded, reply, say)
        return
    place, by = reply.place, event_from_user.id
    session = await ledger.sessions.find(place.chat, settings.chat.talker(place.chat, by), place.topic or 0)
    said = await ledger.exchanges.history(session, LATEST) if session is not None else []
    latest = next((each for each in reversed(said) if each.asker == by), None)
    if latest:
        await _answer_again(latest, by, place, bot, delivery, say, ledger, answers, repaints)
    else:
        await reply.finish(say("There is no answer yet that I could give again. Send me a picture first!"))


async def again(
    query: CallbackQuery,
    callback_data: Again,
    bot: Bot,
    delivery: Delivery,
    say: Say,
    settings: BotSettings,
    ledger: Ledger,
    answers: Answers,
    repaints: Repaints,
) -> None:
    """Answer the question of a certain answer once more, for who asked it."""
    by, here = query.from_user.id, await exchange_here(ledger, callback_data.exchange, query)
    if here is None:
        await acknowledge(query, say("I cannot find that answer any more."))
        return
    former, message = here
    if recorded := await ledger.exchanges.for_update(delivery.update):
        await answers.show_again(recorded, await Reply.open(bot, ledger, delivery.update, Place.of(message)), say)
    elif by != former.asker and by not in settings.telegram.admins:
        await acknowledge(query, say("Only who asked can do that."))
    elif await ledger.exchanges.newest_at(former.place) != former.id:
        await acknowledge(query, say("There is a newer answer to this question already."))
    else:
        await acknowledge(query, "")
        await _answer_again(former, by, Place.of(message), bot, delivery, say, ledger, answers, repaints)


async def _answer_again(
    former: Exchange,
    by: int,
    place: Place,
    bot: Bot,
    delivery: Delivery,
    say: Say,
    ledger: Ledger,
    answers: Answers,
    repaints: Repaints,
) -> None:
    """Answer a question again, on a new message that quotes it; only the newest answer offers another one.

    `place` has the message that asked for it, quoted where the question's own is not known any more.
    """
    shown = await ledger.replies.for_update(former.update)
    question = next((each.question for each in shown if each.question), place.question)
    reply = await Reply.open(bot, ledger, delivery.update, replace(place, question=question, quotes=True))
    asked = Asked(delivery.update, place.chat, place.topic or 0, by, 0, delivery.received)
    found = await answers.again(former, asked, reply, say)
    if found is None or not shown or (message := shown[-1].message) is None:
        return
    repaints.want(place.chat, message, lambda: thumbs(former, ledger, say, by))


async def stop(
    message: Message, event_from_user: User, delivery: Delivery, reply: Reply, say: Say, steering: Steering
) -> None:
    """End what the person has asked here before: what came of it is kept."""
    wish = Asked(
        delivery.update,
        message.chat.id,
        reply.place.topic or 0,
        event_from_user.id,
        message.message_id,
        delivery.received,
    )
    found = steering.stop_all(wish)
    for each in found:
        await each.over.wait()
    await reply.finish(say("I have stopped.") if found else say("There is nothing to stop."))


async def stop_this(
    query: CallbackQuery, callback_data: Stop, say: Say, settings: BotSettings, ledger: Ledger, steering: Steering
) -> None:
    """End the answer above the button, for who asked for it. Done when the ledger has what came of it."""
    by, update = query.from_user.id, callback_data.update
    anybodys = by in settings.telegram.admins
    if steering.find(update) is None:
        shown = await ledger.replies.for_update(update)
        if await ledger.exchanges.for_update(update) or all(each.final for each in shown):
            await acknowledge(query, say("That answer is finished already."))
            return
    underway = steering.find(update)  # once more: it may have begun meanwhile
    if underway is None:
        steering.stop_later(update, None if anybodys else by)
    elif by != underway.asked.asker and not anybodys:
        await acknowledge(query, say("Only who asked can do that."))
        return
    else:
        underway.stop()
    await acknowledge(query, say("Stopping…"))
    if underway is not None:
        await underway.over.wait()
