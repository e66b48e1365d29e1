"""The bot's inline keyboards."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from aiogram.filters.callback_data import CallbackData
from aiogram.types import InlineKeyboardButton, InlineKeyboardMarkup, WebAppInfo

from bot.i18n import Say
from bot.telegram.callback_data import (
    REASONS,
    THUMBS,
    Again,
    Approve,
    Asks,
    Because,
    Better,
    Delete,
    DislikeReason,
    Judge,
    Learn,
    LearnAsGuest,
    Notes,
    Prefer,
    Promote,
    Rate,
    ReviewAction,
    RollBack,
    Speak,
    StopCanary,
    Teach,
)
from storage.chat_records import Person

AGAIN: Final = "🔄"
CHOSEN: Final = " ✓"


def one_button(text: str, data: CallbackData) -> InlineKeyboardMarkup:
    """Return a keyboard with one button."""
    return InlineKeyboardMarkup(inline_keyboard=[[_button(text, data)]])


def mini_app_button(text: str, url: str) -> InlineKeyboardMarkup:
    """Return a button that opens a Mini App. Telegram allows it in private chats only."""
    return InlineKeyboardMarkup(inline_keyboard=[[InlineKeyboardButton(text=text, web_app=WebAppInfo(url=url))]])


def rating_buttons(
    exchange: int,
    chosen: int | None = None,
    *,
    say: Say,
    tally: tuple[int, int] | None = None,
    reason: DislikeReason | None = None,
    newest: bool = True,
    compare: bool = False,
) -> InlineKeyboardMarkup:
    """Return 👍 and 👎 buttons for an exchange, and 🔄 if it has the `newest` answer to the question.

    The `chosen` thumb is marked. A 👎 adds buttons for the reason and for a better answer. In a group,
    `tally` gives the counts of 👍 and 👎. With `compare`, 🔄 gets a row of its own and says that it leads to
    a comparison of two answers.
    """
    ups, downs = tally or (0, 0)
    row = _thumbs(exchange, chosen, (ups, downs))
    rows = [row]
    if compare:
        rows.append([_button(say("🔄 Compare two answers"), Again(exchange=exchange))])
    elif newest:
        row.append(_button(AGAIN, Again(exchange=exchange)))
    if chosen == -1:
        whys = [
            _button(say(words) + (CHOSEN if each is reason else ""), Because(exchange=exchange, reason=each))
            for each, words in REASONS.items()
        ]
        rows += [whys[:2], whys[2:]]
    if chosen == -1 or downs:
        rows.append([_button(say("✍ Suggest a better answer"), Better(exchange=exchange))])
    return InlineKeyboardMarkup(inline_keyboard=rows)


def guest_buttons(exchange: int, tally: tuple[int, int] = (0, 0)) -> InlineKeyboardMarkup:
    """Return the 👍 and 👎 buttons, with their counts, for an answer that the bot gave as a guest."""
    return InlineKeyboardMarkup(inline_keyboard=[_thumbs(exchange, None, tally)])


def duel_buttons(duel: int, say: Say) -> InlineKeyboardMarkup:
    """Return the buttons with which the user chooses one of two answers, or neither."""
    choices = ((1, "1️⃣"), (2, "2️⃣"), (0, say("The same")))
    row = [_button(text, Prefer(duel=duel, choice=choice)) for choice, text in choices]
    return InlineKeyboardMarkup(inline_keyboard=[row])


def correction_buttons(
    correction: int, say: Say, *, wanted: bool | None = None, can_confirm: bool = True, doubtful: bool = False
) -> InlineKeyboardMarkup:
    """Return the buttons that accept or reject a correction, marking the decision `wanted`, if there is one.

    Without `can_confirm`, for an author who may only withdraw the correction, the button that accepts it is left out.
    A `doubtful` correction, which may have been meant as a question, also gets a button that says so.
    """
    words = {True: say("👍 Learn from it"), False: say("👎 Don't") if can_confirm else say("👎 Don't learn it")}
    row = [
        _button(text + (CHOSEN if value is wanted else ""), Teach(correction=correction, wanted=int(value)))
        for value, text in words.items()
        if can_confirm or not value
    ]
    asks = [[_button(say("❓ That was a question"), Asks(correction=correction))]] if doubtful else []
    return InlineKeyboardMarkup(inline_keyboard=[row, *asks])


def review_buttons(exchange: int, say: Say, *, chosen: str = "") -> InlineKeyboardMarkup:
    """Return the buttons that keep or drop an answer as a training example, or go on to the next one.

    If there is a decision, `chosen`, its button is marked, and another button undoes it.
    """
    words = {ReviewAction.KEEP: say("✓ Keep"), ReviewAction.DROP: say("✖ Drop"), ReviewAction.NEXT: say("Next ›")}
    row = [
        _button(text + (CHOSEN if verdict == chosen else ""), Judge(exchange=exchange, verdict=verdict))
        for verdict, text in words.items()
    ]
    undo = [[_button(say("↶ Undo"), Judge(exchange=exchange, verdict=ReviewAction.UNDO))]] if chosen else []
    return InlineKeyboardMarkup(inline_keyboard=[row, *undo])


def approve_button(model: str, say: Say) -> InlineKeyboardMarkup:
    """Return the button that approves a candidate."""
    return one_button(say("✔ Approve"), Approve(model=model))


def canary_buttons(model: str, say: Say) -> InlineKeyboardMarkup:
    """Return the buttons that promote or stop a canary."""
    row = [_button(say("✔ Promote"), Promote(model=model)), _button(say("✖ Stop"), StopCanary(model=model))]
    return InlineKeyboardMarkup(inline_keyboard=[row])


def promote_buttons(
    models: Sequence[str], live: str, previous: str, say: Say, *, waiting: Collection[str] = ()
) -> InlineKeyboardMarkup:
    """Return a button to go back to the `previous` model, if there is one, and a button for each of `models`.

    The button approves a model that is among those `waiting` for approval, and switches to any other one.
    """
    rows = [[_button(say("↩ Back to {model}", model=previous), RollBack(model=live))]] if previous else []
    for model in models:
        if model in waiting:
            rows.append([_button(say("✔ Approve {model}", model=model), Approve(model=model))])
        else:
            rows.append([_button(say("Switch to {model}", model=model), Promote(model=model))])
    return InlineKeyboardMarkup(inline_keyboard=rows)


def language_buttons(names: Mapping[str, str], spoken: str) -> InlineKeyboardMarkup:
    """Return a button for each language, with the language `spoken` marked."""
    rows = [[_button(name + (CHOSEN if code == spoken else ""), Speak(code=code))] for code, name in names.items()]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def privacy_buttons(person: Person, say: Say, *, guests: bool) -> InlineKeyboardMarkup:
    """Return the buttons that turn learning and (while learning is on) notifications on or off.

    With `guests`, learning from questions in chats where the bot is a guest has a button of its own.
    """
    if person.opted_out:
        return one_button(say("Learn from me"), Learn(wanted=1))
    words = (
        say("Don't tell me about new models")
        if person.wants_notes
        else say("Tell me when a new model has learned from my votes")
    )
    rows = [
        [_button(say("Don't learn from me"), Learn(wanted=0))],
        [_button(words, Notes(wanted=int(not person.wants_notes)))],
    ]
    if guests:
        allowed = person.teaches_as_guest
        words = say("Don't learn from guest mode") if allowed else say("Learn from guest mode too")
        rows.append([_button(words, LearnAsGuest(wanted=int(not allowed)))])
    return InlineKeyboardMarkup(inline_keyboard=rows)


def deletion_buttons(sure: str, unsure: str, update: int) -> InlineKeyboardMarkup:
    """Return the buttons that confirm or cancel the deletion requested by `update`.

    The texts of the buttons are `sure` and `unsure`.
    """
    rows = [[_button(sure, Delete(update=update, sure=1))], [_button(unsure, Delete(update=update, sure=0))]]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def _thumbs(exchange: int, chosen: int | None, tally: tuple[int, int]) -> list[InlineKeyboardButton]:
    row = []
    for (value, thumb), count in zip(THUMBS.items(), tally, strict=True):
        mark = CHOSEN if value == chosen else f" {count}" if count else ""
        row.append(_button(thumb + mark, Rate(exchange=exchange, value=value)))
    return row


def _button(text: str, data: CallbackData) -> InlineKeyboardButton:
    return InlineKeyboardButton(text=text, callback_data=data.pack())
