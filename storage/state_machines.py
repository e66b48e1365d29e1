"""The states of runs, models, canary trials and broadcast recipients, and the allowed transitions."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """The state of a run, as stored in the ledger."""

    DUE = "due"
    TRAINING = "training"
    MERGING = "merging"
    EVALUATING = "evaluating"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


RUN_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.DUE: frozenset({RunState.TRAINING, RunState.FAILED, RunState.CANCELLED}),
    RunState.TRAINING: frozenset({RunState.MERGING, RunState.FAILED, RunState.CANCELLED}),
    RunState.MERGING: frozenset({RunState.EVALUATING, RunState.FAILED, RunState.CANCELLED}),
    RunState.EVALUATING: frozenset({RunState.DONE, RunState.FAILED, RunState.CANCELLED}),
    RunState.DONE: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}


class ModelState(StrEnum):
    """The state of a model, as stored in the ledger."""

    CANDIDATE = "candidate"
    UNDECIDED = "undecided"  # too few votes to tell; an admin may promote it
    CANARY = "canary"
    LIVE = "live"
    RETIRED = "retired"
    REJECTED = "rejected"


MODEL_TRANSITIONS: dict[ModelState, frozenset[ModelState]] = {
    ModelState.CANDIDATE: frozenset({ModelState.CANARY, ModelState.LIVE, ModelState.REJECTED}),
    ModelState.UNDECIDED: frozenset({ModelState.LIVE, ModelState.REJECTED}),
    ModelState.CANARY: frozenset({ModelState.LIVE, ModelState.REJECTED, ModelState.CANDIDATE}),
    ModelState.LIVE: frozenset({ModelState.RETIRED, ModelState.REJECTED}),  # rejected: rolled back for a fault
    ModelState.RETIRED: frozenset({ModelState.LIVE}),
    ModelState.REJECTED: frozenset({ModelState.LIVE}),  # an admin may overrule the evaluation with /promote
}


ANSWERING = frozenset({ModelState.LIVE, ModelState.CANARY})
"""The states of the models whose files are in use."""


class Verdict(StrEnum):
    """The outcome of a canary's trial, as stored in the ledger."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    STOPPED = "stopped"  # by an admin, or because another model was promoted
    VOID = "void"  # the trial could not continue; the model is a candidate again


class RecipientState(StrEnum):
    """The state of a broadcast recipient, as stored in the ledger."""

    DUE = "due"
    SENDING = "sending"
    DELIVERED = "told"
    UNREACHABLE = "unreachable"  # the user blocked the bot or deleted their account
    FAILED = "failed"
    DOUBTFUL = "doubtful"  # interrupted between sending and storing the result: never sent again
    SKIPPED = "spared"  # the broadcast was cancelled before their turn
