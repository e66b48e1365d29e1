"""The callback data of buttons: at most 64 bytes, beginning with a prefix.

A client may send any callback data. Data that does not parse as one of the types in this module reaches
only `handlers.fallback`. Prefixes and fields must not change, because the buttons of messages already
sent contain them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, TypeVar

from aiogram.filters.callback_data import CallbackData
from pydantic import AfterValidator, Field

from bot.i18n import later

Data = TypeVar("Data", bound=CallbackData)

THUMBS: Final = {1: "👍", -1: "👎"}


def _thumb(value: int) -> int:
    if value not in THUMBS:
        raise ValueError("neither 1 nor -1")
    return value


Id = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""The ID of a row in the ledger, or 0 for an answer that an earlier version could not save."""

Thumb = Annotated[int, AfterValidator(_thumb)]
Decision = Annotated[int, Field(ge=0, le=1)]


class Rate(CallbackData, prefix="rate"):
    """Callback data `rate:<exchange>:<value>` of a thumb under an answer; `value` is 1 (👍) or -1 (👎)."""

    exchange: Id
    value: Thumb


class DislikeReason(StrEnum):
    """The reason why a user dislikes an answer."""

    WRONG = "wrong"
    BESIDE = "beside"
    LENGTH = "length"
    TONE = "tone"


REASONS: Final = {
    DislikeReason.WRONG: later("Not true"),
    DislikeReason.BESIDE: later("Off topic"),
    DislikeReason.LENGTH: later("Wrong length"),
    DislikeReason.TONE: later("Wrong tone"),
}


class Because(CallbackData, prefix="because"):
    """Callback data `because:<exchange>:<reason>` of a button that gives the reason for a 👎."""

    exchange: Id
    reason: DislikeReason


class Better(CallbackData, prefix="better"):
    """Callback data `better:<exchange>` of the button with which a user suggests a better answer."""

    exchange: Id


class Teach(CallbackData, prefix="teach"):
    """Callback data `teach:<correction>:<wanted>` of a button that accepts (1) or rejects (0) a correction."""

    correction: Id
    wanted: Decision


class Asks(CallbackData, prefix="asks"):
    """Callback data `asks:<correction>` of the button that marks a supposed correction as a question."""

    correction: Id


class ReviewAction(StrEnum):
    """What a review button does: keep the answer as a training example, drop it, undo that, or show the next one."""

    KEEP = "keep"
    DROP = "drop"
    UNDO = "undo"
    NEXT = "next"


class Judge(CallbackData, prefix="review"):
    """Callback data `review:<exchange>:<verdict>` of a button under an answer that an admin reviews."""

    exchange: Id
    verdict: ReviewAction


class Again(CallbackData, prefix="again"):
    """Callback data `again:<exchange>` of the button that requests another answer to the question."""

    exchange: Id


class Prefer(CallbackData, prefix="prefer"):
    """Callback data `prefer:<duel>:<choice>` of a button that picks the better of two answers.

    `choice` is 1 or 2, or 0 if neither is better.
    """

    duel: Id
    choice: Annotated[int, Field(ge=0, le=2)]


class Stop(CallbackData, prefix="stop"):
    """Callback data `stop:<update>` of the button that stops the answer to an update."""

    update: Id


class CancelRun(CallbackData, prefix="cancel"):
    """Callback data `cancel:<run>` of the button that cancels a run."""

    run: Id


class TrainAgain(CallbackData, prefix="train_again"):
    """Callback data `train_again:<run>` of the button that starts a run even if there is nothing new since `run`."""

    run: Id


class CancelBroadcast(CallbackData, prefix="cancel_broadcast"):
    """Callback data `cancel_broadcast:<update>` of the button that cancels the broadcast started by `update`."""

    update: Id


class Promote(CallbackData, prefix="promote"):
    """Callback data `promote:<model>` of the button that makes a model live."""

    model: str


class Approve(CallbackData, prefix="approve"):
    """Callback data `approve:<model>` of the button that puts a candidate into service."""

    model: str


class StopCanary(CallbackData, prefix="stop_canary"):
    """Callback data `stop_canary:<model>` of the button that ends the trial of a canary."""

    model: str


class RollBack(CallbackData, prefix="rollback"):
    """Callback data `rollback:<model>` of the button that goes back to the previous model.

    `model` is the model that was live when the button was shown.
    """

    model: str


class Overrule(CallbackData, prefix="overrule"):
    """Callback data `overrule:<model>:<live>:<back>` of the button that makes a rejected model live anyway.

    `live` is the model that was live when the button was shown; `back` is 1 for a rollback.
    """

    model: str
    live: str
    back: int


class Speak(CallbackData, prefix="language"):
    """Callback data `language:<code>` of a button that chooses the bot's language for the user."""

    code: str


class Learn(CallbackData, prefix="learn"):
    """Callback data `learn:<wanted>` of the button that turns learning from the user on (1) or off (0)."""

    wanted: Decision


class LearnAsGuest(CallbackData, prefix="learn_as_guest"):
    """Callback data `learn_as_guest:<wanted>` of the button that turns learning from a guest's questions on or off."""

    wanted: Decision


class Notes(CallbackData, prefix="notes"):
    """Callback data `notes:<wanted>` of the button that turns notifications on (1) or off (0).

    The user is notified when a model that learned from their votes goes live.
    """

    wanted: Decision


class Delete(CallbackData, prefix="delete"):
    """Callback data `delete:<update>:<sure>` of a button that confirms (1) or cancels (0) a deletion.

    `update` is the update that asked for the deletion.
    """

    update: Id
    sure: Decision


ADMIN_BUTTONS: Final = (
    *(CancelRun, TrainAgain, CancelBroadcast),
    *(Promote, Approve, StopCanary, RollBack, Overrule),
    Judge,
)
"""The buttons that only admins may use."""


def parsed(kind: type[Data], data: str | None) -> Data | None:
    """Return callback data as an instance of `kind`, or None if they belong to another button."""
    try:
        return kind.unpack(data or "")
    except (TypeError, ValueError):
        return None
