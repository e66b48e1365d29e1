"""The interface between handlers and the admin service, and the errors that admins see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from bot.i18n import Say, later
from inference.messages import InferenceError, LastNode
from storage.errors import StorageError
from storage.translatable_reason import Reason
from training.job import Progress, TrainingError, ignore

if TYPE_CHECKING:  # the command line starts without the engine's client and aiogram
    from bot.admin.canary_standing import Standing
    from inference.serving.deployment_status import NodeStatus, Status
    from storage.learning_records import Model, Run
    from training.launcher import LastProgress
    from training.pipeline import RunPlan

LAST_NODE: Final = later(
    "No other replica could take over from {node}, so it stays in service. First put another one back (/undrain) or "
    "repair it; /status shows them all."
)
REJECTED: Final = later("{model} didn't go live: {reason}. Use it anyway?")
NOTHING_NEW: Final = later("Nothing has changed since run {run}. Train again anyway?")


class AdminRefusal(Exception):
    """An admin's request cannot be met now. The text says why, and what to do."""


class RejectedModel(AdminRefusal):
    """A rejected or undecided model was promoted without confirmation."""

    def __init__(self, model: Model) -> None:
        super().__init__(Reason(REJECTED, model=model.id, reason=model.reason))
        self.model = model


class NothingNew(AdminRefusal):
    """A run was requested without confirmation although it would learn from the same data as the last finished one."""

    def __init__(self, run: Run) -> None:
        super().__init__(Reason(NOTHING_NEW, run=run.id))
        self.run = run


class Overview(Protocol):
    """The state of the bot as /status and /schedule show it."""

    @property
    def live(self) -> str:
        """The id of the live model."""

    @property
    def engine(self) -> Status:
        """The status of the engines."""

    @property
    def canary(self) -> Standing | None:
        """The standing of the running trial of a canary, or None if there is none."""

    @property
    def runs(self) -> Sequence[Run]:
        """The latest runs, newest first."""

    @property
    def held_back(self) -> Mapping[str, Model]:
        """The rejected and the undecided models by id."""

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of rows by kind."""

    @property
    def next_run(self) -> datetime | None:
        """The time of the next scheduled run (UTC), or None if there is no schedule."""

    @property
    def schedule(self) -> str:
        """The schedule in cron syntax, or an empty string if there is none."""

    @property
    def last_progress(self) -> LastProgress | None:
        """The last progress of the running worker, or None if there is none."""


class AdminActions(Protocol):
    """The actions of admins. `by` is the admin's user id.

    Raises AdminRefusal, StorageError, InferenceError or TrainingError, with a text for the admin.
    """

    async def retrain(self, by: int, *, confirmed: bool = False) -> Run:
        """Start a run, which continues after this returns.

        Raises NothingNew if it would learn from the same data as the last finished one, unless `confirmed`.
        """
        ...

    async def unchanged_since(self) -> Run | None:
        """Return the last finished run if nothing is new since it, or None if there is something new to learn from."""
        ...

    async def plan(self) -> RunPlan:
        """Return the plan of a run that would begin now."""
        ...

    async def cancel(self, by: int) -> Run | None:
        """Cancel the run under way and return it, or return None if there is none."""
        ...

    async def overview(self) -> Overview:
        """Return the state of the bot."""
        ...

    async def models(self) -> list[Model]:
        """Return every model, oldest first."""
        ...

    async def promote(
        self, model: str, by: int, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        """Make a model live; return when it answers. `on_progress` reports the merge of a pruned one.

        Raises RejectedModel for a rejected or undecided model, unless `confirmed`.
        """
        ...

    async def rollback(
        self, by: int, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        """Make the previous model live, as `promote` does."""
        ...

    async def standing(self) -> Standing | None:
        """Return how the running trial of a canary stands, or None if there is none."""
        ...

    async def approve(self, model: str, by: int) -> Model:
        """Let a candidate answer, as a canary or live; return when it does. Raises AdminRefusal for another model."""
        ...

    async def stop_canary(self, model: str, by: int) -> Model:
        """End the trial of a canary, which is rejected. Raises AdminRefusal for another model."""
        ...

    def nodes(self) -> Sequence[NodeStatus]:
        """Return the status of every node."""
        ...

    async def drain(self, node: str, by: int) -> None:
        """Take one of several nodes out of service; return when its chats have moved and its answers are finished."""
        ...

    async def undrain(self, node: str, by: int) -> NodeStatus:
        """Take a node back into service with the live model; return its status."""
        ...


REFUSALS: Final = (AdminRefusal, StorageError, InferenceError, TrainingError)


def refused(refusal: Exception, say: Say) -> str:
    """Return the reason why a request was refused."""
    reason = say(LAST_NODE, node=refusal.node) if isinstance(refusal, LastNode) else say(str(refusal))
    return say("That didn't work: {reason}", reason=reason)
