"""/privacy and /delete_my_data: what is kept of a person, whether they are learned from, and how all of it goes.

Knows how it is said and confirmed; what goes, `Forgetting` knows. A deletion is asked about once: the question is
good for some minutes and for one tap, and after a crash the deletion that was confirmed is completed.
"""

from __future__ import annotations

from typing import Final

from aiogram import Bot, Router
from aiogram.types import CallbackQuery, InlineKeyboardMarkup, Message, User

from bot.admin.erasure import Forgetting
from bot.handlers.callbacks import acknowledge, redraw
from bot.handlers.commands import Command
from bot.i18n import Say
from bot.settings import BotSettings
from bot.telegram.keyboards import Delete, Learn, confirmation, learning
from bot.telegram.outbox import Reply
from bot.updates.inbox import Delivery
from storage.errors import UnknownRecord
from storage.ledger import Ledger
from storage.records import Belongings

COMMANDS: Final = ("privacy", "delete_my_data")
ASKED_SECONDS: Final = 600.0


def router() -> Router:
    """The handlers of this module."""
    private = Router(name="privacy")
    private.message.register(privacy, Command("privacy"))
    private.message.register(ask, Command("delete_my_data"))
    private.callback_query.register(learn_or_not, Learn.filter())
    private.callback_query.register(decided, Delete.filter())
    return private


async def privacy(
    message: Message, event_from_user: User, reply: Reply, say: Say, settings: BotSettings, ledger: Ledger
) -> None:
    """Say what is kept and why; in a private chat also whether this person is learned from, with the switch."""
    text = _explanation(say, settings.storage.retention_days)
    if message.chat.type != "private":
        await reply.finish(f"{text}\n\n{_elsewhere(say)}")
        return
    person = await ledger.people.get(event_from_user.id)
    opted_out = person is not None and person.opted_out
    await reply.finish(*_with_switch(text, opted_out, say))


async def learn_or_not(
    query: CallbackQuery, callback_data: Learn, bot: Bot, ledger: Ledger, say: Say, settings: BotSettings
) -> None:
    """Turn learning from this person on or off, and show it."""
    opted_out = not callback_data.wanted
    await ledger.people.set_opted_out(query.from_user.id, opted_out)
    await acknowledge(query, _state(opted_out, say))
    text = _explanation(say, settings.storage.retention_days)
    await redraw(query, bot, *_with_switch(text, opted_out, say))


async def ask(
    message: Message, event_from_user: User, delivery: Delivery, reply: Reply, say: Say, forgetting: Forgetting
) -> None:
    """Show what would go, and ask once."""
    if message.chat.type != "private":
        await reply.finish(_elsewhere(say))
        return
    buttons = confirmation(say("🗑 Delete all of it"), say("Keep it"), delivery.update)
    found = await forgetting.belongings(event_from_user.id)
    if not found:
        text = say(
            "I keep no question, picture or thumb of yours: there is nothing to delete but your name, your language "
            "and what you have chosen in /privacy. Shall I delete those?"
        )
        await reply.finish(text, buttons)
        return
    text = say(
        "Shall I delete what I keep of you, for good?\n\n"
        "{found}\n\n"
        "It all goes, with your name, your language, the thumbs that others gave to your answers, and what others "
        "asked about pictures that only you have sent. We begin anew then. A model that has learned from it already "
        "keeps what it has learned until the next one is trained, without you. Copies that my operator has made, and "
        "what stands in this chat, I cannot delete.",
        found=_listed(found, say),
    )
    await reply.finish(text, buttons)


async def decided(
    query: CallbackQuery,
    callback_data: Delete,
    bot: Bot,
    delivery: Delivery,
    ledger: Ledger,
    forgetting: Forgetting,
    say: Say,
) -> None:
    """Delete, or not. A question that is too old, or was answered before, deletes nothing."""
    asked = callback_data.update
    if not callback_data.sure:
        text = say("Nothing was deleted.")
    elif await _good(ledger, asked, query.from_user.id, delivery):
        gone = await forgetting.forget(query.from_user.id, during=delivery.update)
        text = say("I have deleted all that I kept of you.")
        if gone:
            text = say("I have deleted all that I kept of you:\n\n{gone}", gone=_listed(gone, say))
    elif delivery.attempt > 1 and not await forgetting.belongings(query.from_user.id):
        # The question went with everything else when this very tap was handled before.
        await forgetting.settle()
        text = say("I have deleted all that I kept of you.")
    else:
        await acknowledge(query, say("This button does not work any more."))
        return
    await acknowledge(query, "")
    await redraw(query, bot, text, None)


async def _good(ledger: Ledger, asked: int, person: int, delivery: Delivery) -> bool:
    """Whether that update asked for a deletion a short while ago, came from this person, and was not answered yet."""
    try:
        update = await ledger.inbox.get(asked)
    except UnknownRecord:  # it went with all that was deleted
        return False
    return update.lane.endswith(f":{person}") and delivery.received - update.received < ASKED_SECONDS


def _with_switch(text: str, opted_out: bool, say: Say) -> tuple[str, InlineKeyboardMarkup]:
    buttons = learning(say("You may learn from me"), say("Do not learn from me"), opted_out)
    return f"{text}\n\n{_state(opted_out, say)}", buttons


def _state(opted_out: bool, say: Say) -> str:
    if opted_out:
        return say("I do not learn from you: neither from your questions and answers nor from your thumbs.")
    return say("I learn from what you like, together with what others like.")


def _explanation(say: Say, retention_days: int) -> str:
    text = say(
        "What I keep: your questions and pictures and my answers, so that you can ask on; your thumbs and the better "
        "answers that you show me, since from what is liked I learn when I am retrained; your name, user id and "
        "language, to speak with you; and the numbers of our messages, so that none is answered twice. My operator "
        "stores it. Of a group I keep its name, and nothing of what is not said to me."
    )
    if retention_days:
        text += "\n\n" + say.count(
            "What nobody rated I delete after {number} day.",
            "What nobody rated I delete after {number} days.",
            retention_days,
        )
    else:
        text += "\n\n" + say("I keep it until you have me delete it.")
    return text + " " + say("/delete_my_data deletes all that I keep of you, at any time.")


def _elsewhere(say: Say) -> str:
    return say("Send me /privacy or /delete_my_data in our private chat: it is between the two of us.")


def _listed(found: Belongings, say: Say) -> str:
    """What there is, one thing a line, without what there is none of."""
    lines = {
        say.count(
            "· {number} question with its answer", "· {number} questions with their answers", found.exchanges
        ): found.exchanges,
        say.count(
            "· {number} picture that nobody else sent", "· {number} pictures that nobody else sent", found.pictures
        ): found.pictures,
        say.count("· {number} thumb", "· {number} thumbs", found.votes): found.votes,
        say.count(
            "· {number} better answer that you have shown me",
            "· {number} better answers that you have shown me",
            found.demonstrations,
        ): found.demonstrations,
        say.count(
            "· {number} row in what models were trained on",
            "· {number} rows in what models were trained on",
            found.rows,
        ): found.rows,
    }
    return "\n".join(line for line, number in lines.items() if number)
