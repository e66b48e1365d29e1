"""Handlers for /privacy and /delete_my_data, with which users control and erase their stored data.

Users can also choose whether the bot learns from them. `bot.admin.erasure` erases the data. A
confirmation can be used once, within a few minutes. An erasure interrupted by a crash is completed
later.
"""

from __future__ import annotations

from typing import Final

from aiogram import Router
from aiogram.types import CallbackQuery, InlineKeyboardMarkup, Message

from bot.handlers.button_taps import TapRefused, acknowledge, redraw
from bot.handlers.commands import Command
from bot.handlers.request import Request
from bot.i18n import Say
from bot.telegram.callback_data import Delete, Learn, LearnAsGuest, Notes
from bot.telegram.keyboards import deletion_buttons, privacy_buttons
from storage.chat_records import Person
from storage.errors import UnknownRecord
from storage.personal_data import PersonalDataSummary

COMMANDS: Final = ("privacy", "delete_my_data")

ASKED_SECONDS: Final = 600.0
"""How long the confirmation of an erasure is valid."""


def register(router: Router) -> None:
    """Register the handlers of this module."""
    router.message.register(privacy, Command("privacy"))
    router.message.register(ask, Command("delete_my_data"))
    router.callback_query.register(learn_or_not, Learn.filter())
    router.callback_query.register(learn_as_guest_or_not, LearnAsGuest.filter())
    router.callback_query.register(note_or_not, Notes.filter())
    router.callback_query.register(decided, Delete.filter())


async def privacy(message: Message, request: Request) -> None:
    """Explain what is stored and why; in a private chat, also offer buttons to turn learning on or off."""
    if message.chat.type == "private":
        await request.reply.finish(*_with_switches(request.person or Person(request.user.id), request))
    else:
        await request.reply.finish(f"{_explanation(request)}\n\n{_elsewhere(request.say)}")


async def learn_or_not(query: CallbackQuery, callback_data: Learn, request: Request) -> None:
    """Turn learning from this user on or off, and show the choice."""
    opted_out = not callback_data.wanted
    await request.services.ledger.people.set_opted_out(request.user.id, opted_out)
    await acknowledge(query, _state(opted_out, request.say))
    await _redraw(query, request)


async def learn_as_guest_or_not(query: CallbackQuery, callback_data: LearnAsGuest, request: Request) -> None:
    """Allow or forbid learning from this user's questions in chats where the bot is a guest, and show the choice."""
    await request.services.ledger.people.set_teaches_as_guest(request.user.id, bool(callback_data.wanted))
    await acknowledge(query)
    await _redraw(query, request)


async def note_or_not(query: CallbackQuery, callback_data: Notes, request: Request) -> None:
    """Turn the user's notifications on or off, and show the choice.

    The notifications are about models that learned from the user.
    """
    await request.services.ledger.people.set_wants_notes(request.user.id, bool(callback_data.wanted))
    await acknowledge(query)
    await _redraw(query, request)


async def _redraw(query: CallbackQuery, request: Request) -> None:
    person = await request.services.ledger.people.get(request.user.id) or Person(request.user.id)
    await redraw(query, request, *_with_switches(person, request))


async def ask(message: Message, request: Request) -> None:
    """Show what an erasure would delete, and ask the user for confirmation."""
    say, reply = request.say, request.reply
    if message.chat.type != "private":
        await request.whisper(_elsewhere(say))
        return
    buttons = deletion_buttons(say("🗑 Delete everything"), say("Keep it"), request.delivery.update)
    found = await request.services.ledger.personal_data.count(request.user.id)
    if not found:
        text = say(
            "I store no questions, pictures or votes of yours, only your name, your language and your choice in "
            "/privacy. Delete those?"
        )
        await reply.finish(text, buttons)
        return
    text = say(
        "Permanently delete everything I store about you?\n\n{found}\n\nThis includes your name and language, the "
        "votes others gave to your answers, and the questions others asked about pictures that only you sent. A model "
        "that has already learned from your data keeps what it learned until the next one is trained without that "
        "data. I can't delete my operator's backups or the messages in this chat.",
        found=_listed(found, say),
    )
    await reply.finish(text, buttons)


