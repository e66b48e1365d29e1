"""Rows about learning: votes, corrections, runs, models, promotions and trials.

Times are UTC seconds since the epoch. Ids of people and updates are Telegram's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from storage.chat_records import Exchange
from storage.states import ModelState, RunState, Verdict

BASE: Final = "base"
"""Id of the model that training starts from."""


@dataclass(frozen=True, slots=True)
class Rating:
    """A vote: `value` is 1 or -1, or 0 if it was taken back.

    Votes are only added; the latest of a rater on an exchange counts. `reason` is one of the bot's keywords, or empty
    if none was given. `update` is unique, so that a replay of the same tap adds nothing.
    """

    exchange: int
    rater: int
    value: int
    update: int
    created: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Correction:
    """A better answer that `author` suggests; training uses it once it is confirmed."""

    exchange: int
    author: int
    text: str
    update: int
    created: float = 0.0
    confirmed_by: int | None = None
    id: int = 0


@dataclass(frozen=True, slots=True)
class RatedExchange:
    """An exchange with its latest votes and the conversation before it, oldest first, as it was then.

    If there is a confirmed correction (`corrected`), the exchange has its text as the answer, and only the votes of its
    author and of the person who confirmed it, because all other votes were on the model's answer.
    """

    exchange: Exchange
    ups: int
    downs: int
    raters: tuple[int, ...]
    liked_by: tuple[int, ...]
    history: tuple[Exchange, ...] = ()
    corrected: bool = False


@dataclass(frozen=True, slots=True)
class Trust:
    """The rules that decide whose votes and corrections count.

    Nothing is learned from `blocked` people and groups; `admins` may confirm their own corrections. The votes and
    corrections of other people count once `newcomer_seconds` have passed since the ledger first recorded the person.
    """

    blocked: frozenset[int] = frozenset()
    admins: frozenset[int] = frozenset()
    newcomer_seconds: float = 0.0


EQUAL_TRUST: Final = Trust()
"""No one is blocked, new or an admin."""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt: the preferred one, and the text and the exchange of the other."""

    chosen: RatedExchange
    rejected: str
    rejected_exchange: int


@dataclass(frozen=True, slots=True)
class Run:
    """A retraining run.

    Attributes:
        trigger: "schedule", "admin" or "command".
        requested_by: The admin's user id, if any.
        step: Progress within the present state, out of `steps`.
        seconds_left: Estimated time to the end of the present state, or None if it is unknown.
        loss: The newest training loss.
        samples: Selected training pairs.
        held_out: Selected pairs that the evaluation uses.
    """

    id: int
    state: RunState
    trigger: str
    requested_by: int | None
    created: float
    updated: float
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds_left: float | None = None
    samples: int = 0
    held_out: int = 0
    raters: int = 0
    directory: str = ""
    reason: str = ""
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model directory.

    Attributes:
        id: Short name, such as "base" or "run-3".
        directory: Empty if the files were removed.
        run: The run that made it.
        reason: Why it was rejected; empty otherwise.
        report: The evaluation as JSON.
        pruned: Whether the files were removed, to be merged again from the adapter when the model is promoted.
    """

    id: str
    directory: str
    state: ModelState
    run: int | None
    created: float
    reason: str = ""
    report: str = ""
    manifest_hash: str = ""
    pruned: bool = False

    @property
    def kept(self) -> bool:
        """Whether the model can be promoted."""
        return bool(self.directory) or self.pruned


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The numbers of liked answers that a run was trained on, of their thumbs up, and of the people who gave these.

    Thumbs up are counted as of the beginning of the run. Exchanges that have been erased since are not counted.
    """

    answers: int = 0
    votes: int = 0
    people: int = 0


@dataclass(frozen=True, slots=True)
class Version:
    """A model that is or was live. `number` counts such models from 1; `created` is when the model was made."""

    model: str
    number: int
    taught: TrainedOn
    created: float


@dataclass(frozen=True, slots=True)
class Promotion:
    """A change of the live model, done or requested.

    `by` is an admin's user id, or None for the pipeline and the command line. A promotion requested on the command line
    has `done` None until the running bot carries it out; if it could not, `error` says why. `back` marks a rollback.
    """

    id: int
    model: str
    previous: str | None
    by: int | None
    created: float
    done: float | None = None
    error: str = ""
    back: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """The trial of a canary alongside the model that was live.

    Attributes:
        share: Share of the conversations that the canary answers, 0 to 1.
        after: Id of the newest exchange before the trial.
        ended: When the trial ended. Both this and `verdict` are None while it runs.
        reason: Why it ended as it did.
    """

    id: int
    model: str
    live: str
    run: int | None
    share: float
    started: float
    after: int
    ended: float | None = None
    verdict: Verdict | None = None
    reason: str = ""
