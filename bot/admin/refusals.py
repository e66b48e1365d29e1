"""The reasons why an admin's request can be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bot.i18n import Say, later
from inference.messages import InferenceError
from storage.errors import CanaryRunning, RunBusy, StorageError
from storage.translatable_reason import Reason
from training.job import TrainingError

if TYPE_CHECKING:
    from storage.learning_records import Model, Run

REJECTED: Final = later("{model} didn't go live: {reason}. Use it anyway?")
CHANGED: Final = later("A different model is live now. /models lists all models.")
NOTHING_NEW: Final = later("Nothing has changed since run {run}. Train again anyway?")


class AdminRefusal(Exception):
    """An admin's request cannot be carried out now. The message says why, and what to do."""


class RejectedModel(AdminRefusal):
    """An attempt to promote a rejected or undecided model without confirmation."""

    def __init__(self, model: Model) -> None:
        super().__init__(Reason(REJECTED, model=model.id, reason=model.reason))
        self.model = model


class NothingNew(AdminRefusal):
    """A run was requested without confirmation although there is nothing new to learn from.

    The run would learn from the same data as the last finished run, `run`. `futile` is the reason why it would
    end without a new model, if that is known.
    """

    def __init__(self, run: Run, futile: Reason | None = None) -> None:
        super().__init__(Reason(NOTHING_NEW, run=run.id))
        self.run = run
        self.futile = futile


REFUSALS: Final = (AdminRefusal, StorageError, InferenceError, TrainingError)


def run_refused(refusal: Exception, say: Say) -> str:
    """Return a message with the reason why no run was started."""
    if isinstance(refusal, NothingNew):
        return say(str(refusal))
    if isinstance(refusal, RunBusy) and not isinstance(refusal, CanaryRunning):
        return say("A run is already in progress. /status shows it, /cancel stops it.")
    return refused(refusal, say)


def refused(refusal: Exception, say: Say) -> str:
    """Return a message with the reason why an admin's request was refused."""
    return say("That didn't work: {reason}", reason=say(str(refusal)))