async def decided(query: CallbackQuery, callback_data: Delete, request: Request) -> None:
    """Erase the user's data if the tapped button confirms the erasure.

    A confirmation that is too old or was already used erases nothing.
    """
    erasure, say, user, delivery = request.services.erasure, request.say, request.user.id, request.delivery
    if not callback_data.sure:
        text = say("Nothing was deleted.")
    elif await _is_valid(callback_data.update, request):
        gone = await erasure.forget(user, during=delivery.update)
        text = say("I've deleted everything I stored about you.")
        if gone:
            text = say("I've deleted everything I stored about you:\n\n{gone}", gone=_listed(gone, say))
    elif delivery.attempt > 1 and not await request.services.ledger.personal_data.count(user):
        # An earlier attempt at this tap has deleted the confirmation with everything else.
        await erasure.settle()
        text = say("I've deleted everything I stored about you.")
    else:
        raise TapRefused(say("This button no longer works."))
    await acknowledge(query)
    await redraw(query, request, text, None)


async def _is_valid(confirmation: int, request: Request) -> bool:
    """Return whether the update that asked for the erasure is the user's own, still stored, and recent."""
    try:
        update = await request.services.ledger.inbox.get(confirmation)
    except UnknownRecord:  # deleted by the erasure that it requested
        return False
    recent = request.delivery.received - update.received < ASKED_SECONDS
    return recent and update.lane.endswith(f":{request.user.id}")


def _with_switches(person: Person, request: Request) -> tuple[str, InlineKeyboardMarkup]:
    say, guests = request.say, request.services.settings.chat.guests
    text = f"{_explanation(request)}\n\n{_state(person.opted_out, say)}"
    if guests and not person.opted_out:
        text += "\n\n" + (
            say("I also learn from what you ask in chats where I'm only a guest.")
            if person.teaches_as_guest
            else say("In chats where I'm only a guest I store your questions too, but I don't learn from them.")
        )
    return text, privacy_buttons(person, say, guests=guests)


def _state(opted_out: bool, say: Say) -> str:
    if opted_out:
        return say("I don't learn from you: not from your questions, my answers to them, or your votes.")
    return say("I learn from what you and others like.")


def _explanation(request: Request) -> str:
    say, retention_days = request.say, request.services.settings.storage.retention_days
    text = say(
        "What I store: your questions, your pictures and my answers, so that you can ask follow-up questions; your "
        "votes and corrections, because I learn from what people like when I'm retrained; your name, user ID and "
        "language, so that I can talk with you; and the IDs of our messages, so that none is answered twice. My "
        "operator keeps this data. For a group, I store its name, but no messages that aren't addressed to me."
    )
    if retention_days:
        kept = say.count(
            "After {number} day, I delete anything that nobody has rated.",
            "After {number} days, I delete anything that nobody has rated.",
            retention_days,
        )
    else:
        kept = say("I keep it until you delete it.")
    kept = say.joined(kept, say("You can send /delete_my_data at any time to delete everything I store about you."))
    return f"{text}\n\n{kept}"


def _elsewhere(say: Say) -> str:
    return say("Please send /privacy or /delete_my_data in our private chat, where nobody else sees my reply.")


def _listed(found: PersonalDataSummary, say: Say) -> str:
    """Return how much data of each kind is stored, one kind per line, omitting kinds with no data."""
    lines = {
        say.count(
            "· {number} question with its answer", "· {number} questions with their answers", found.exchanges
        ): found.exchanges,
        say.count(
            "· {number} picture that only you sent", "· {number} pictures that only you sent", found.pictures
        ): found.pictures,
        say.count("· {number} vote", "· {number} votes", found.votes): found.votes,
        say.count("· {number} correction", "· {number} corrections", found.corrections): found.corrections,
        say.count("· {number} training example", "· {number} training examples", found.rows): found.rows,
    }
    return "\n".join(line for line, number in lines.items() if number)
