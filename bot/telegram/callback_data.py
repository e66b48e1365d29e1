"""The callback data of buttons, which has at most 64 bytes and begins with a prefix.

A client may send any callback data. Data that does not parse as one of the types below reaches only
`handlers.fallback`. Prefixes and fields must not change, because messages that were sent contain them.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Final

from aiogram.filters.callback_data import CallbackData
from pydantic import AfterValidator, Field

from bot.i18n import later

THUMBS: Final = {1: "👍", -1: "👎"}


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


def node_key(name: str) -> str:
    """Return the key of a replica in callback data, because its name may be a long address with colons."""
    return sha256(name.encode()).hexdigest()[:16]
