"""Inline keyboards and the callback data of their buttons, which has at most 64 bytes and begins with a prefix.

A client may send any callback data. Data that does not parse as one of the types below reaches only
`handlers.fallback`. Prefixes and fields must not change, because messages that were sent contain them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Final

from aiogram.filters.callback_data import CallbackData
from aiogram.types import InlineKeyboardButton, InlineKeyboardMarkup
from pydantic import AfterValidator, Field

from bot.i18n import Say, later

THUMBS: Final = {1: "👍", -1: "👎"}
AGAIN: Final = "🔄"
CHOSEN: Final = " ✓"


def _thumb(value: int) -> int:
    if value not in THUMBS:
        raise ValueError("neither 1 nor -1")
    return value


Id = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""The id of a row in the ledger, or 0 for an answer that an earlier version could not save."""

Thumb = Annotated[int, AfterValidator(_thumb)]
Decision = Annotated[int, Field(ge=0, le=1)]


class Rate(CallbackData, prefix="rate"):
    """`rate:<exchange>:<value>`: a thumb under an answer, 1 or -1."""

    exchange: Id
    value: Thumb


class Reason(StrEnum):
    """Why a user dislikes an answer."""

    WRONG = "wrong"
    BESIDE = "beside"
    LENGTH = "length"
    TONE = "tone"


REASONS: Final = {
    Reason.WRONG: later("Not true"),
    Reason.BESIDE: later("Off topic"),
    Reason.LENGTH: later("Wrong length"),
    Reason.TONE: later("Wrong tone"),
}


class Because(CallbackData, prefix="because"):
    """`because:<exchange>:<reason>`: the reason for a 👎."""

    exchange: Id
    reason: Reason


class Better(CallbackData, prefix="better"):
    """`better:<exchange>`: suggest a better answer."""

    exchange: Id


class Teach(CallbackData, prefix="teach"):
    """`teach:<correction>:<wanted>`: whether to learn a correction, 1 or 0."""

    correction: Id
    wanted: Decision


class Asks(CallbackData, prefix="asks"):
    """`asks:<correction>`: the text that was taken for a correction is a question."""

    correction: Id


class Again(CallbackData, prefix="again"):
    """`again:<exchange>`: another answer to the same question."""

    exchange: Id


class Prefer(CallbackData, prefix="prefer"):
    """`prefer:<duel>:<choice>`: which of two answers is better, 1 or 2, or 0 for neither."""

    duel: Id
    choice: Annotated[int, Field(ge=0, le=2)]


class Stop(CallbackData, prefix="stop"):
    """`stop:<update>`: stop the answer to that update."""

    update: Id


class CancelRun(CallbackData, prefix="cancel"):
    """`cancel:<run>`: cancel that run."""

    run: Id


class TrainAgain(CallbackData, prefix="train_again"):
    """`train_again:<run>`: train although nothing is new since that run."""

    run: Id


class CancelBroadcast(CallbackData, prefix="cancel_broadcast"):
    """`cancel_broadcast:<update>`: cancel the broadcast that the update started."""

    update: Id


class Promote(CallbackData, prefix="promote"):
    """`promote:<model>`: switch to that model."""

    model: str


class Approve(CallbackData, prefix="approve"):
    """`approve:<model>`: let that candidate answer."""

    model: str


class StopCanary(CallbackData, prefix="stop_canary"):
    """`stop_canary:<model>`: end the trial of that canary."""

    model: str


class RollBack(CallbackData, prefix="rollback"):
    """`rollback:<model>`: go back from that model, which was live when the button was shown, to the previous one."""

    model: str


class Overrule(CallbackData, prefix="overrule"):
    """`overrule:<model>:<live>:<back>`: switch to that rejected model although it was rejected.

    `live` was live when the button was shown; `back` is 1 for a rollback.
    """

    model: str
    live: str
    back: int


class Drain(CallbackData, prefix="drain"):
    """`drain:<key>`: take the replica with that `node_key` out of service."""

    node: str


class Undrain(CallbackData, prefix="undrain"):
    """`undrain:<key>`: put the replica with that `node_key` back into service."""

    node: str


class Speak(CallbackData, prefix="language"):
    """`language:<code>`: the language that the user chose."""

    code: str


class Learn(CallbackData, prefix="learn"):
    """`learn:<wanted>`: whether the bot may learn from the user, 1 or 0."""

    wanted: Decision


class Notes(CallbackData, prefix="notes"):
    """`notes:<wanted>`: whether to notify the user when a model that learned from their votes goes live, 1 or 0."""

    wanted: Decision


class Delete(CallbackData, prefix="delete"):
    """`delete:<update>:<sure>`: confirm (1) or refuse (0) the deletion that the update asked for."""

    update: Id
    sure: Decision


def rating_buttons(
    exchange: int,
    chosen: int | None = None,
    *,
    say: Say,
    tally: tuple[int, int] | None = None,
    reason: Reason | None = None,
    newest: bool = True,
) -> InlineKeyboardMarkup:
    """Return 👍 and 👎 for an exchange, and 🔄 under the `newest` answer to a question.

    The `chosen` thumb is marked. A 👎 adds buttons for the reason and for a better answer. `tally` has the numbers of
    👍 and 👎 in a group.
    """
    ups, downs = tally or (0, 0)
    counts = {1: ups, -1: downs}
    row = []
    for value, thumb in THUMBS.items():
        mark = CHOSEN if value == chosen else f" {counts[value]}" if counts[value] else ""
        row.append(_button(thumb + mark, Rate(exchange=exchange, value=value)))
    if newest:
        row.append(_button(AGAIN, Again(exchange=exchange)))
    rows = [row]
    if chosen == -1:
        whys = [
            _button(say(words) + (CHOSEN if each is reason else ""), Because(exchange=exchange, reason=each))
            for each, words in REASONS.items()
        ]
        rows += [whys[:2], whys[2:]]
    if chosen == -1 or downs:
        rows.append([_button(say("✍ Suggest a better answer"), Better(exchange=exchange))])
    return InlineKeyboardMarkup(inline_keyboard=rows)


