"""Inline buttons and the callback data they carry: at most 64 bytes, told apart by their prefix.

Callback data comes from a client, which may send anything. It is parsed here alone: what does not fit the types below
matches no handler, and is answered as a button that no longer works (`bot.handlers.fallback`).
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
"""A row of the ledger; 0 is an answer that could not be saved."""

Thumb = Annotated[int, AfterValidator(_thumb)]
Decision = Annotated[int, Field(ge=0, le=1)]


class Rate(CallbackData, prefix="rate"):
    """`rate:<exchange>:<value>`: a thumb under an answer, 1 or -1."""

    exchange: Id
    value: Thumb


class Reason(StrEnum):
    """Why somebody does not like an answer."""

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
    """`because:<exchange>:<reason>`: why not."""

    exchange: Id
    reason: Reason


class Better(CallbackData, prefix="better"):
    """`better:<exchange>`: somebody wants to show a better answer."""

    exchange: Id


class Teach(CallbackData, prefix="teach"):
    """`teach:<demonstration>:<wanted>`: whether to learn a better answer, 1 or 0."""

    demonstration: Id
    wanted: Decision


class Asks(CallbackData, prefix="asks"):
    """`asks:<demonstration>`: what was taken for a better answer is a question."""

    demonstration: Id


class Again(CallbackData, prefix="again"):
    """`again:<exchange>`: another answer to the same question."""

    exchange: Id


class Stop(CallbackData, prefix="stop"):
    """`stop:<update>`: no more of the answer to that update."""

    update: Id


class CancelRun(CallbackData, prefix="cancel"):
    """`cancel:<run>`: an admin wants no more of that run."""

    run: Id


class CancelBroadcast(CallbackData, prefix="cancel_broadcast"):
    """`cancel_broadcast:<update>`: an admin wants nobody else to be told what that update asked for."""

    update: Id


class Promote(CallbackData, prefix="promote"):
    """`promote:<model>`: an admin wants that model to answer."""

    model: str


class RollBack(CallbackData, prefix="rollback"):
    """`rollback:<model>`: an admin wants the model before this one, the live one as it was shown, to answer again."""

    model: str


class Overrule(CallbackData, prefix="overrule"):
    """`overrule:<model>:<live>:<back>`: an admin lets that rejected model answer instead of the live one, as it was
    shown; with `back` 1 as a rollback.
    """

    model: str
    live: str
    back: int


class Drain(CallbackData, prefix="drain"):
    """`drain:<key>`: an admin wants the node of that `node_key` out of service."""

    node: str


class Undrain(CallbackData, prefix="undrain"):
    """`undrain:<key>`: an admin wants the node of that `node_key` back in service."""

    node: str


class Speak(CallbackData, prefix="language"):
    """`language:<code>`: a language to be answered in."""

    code: str


class Learn(CallbackData, prefix="learn"):
    """`learn:<wanted>`: whether the bot may learn from whoever taps, 1 or 0."""

    wanted: Decision


class Delete(CallbackData, prefix="delete"):
    """`delete:<update>:<sure>`: the answer, 1 or 0, to what the bot asked on the update that wished for a deletion."""

    update: Id
    sure: Decision


def rating(
    exchange: int,
    chosen: int | None = None,
    *,
    say: Say,
    tally: tuple[int, int] | None = None,
    reason: Reason | None = None,
    newest: bool = True,
) -> InlineKeyboardMarkup:
    """👍 and 👎 for an exchange, and 🔄 under the `newest` answer to a question.

    The `chosen` thumb is marked, and where that is 👎, why and what would be better can be told. `tally`, for groups,
    has everybody's ups and downs.
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


def teaching(
    demonstration: int, say: Say, *, wanted: bool | None = None, doubtful: bool = False
) -> InlineKeyboardMarkup:
    """👍 and 👎 for a better answer that somebody has shown, what was decided marked.

    A `doubtful` one may be a question as well.
    """
    words = {True: say("👍 Learn it"), False: say("👎 Don't")}
    row = [
        _button(text + (CHOSEN if value is wanted else ""), Teach(demonstration=demonstration, wanted=int(value)))
        for value, text in words.items()
    ]
    asks = [[_button(say("❓ That was a question"), Asks(demonstration=demonstration))]] if doubtful else []
    return InlineKeyboardMarkup(inline_keyboard=[row, *asks])


def stopping(update: int, say: Say) -> InlineKeyboardMarkup:
    """⏹ under an answer that is being written."""
    return InlineKeyboardMarkup(inline_keyboard=[[_button(say("⏹ Stop"), Stop(update=update))]])


def cancelling(what: CancelRun | CancelBroadcast, say: Say) -> InlineKeyboardMarkup:
    """Cancel, under the progress of a run or a broadcast."""
    return InlineKeyboardMarkup(inline_keyboard=[[_button(say("✖ Cancel"), what)]])


def promoting(models: Sequence[str], live: str, previous: str, say: Say) -> InlineKeyboardMarkup:
    """Back to the `previous` model (empty: there is none), and one button for each of the others."""
    rows = [[_button(say("↩ Back to {model}", model=previous), RollBack(model=live))]] if previous else []
    rows += [[_button(say("Switch to {model}", model=model), Promote(model=model))] for model in models]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def overruling(model: str, live: str, back: bool, say: Say) -> InlineKeyboardMarkup:
    """Let a rejected model answer instead of the `live` one."""
    data = Overrule(model=model, live=live, back=int(back))
    return InlineKeyboardMarkup(inline_keyboard=[[_button(say("Switch to {model}", model=model), data)]])


def node_key(name: str) -> str:
    """A node in callback data: its name may be a long address, and has colons, which part the fields there."""
    return sha256(name.encode()).hexdigest()[:16]


def serving(nodes: Mapping[str, bool], say: Say) -> InlineKeyboardMarkup:
    """One button for each node: take it out of service, or back where it is drained. Node's name → drained."""
    rows = [
        [_button(say("↩ Put {node} back", node=name), Undrain(node=node_key(name)))]
        if drained
        else [_button(say("Take {node} out of service", node=name), Drain(node=node_key(name)))]
        for name, drained in nodes.items()
    ]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def languages(names: Mapping[str, str], spoken: str) -> InlineKeyboardMarkup:
    """One button for each language, named in itself, the spoken one marked."""
    rows = [[_button(name + (CHOSEN if code == spoken else ""), Speak(code=code))] for code, name in names.items()]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def learning(allow: str, forbid: str, opted_out: bool) -> InlineKeyboardMarkup:
    """One button, which turns learning on or off."""
    button = _button(allow, Learn(wanted=1)) if opted_out else _button(forbid, Learn(wanted=0))
    return InlineKeyboardMarkup(inline_keyboard=[[button]])


def confirmation(sure: str, unsure: str, update: int) -> InlineKeyboardMarkup:
    """Yes or no to the deletion that an update wished for."""
    rows = [[_button(sure, Delete(update=update, sure=1))], [_button(unsure, Delete(update=update, sure=0))]]
    return InlineKeyboardMarkup(inline_keyboard=rows)


def _button(text: str, data: CallbackData) -> InlineKeyboardButton:
    return InlineKeyboardButton(text=text, callback_data=data.pack())
