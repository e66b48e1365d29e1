"""Records about learning: votes, corrections, runs, models, promotions and trials.

Times are UTC seconds since the epoch. User and update IDs are Telegram's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from storage.chat_records import Exchange
from storage.state_machines import ModelState, RunState, Verdict

BASE: Final = "base"
"""The ID of the model that training starts from."""


@dataclass(frozen=True, slots=True)
class Rating:
    """A vote on an answer.

    Votes are only added, never changed; only a rater's latest vote on an exchange counts.

    Attributes:
        value: 1 for a thumbs up, -1 for a thumbs down, or 0 if the rater retracted the vote.
        update: The ID of the update that delivered the vote. It is unique, so handling the update again adds
            no second vote.
        reason: One of the bot's keywords for reasons; empty if the rater gave none.
    """

    exchange: int
    rater: int
    value: int
    update: int
    created: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Correction:
    """A better answer, suggested by the user `author` and used in training once it is confirmed."""

    exchange: int
    author: int
    text: str
    update: int
    created: float = 0.0
    confirmed_by: int | None = None
    id: int = 0


class ReviewDecision(StrEnum):
    """An operator's decision on a training example. KEEP lets the votes decide; UNDO withdraws earlier decisions."""

    KEEP = "keep"
    DROP = "drop"
    EDIT = "edit"
    UNDO = "undo"


@dataclass(frozen=True, slots=True)
class Review:
    """An operator's decision on an exchange, of which only the latest counts.

    Attributes:
        reviewer: The name with which the operator logged in, or "web".
        text: The answer to learn if the decision is EDIT; empty otherwise.
    """

    exchange: int
    decision: ReviewDecision
    reviewer: str
    text: str = ""
    created: float = 0.0
    id: int = 0


@dataclass(frozen=True, slots=True)
class RatedExchange:
    """An exchange with its latest votes and the conversation that preceded it.

    If the exchange has a confirmed correction, the text of the correction replaces the answer. Only the
    author of the correction and the user who confirmed it then count as raters, because all the other votes
    were on the model's answer. An operator's edit replaces the answer too; the users who liked the answer
    remain its raters.

    Attributes:
        history: The exchanges before the question, oldest first, as they were when the question was
            answered.
        corrected: Whether the answer is a confirmed correction or an operator's edit.
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

    Attributes:
        blocked: The users and groups from which nothing is learned.
        admins: The users who may confirm their own corrections, and who never count as newcomers.
        newcomer_seconds: How long, in seconds, the ledger must have known a user before the user's votes and
            corrections count.
    """

    blocked: frozenset[int] = frozenset()
    admins: frozenset[int] = frozenset()
    newcomer_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Newcomers:
    """New users who have cast votes that do not count yet.

    Attributes:
        people: The number of these users, at least 1.
        first: When the first user's votes begin to count, in seconds since the epoch.
        wait: How long, in seconds, a new user's votes do not count.
    """

    people: int
    first: float
    wait: float


EQUAL_TRUST: Final = Trust()
"""Rules under which no one is blocked, a newcomer or an admin."""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, one of which is preferred.

    Attributes:
        chosen: The preferred answer.
        rejected: The text of the other answer.
        rejected_exchange: The ID of the exchange with the other answer.
    """

    chosen: RatedExchange
    rejected: str
    rejected_exchange: int


@dataclass(frozen=True, slots=True)
class Actor:
    """An admin who changes a model.

    Attributes:
        name: The name to show; empty if it is unknown.
        user: The user ID, if the admin acts in a chat.
    """

    name: str
    user: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A retraining run.

    Attributes:
        trigger: "schedule", "admin", "command" or "web".
        requested_by: The user ID of the admin who requested the run, if any.
        step: The number of the current step within the present state, out of `steps`.
        seconds_left: The estimated time until the present state ends, or None if it is unknown.
        loss: The latest training loss.
        samples: The number of selected training pairs.
        held_out: The number of selected pairs held out for the evaluation.
        limited: Whether the run learns only from exchanges that an operator selected.
        reviews: The ID of the newest review that the run takes into account; 0 if there is none.
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
    limited: bool = False
    reviews: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """A model directory.

    Attributes:
        id: The short name of the model, such as "base" or "run-3".
        directory: The path of the directory; empty if the files were removed.
        run: The ID of the run that made the model.
        reason: Why the model was rejected; empty otherwise.
        report: The evaluation as JSON.
        pruned: Whether the files were removed but can be merged again from the adapter if the model is
            promoted.
        changed_by: The name of the admin who gave the model its present state, or deleted it; empty if no admin
            did, or the name is unknown.
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
    changed_by: str = ""

    @property
    def kept(self) -> bool:
        """Whether the model can be promoted."""
        return bool(self.directory) or self.pruned


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The amount of data that a run was trained on.

    Exchanges that have been erased since the run are not counted.

    Attributes:
        answers: The number of liked answers.
        votes: The number of thumbs up on these answers when the run began.
        people: The number of users who cast these votes.
    """

    answers: int = 0
    votes: int = 0
    people: int = 0


@dataclass(frozen=True, slots=True)
class Promotion:
    """A completed or requested change of the live model.

    Attributes:
        by: The user ID of an admin, or None for the pipeline, the command line and the web page.
        done: When the change was made; None until the running bot carries out a promotion requested on the
            command line.
        error: Why the running bot could not carry out the promotion; empty otherwise.
        back: Whether the promotion is a rollback.
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
    """The trial of a canary alongside the model that was live at the time.

    Attributes:
        share: The share of conversations that the canary answers, from 0 to 1.
        after: The ID of the newest exchange before the trial.
        ended: When the trial ended. Both `ended` and `verdict` are None while the trial is running.
        reason: The reason for the verdict.
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
