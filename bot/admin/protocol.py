"""What admins can have done, and what they are told of how the bot is: the seam between handlers and operations.

Knows the requests and how one that cannot be met is worded. `bot.admin.service` meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from bot.i18n import Say, later
from inference.messages import InferenceError, LastNode
from storage.errors import StorageError
from storage.reason import Reason
from training.job import Progress, TrainingError, ignore

if TYPE_CHECKING:  # the command line starts without the engine's client and aiogram
    from inference.serving.deployment_status import NodeStatus, Status
    from storage.learning_records import Model, Run
    from training.launcher import LastProgress
    from training.pipeline import RunPlan

LAST_NODE: Final = later(
    "Nobody else would answer in the place of {node}, so it stays in service: first take another one back (/undrain), "
    "or mend it; /status shows them all."
)
REJECTED: Final = later("{model} was rejected: {reason}. Use it anyway?")


class AdminRefusal(Exception):
    """What an admin asked for cannot be done now. The text says why, and what to do."""


class RejectedModel(AdminRefusal):
    """A model that was rejected is to answer, and nobody has confirmed that."""

    def __init__(self, model: Model) -> None:
        super().__init__(Reason(REJECTED, model=model.id, reason=model.reason))
        self.model = model


class Overview(Protocol):
    """What /status and /schedule show. `next_run` is the next run of the cron text `schedule` (None: only by
    command), `last_progress` is of the worker at work; `rejected` has why models were not good enough, by their ids."""

    @property
    def live(self) -> str: ...

    @property
    def engine(self) -> Status: ...

    @property
    def runs(self) -> Sequence[Run]: ...

    @property
    def rejected(self) -> Mapping[str, str]: ...

    @property
    def counts(self) -> Mapping[str, int]: ...

    @property
    def next_run(self) -> datetime | None: ...

    @property
    def schedule(self) -> str: ...

    @property
    def last_progress(self) -> LastProgress | None: ...


class AdminActions(Protocol):
    """What admins can have done. `by` is their user id.

    Raises AdminRefusal, StorageError, InferenceError or TrainingError, with a text for the admin.
    """

    async def retrain(self, by: int) -> Run:
        """Start a run; it goes on after this returns."""
        ...

    async def plan(self) -> RunPlan:
        """What a run that began now would be."""
        ...

    async def cancel(self, by: int) -> Run | None:
        """Cancel the run under way; None if there is none."""
        ...

    async def overview(self) -> Overview:
        """How the bot is."""
        ...

    async def models(self) -> list[Model]:
        """Every kept model, oldest first."""
        ...

    async def promote(
        self, model: str, by: int, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        """Answer with this model; returns when it does. `on_progress` is called while a pruned one is merged.

        Raises RejectedModel unless that is `confirmed`.
        """
        ...

    async def rollback(
        self, by: int, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        """Answer with the model before the live one, as `promote` does."""
        ...

    def nodes(self) -> Sequence[NodeStatus]:
        """The places that answer: one engine, or several of which each can be taken out of service."""
        ...

    async def drain(self, node: str, by: int) -> None:
        """Take one of several nodes out of service; returns when its chats have moved and it has nobody to answer."""
        ...

    async def undrain(self, node: str, by: int) -> NodeStatus:
        """Take a node back into service, with the model that answers now; how it is then."""
        ...


REFUSALS: Final = (AdminRefusal, StorageError, InferenceError, TrainingError)


def refused(refusal: Exception, say: Say) -> str:
    """Why something could not be done."""
    reason = say(LAST_NODE, node=refusal.node) if isinstance(refusal, LastNode) else say(str(refusal))
    return say("That didn't work: {reason}", reason=reason)