def duel_buttons(duel: int, say: Say) -> InlineKeyboardMarkup:
    """Return the buttons that choose one of two answers."""
    choices = ((1, "1️⃣"), (2, "2️⃣"), (0, say("The same")))
    row = [_button(text, Prefer(duel=duel, choice=choice)) for choice, text in choices]
    return InlineKeyboardMarkup(inline_keyboard=[row])


def correction_buttons(
    correction: int, say: Say, *, wanted: bool | None = None, doubtful: bool = False
) -> InlineKeyboardMarkup:
    """Return the buttons to accept or refuse a correction, with the decision marked.

    A `doubtful` correction may have been meant as a question, and gets a button that says so.
    """
    words = {True: say("👍 Learn it"), False: say("👎 Don't")}
    row = [
        _button(text + (CHOSEN if value is wanted else ""), Teach(correction=correction, wanted=int(value)))
        for value, text in words.items()
    ]
    asks = [[_button(say("❓ That was a question"), Asks(correction=correction))]] if doubtful else []
    return InlineKeyboardMarkup(inline_keyboard=[row, *asks])


def stop_button(update: int, say: Say) -> InlineKeyboardMarkup:
    """Return ⏹ for an unfinished answer."""
    return InlineKeyboardMarkup(inline_keyboard=[[_button(say("⏹ Stop"), Stop(update=update))]])


def cancel_button(what: CancelRun | CancelBroadcast, say: Say) -> InlineKeyboardMarkup:
    """Return the button that cancels a run or a broadcast."""
    return InlineKeyboardMarkup(inline_keyboard=[[_button(say("✖ Cancel"), what)]])


def train_again_button(run: int, say: Say) -> InlineKeyboardMarkup:
    """Return the button that trains although nothing is new since a run."""
    return InlineKeyboardMarkup(inline_keyboard=[[_button(say("Train again"), TrainAgain(run=run))]])


def approve_button(model: str, say: Say) -> InlineKeyboardMarkup:
    """Return the button that lets a candidate answer."""
    return InlineKeyboardMarkup(inline_keyboard=[[_button(say("✔ Approve"), Approve(model=model))]])


def canary_buttons(model: str, say: Say) -> InlineKeyboardMarkup:
    """Return the buttons that promote a canary and stop it."""
    row = [_button(say("✔ Promote"), Promote(model=model)), _button(say("✖ Stop"), StopCanary(model=model))]
    return InlineKeyboardMarkup(inline_keyboard=[row])


def promote_buttons(models: Sequence[str], live: str, previous: str, say: Say) -> InlineKeyboardMarkup:
    """Return a button for the `previous` model, unless that is empty, and one for each of the others."""
    rows = [[_button(say("↩ Back to {model}", model=previous), RollBack(model=live))]] if previous else []
    rows += [[_button(say("Switch to {model}", model=model), Promote(model=model))] for model in models]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def overrule_button(model: str, live: str, back: bool, say: Say) -> InlineKeyboardMarkup:
    """Return the button that switches to a rejected model."""
    data = Overrule(model=model, live=live, back=int(back))
    return InlineKeyboardMarkup(inline_keyboard=[[_button(say("Switch to {model}", model=model), data)]])


def node_key(name: str) -> str:
    """Return the key of a replica in callback data, because its name may be a long address with colons."""
    return sha256(name.encode()).hexdigest()[:16]


def replica_buttons(nodes: Mapping[str, bool], say: Say) -> InlineKeyboardMarkup:
    """Return a button for each replica that takes it out of service or puts it back.

    `nodes` says for each name whether that replica is drained.
    """
    rows = [
        [_button(say("↩ Put {node} back", node=name), Undrain(node=node_key(name)))]
        if drained
        else [_button(say("Take {node} out of service", node=name), Drain(node=node_key(name)))]
        for name, drained in nodes.items()
    ]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def language_buttons(names: Mapping[str, str], spoken: str) -> InlineKeyboardMarkup:
    """Return a button for each language, with the current one marked."""
    rows = [[_button(name + (CHOSEN if code == spoken else ""), Speak(code=code))] for code, name in names.items()]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def privacy_buttons(opted_out: bool, wants_notes: bool, say: Say) -> InlineKeyboardMarkup:
    """Return the button that turns learning on or off and, if learning is on, the one for notes."""
    if opted_out:
        return InlineKeyboardMarkup(inline_keyboard=[[_button(say("Learn from me"), Learn(wanted=1))]])
    words = say("Don't tell me about new models") if wants_notes else say("Tell me when my votes taught a new model")
    rows = [
        [_button(say("Don't learn from me"), Learn(wanted=0))],
        [_button(words, Notes(wanted=int(not wants_notes)))],
    ]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def deletion_buttons(sure: str, unsure: str, update: int) -> InlineKeyboardMarkup:
    """Return the buttons that confirm or refuse the deletion that `update` asked for."""
    rows = [[_button(sure, Delete(update=update, sure=1))], [_button(unsure, Delete(update=update, sure=0))]]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def _button(text: str, data: CallbackData) -> InlineKeyboardButton:
    return InlineKeyboardButton(text=text, callback_data=data.pack())
