"""/privacy and /delete_my_data: what is stored of a person, whether it is learned from, and its erasure.

What an erasure deletes is `bot.admin.erasure`'s. Its confirmation is good for some minutes and one tap; an erasure that
a crash interrupts is completed.
"""

from __future__ import annotations

from typing import Final

from aiogram import Router
from aiogram.types import CallbackQuery, InlineKeyboardMarkup, Message

from bot.handlers.callbacks import acknowledge, redraw
from bot.handlers.commands import Command
from bot.handlers.request import Request
from bot.i18n import Say
from bot.telegram.keyboards import Delete, Learn, confirmation, learning
from storage.errors import UnknownRecord
from storage.records import Belongings

COMMANDS: Final = ("privacy", "delete_my_data")

ASKED_SECONDS: Final = 600.0
"""How long the confirmation of an erasure may be tapped."""


def router() -> Router:
    """Return the handlers of this module."""
    private = Router(name="privacy")
    private.message.register(privacy, Command("privacy"))
    private.message.register(ask, Command("delete_my_data"))
    private.callback_query.register(learn_or_not, Learn.filter())
    private.callback_query.register(decided, Delete.filter())
    return private


async def privacy(message: Message, request: Request) -> None:
    """Explain what is stored and why; in a private chat also offer the switch for learning."""
    say, reply = request.say, request.reply
    text = _explanation(say, request.services.settings.storage.retention_days)
    if message.chat.type != "private":
        await reply.finish(f"{text}\n\n{_elsewhere(say)}")
        return
    opted_out = request.person is not None and request.person.opted_out
    await reply.finish(*_with_switch(text, opted_out, say))


async def learn_or_not(query: CallbackQuery, callback_data: Learn, request: Request) -> None:
    """Turn learning from this person on or off, and show it."""
    services, say, opted_out = request.services, request.say, not callback_data.wanted
    await services.ledger.people.set_opted_out(request.user.id, opted_out)
    await acknowledge(query, _state(opted_out, say))
    text = _explanation(say, services.settings.storage.retention_days)
    await redraw(query, request, *_with_switch(text, opted_out, say))


async def ask(message: Message, request: Request) -> None:
    """Show what an erasure would delete, and ask for a confirmation."""
    say, reply = request.say, request.reply
    if message.chat.type != "private":
        await reply.finish(_elsewhere(say))
        return
    buttons = confirmation(say("🗑 Delete all of it"), say("Keep it"), request.delivery.update)
    found = await request.services.erasure.belongings(request.user.id)
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


async def decided(query: CallbackQuery, callback_data: Delete, request: Request) -> None:
    """Erase, or not. A confirmation that is too old, or was tapped before, erases nothing."""
    erasure, say, user, delivery = request.services.erasure, request.say, request.user.id, request.delivery
    if not callback_data.sure:
        text = say("Nothing was deleted.")
    elif await _is_valid(callback_data.update, request):
        gone = await erasure.forget(user, during=delivery.update)
        text = say("I have deleted all that I kept of you.")
        if gone:
            text = say("I have deleted all that I kept of you:\n\n{gone}", gone=_listed(gone, say))
    elif delivery.attempt > 1 and not await erasure.belongings(user):
        # An earlier attempt at this tap has deleted the confirmation with everything else.
        await erasure.settle()
        text = say("I have deleted all that I kept of you.")
    else:
        await acknowledge(query, say("This button does not work any more."))
        return
    await acknowledge(query)
    await redraw(query, request, text, None)


async def _is_valid(confirmation: int, request: Request) -> bool:
    """Return whether that update, of this person, asked for a confirmation a short while ago that is still open."""
    try:
        update = await request.services.ledger.inbox.get(confirmation)
    except UnknownRecord:  # it was deleted in the erasure that it led to
        return False
    recent = request.delivery.received - update.received < ASKED_SECONDS
    return recent and update.lane.endswith(f":{request.user.id}")


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
    """Return what is stored, one kind a line, without the kinds of which there is nothing."""
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
